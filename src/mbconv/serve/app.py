"""The API: pictures in, labels out, as FastAPI's application."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from mbconv.data.decode import Unreadable
from mbconv.runtime.predictor import Predictor
from mbconv.serve import pages, schema
from mbconv.serve.batcher import Answer, Batcher
from mbconv.serve.guard import Guard
from mbconv.serve.holding import Held, Holding
from mbconv.serve.limits import Limits
from mbconv.serve.metrics import CONTENT_TYPE, Metrics
from mbconv.serve.upload import Upload, receive
from mbconv.serve.urls import fetch

Top = Annotated[int, Query(ge=1, description="How many classes to name, best first.")]
Index = Annotated[
    int | None, Query(ge=0, description="The class's number; by default that of the answer.")
]


def create_app(
    predictor: Predictor, *, limits: Limits | None = None, allow_urls: bool = False
) -> FastAPI:
    """The application around a Predictor; its threads live as long as the application's lifespan.

    `allow_urls` lets clients name URLs, which this machine then asks for.
    """
    limits = limits or Limits()
    metrics, holding = Metrics(), Holding(limits)
    batcher = Batcher(predictor, limits, metrics)
    metrics.waiting.set_function(lambda: batcher.waiting)
    metrics.held.set_function(lambda: holding.bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(batcher.start)
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="mbconv serve", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses=schema.common_responses(),
    )  # fmt: skip
    _add_errors(app, metrics)
    _add_predict(app, batcher, holding, allow_urls)
    _add_explain(app, batcher, holding)
    _add_state(app, batcher, allow_urls)
    pages.add(app, predictor, limits)
    app.add_middleware(Guard, metrics=metrics)
    return app


def _add_predict(app: FastAPI, batcher: Batcher, holding: Holding, allow_urls: bool) -> None:
    limits = batcher.limits

    @app.post(
        "/predict", summary="Name what is in pictures", response_model=schema.Answers,
        response_description="The results",
        openapi_extra=schema.picture_body(limits, urls=allow_urls), tags=["API"],
    )  # fmt: skip
    async def predict(request: Request, top: Top = 5) -> Response:
        """One result a picture, in order. A picture that cannot be read has an error in its
        result; where none can be read the status is 422."""
        with holding.request() as held:
            sent = await receive(request, limits, held)
            uploads = await _fetched(sent, limits, held, allow_urls)
            answers = await batcher.predict(uploads, top)
        read = [answer for answer in answers if answer.prediction.error is None]
        for answer in read:
            batcher.metrics.seconds.observe(answer.seconds)
        batcher.metrics.answered.inc(len(read))
        batcher.metrics.unreadable.inc(len(answers) - len(read))
        body: dict[str, Any] = {"results": [_result(answer) for answer in answers]}
        if not read:
            body = {"detail": _none_read(answers), **body}
        return Response(json.dumps(body), 200 if read else 422, media_type="application/json")


def _add_explain(app: FastAPI, batcher: Batcher, holding: Holding) -> None:
    if batcher.predictor.artifact is not None:
        return

    @app.post(
        "/explain", summary="Show which places of a picture spoke for a class", tags=["API"],
        openapi_extra=schema.picture_body(batcher.limits, most=1), response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}, "description": "The picture"}},
    )  # fmt: skip
    async def explain(request: Request, index: Index = None) -> Response:
        """A JPEG: the part of the picture that the network sees under the heat map of Grad-CAM."""
        classes = len(batcher.predictor.labels)
        if index is not None and index >= classes:
            raise HTTPException(422, f"index is {index}; the network has {classes} classes.")
        with holding.request() as held:
            uploads = await receive(request, batcher.limits, held)
            if len(uploads) != 1 or isinstance(uploads[0], str):
                raise HTTPException(422, "One picture at a time is explained; send its file.")
            try:
                picture = await batcher.explain(uploads[0], index)
            except Unreadable as error:
                sentence = f"{uploads[0].name} cannot be read: {error.reason}."
                raise HTTPException(422, sentence) from error
        return Response(picture, media_type="image/jpeg")


def _add_state(app: FastAPI, batcher: Batcher, allow_urls: bool) -> None:
    predictor, metrics = batcher.predictor, batcher.metrics
    about = {
        "model": pages.model_name(predictor),
        "classes": len(predictor.labels),
        "resolution": predictor.preprocessing.resolution,
        "runtime": pages.runtime_name(predictor),
        "explains": predictor.artifact is None,
        "urls": allow_urls,
    }

    @app.get("/health", summary="Whether the server answers", response_model=schema.Health,
             response_description="What is served",
             responses={503: {"model": schema.Health, "description": "A thread has ended"}},
             tags=["State"])  # fmt: skip
    async def health() -> Response:
        """Status 200, or 503 where a thread has ended."""
        state = {"status": "ok" if batcher.alive else "failed", "waiting": batcher.waiting}
        return JSONResponse({**state, **about}, 200 if batcher.alive else 503)

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, tags=["State"],
             responses={200: {"content": {"text/plain": {}}, "description": "Text"}})  # fmt: skip
    async def figures() -> Response:
        """Requests by status, pictures by outcome, seconds, batch sizes, memory."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _fetched(
    sent: list[Upload] | list[str], limits: Limits, held: Held, allow_urls: bool
) -> list[Upload]:
    """The uploads, or what lies behind the URLs in their place."""
    urls = [url for url in sent if isinstance(url, str)]
    if not urls:
        return [upload for upload in sent if isinstance(upload, Upload)]
    if not allow_urls:
        sentence = "This server takes no URLs; send the file, or start it with --allow-urls."
        raise HTTPException(403, sentence)

    async def one(url: str) -> Upload:
        upload = await asyncio.to_thread(fetch, url, limits)
        held.add(len(upload.data))
        return upload

    try:
        async with asyncio.timeout(limits.seconds):
            return await asyncio.gather(*map(one, urls))
    except TimeoutError:
        late = f"The URLs did not answer within {limits.seconds:g} seconds."
        raise HTTPException(408, late) from None


def _result(answer: Answer) -> dict[str, Any]:
    """As `mbconv predict --format jsonl` has it, with the class's number, time and batch."""
    p = answer.prediction
    guesses = zip(p.labels, p.scores, p.indices, strict=True)
    return {
        "source": p.source,
        "predictions": [
            {"label": label, "score": round(score, 6), "index": index}
            for label, score, index in guesses
        ],
        "error": p.error,
        "milliseconds": round(1e3 * answer.seconds, 2),
        "batch": answer.batch,
    }


def _none_read(answers: list[Answer]) -> str:
    first = answers[0].prediction
    sentence = f"{first.source} cannot be read: {first.error}."
    if len(answers) == 1:
        return sentence
    return f"None of the {len(answers)} pictures can be read. {sentence}"


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every refusal is JSON with a sentence under `detail`."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}."}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        sentence = error.detail
        if error.status_code == 404:
            sentence = f"There is nothing at {request.url.path}; /docs lists what there is."
        return JSONResponse({"detail": sentence}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        metrics.requests.labels("500").inc()  # this answer is made outside of the guard
        return JSONResponse({"detail": "The server failed at this; its log says why."}, 500)
