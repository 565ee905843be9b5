"""The page for people, the page that describes the API, and the files that they load."""

from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mbconv.report.words import count, size
from mbconv.runtime.predictor import Predictor
from mbconv.serve.limits import Limits
from mbconv.serve.schema import EXAMPLES

_RUNTIMES = {
    "torch": "torch.export", "onnx": "ONNX Runtime", "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}  # fmt: skip
_FILES = {
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}


def add(app: FastAPI, predictor: Predictor, limits: Limits) -> None:
    """Add `/`, `/docs` and their files to the application, none of them to its description."""
    index = _template("index.html.j2").render(
        model=model_name(predictor),
        classes=count(len(predictor.labels), "class", "classes"),
        resolution=predictor.preprocessing.resolution,
        runtime=runtime_name(predictor),
        explains=predictor.artifact is None,
        upload=limits.upload,
        most=size(limits.upload).replace(".0 ", " "),
    )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(index, media_type="text/html")

    @app.get("/docs", include_in_schema=False)
    async def description(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        page = _template("docs.html.j2").render(
            operations=_operations(app.openapi()), base=base, model=model_name(predictor)
        )
        return Response(page, media_type="text/html")

    for path, kind in _FILES.items():
        _add_file(app, path, kind)


def model_name(predictor: Predictor) -> str:
    return predictor.spec.name or "a network"


def runtime_name(predictor: Predictor) -> str:
    form = predictor.artifact and predictor.artifact.form
    return f"{_RUNTIMES[form.runtime]}, {form.precision}" if form else "PyTorch"


def _add_file(app: FastAPI, path: str, kind: str) -> None:
    content = files("mbconv.serve").joinpath(f"page{path}").read_bytes()

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("mbconv.serve", "page"),
        autoescape=True,  # names of models are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _operations(description: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAPI's paths as a flat list; only what takes pictures is refused in so many ways."""
    return [
        {
            **operation,
            "method": method.upper(),
            "path": path,
            "shown": set(operation["responses"]) if method == "post" else {"200", "503"},
            "example": EXAMPLES.get(path),
        }
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    ]
