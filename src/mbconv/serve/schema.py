"""What the API takes and answers, for its description."""

from typing import Any

from pydantic import BaseModel

from mbconv.report.words import size
from mbconv.serve.limits import Limits
from mbconv.serve.upload import FIELD


class Guess(BaseModel):
    label: str
    score: float
    index: int


class Result(BaseModel):
    source: str
    predictions: list[Guess]
    error: str | None
    milliseconds: float
    batch: int


class Answers(BaseModel):
    results: list[Result]


class Problem(BaseModel):
    detail: str
    results: list[Result] = []


class Health(BaseModel):
    status: str
    waiting: int
    model: str
    classes: int
    resolution: int
    runtime: str
    explains: bool
    urls: bool


_STATUS = {
    400: "Cut off, or no form",
    403: "This server takes no URLs",
    404: "Nothing at this path",
    405: "Not with this method",
    408: "Did not arrive in time",
    413: "Too large, or too many",
    415: "Another type of content",
    422: "No picture that can be read",
    503: "No room: try again after Retry-After seconds",
}

EXAMPLES = {
    "/predict": """{"results": [{
  "source": "cat.jpg",
  "predictions": [{"label": "tabby", "score": 0.512, "index": 281}, ...],
  "error": null,
  "milliseconds": 11.8,
  "batch": 1
}]}"""
}


def common_responses() -> dict[int | str, dict[str, Any]]:
    """Every refusal is a sentence."""
    return {status: {"model": Problem, "description": text} for status, text in _STATUS.items()}


def picture_body(limits: Limits, *, urls: bool = False, most: int | None = None) -> dict[str, Any]:
    """The request's body, in OpenAPI's words."""
    most = most or limits.pictures
    binary = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": binary, "minItems": 1, "maxItems": most}
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
        },
        "image/*": {"schema": binary},
    }
    if urls:
        items = {"type": "string", "format": "uri"}
        named = {"type": "array", "items": items, "minItems": 1, "maxItems": most}
        content["application/json"] = {
            "schema": {"type": "object", "properties": {"urls": named}, "required": ["urls"]}
        }
    about = f"At most {size(limits.upload)} and {limits.pixels / 1e6:g} megapixels a picture."
    return {"requestBody": {"required": True, "description": about, "content": content}}
