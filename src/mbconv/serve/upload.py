"""What a request brings: files of a form, a picture as it is, or the URLs of pictures.

The form is read with python-multipart's parser alone: a part goes into memory once, and limits hold
while it arrives.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from mbconv.report.words import count, size
from mbconv.serve.holding import Held
from mbconv.serve.limits import Limits

FIELD = "files"


@dataclass(frozen=True)
class Upload:
    """A picture's file as it came; `error` says why one behind a URL did not come."""

    name: str
    data: bytes
    error: str | None = None


class Body(Protocol):
    """Takes a request's body piece by piece."""

    def write(self, chunk: bytes) -> None: ...
    def finish(self) -> Any: ...


async def receive(request: Request, limits: Limits, held: Held) -> list[Upload] | list[str]:
    """The pictures of a request, or the URLs in its place.

    Raises HTTPException with a sentence: 400 for what is cut off or no form, 408 for what does not
    arrive in time, 413, 415, 422, and 503 where others' uploads take all room. What is refused is
    read to its end and dropped, within the same time: clients that are still sending do not listen.
    """
    body: Body | None = None
    refusal: HTTPException | None = None
    dropped = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                try:
                    if refusal is None:
                        body = body or _body(request, limits)
                        held.add(len(chunk))
                        body.write(chunk)
                        continue
                except HTTPException as error:
                    refusal, body = error, None  # lets go of what came so far
                    held.clear()
                dropped += len(chunk)
                if dropped > limits.held:
                    break
    except TimeoutError:
        late = f"The upload did not arrive within {limits.seconds:g} seconds."
        raise refusal or HTTPException(408, late, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The upload was cut off before its end.") from None
    if refusal is not None:
        refusal.headers = {**(refusal.headers or {}), "Connection": "close"}
        raise refusal
    assert body is not None, "a stream ends with an empty chunk, if with nothing else"
    result: list[Upload] | list[str] = body.finish()
    return result


def _body(request: Request, limits: Limits) -> Body:
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header)
    if kind == b"multipart/form-data":
        return _Form(options.get(b"boundary", b""), limits)
    if kind.startswith(b"image/"):
        return _Picture(limits)
    if kind == b"application/json":
        return _Urls(limits)
    raise HTTPException(
        415, f"Send pictures as a form (curl -F {FIELD}=@cat.jpg) or as image/*, not as "
        f"{header or 'a body without a content type'}."
    )  # fmt: skip


class _Form:
    """Parts of a form; every part with a file name is a picture, and every one called `files`."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        if not boundary:
            raise HTTPException(400, "The form's content type names no boundary.")
        self._limits = limits
        self._uploads: list[Upload] = []
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._begin, "on_header_field": self._header_field,
            "on_header_value": self._header_value, "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished, "on_part_data": self._data,
            "on_part_end": self._part_end, "on_end": self._end,
        }  # fmt: skip
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _no_form(error) from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _no_form(error) from error

    def finish(self) -> list[Upload]:
        if not self._ended:
            raise HTTPException(400, "The form is cut off before its end.")
        if not self._uploads:
            raise HTTPException(
                422, f"The form has no file; curl sends one with -F {FIELD}=@cat.jpg."
            )
        return self._uploads

    def _begin(self) -> None:
        self._field, self._value = b"", b""
        self._disposition = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._name: str | None = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" in options or options.get(b"name") == FIELD.encode():
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            self._name = name or f"picture {len(self._uploads) + 1}"
            if len(self._uploads) == self._limits.pictures:
                most = count(self._limits.pictures, "picture")
                raise HTTPException(
                    413, f"A request brings {most} at most; send the rest in others."
                )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._size += end - start
            if self._size > self._limits.upload:
                raise _too_large(self._name, self._limits)
            self._pieces.append(data[start:end])

    def _part_end(self) -> None:
        if self._name is not None:
            self._uploads.append(Upload(self._name, b"".join(self._pieces)))
            self._pieces = []

    def _end(self) -> None:
        self._ended = True


class _Picture:
    """A body that is one picture's file."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limits.upload:
            raise _too_large("The picture", self._limits)
        self._pieces.append(chunk)

    def finish(self) -> list[Upload]:
        return [Upload("picture 1", b"".join(self._pieces))]


class _Urls(_Picture):
    """JSON: {"urls": ["https://...", ...]}."""

    def finish(self) -> list[str]:  # type: ignore[override]
        try:
            urls = json.loads(b"".join(self._pieces))["urls"]
            if not (isinstance(urls, list) and urls and all(isinstance(u, str) for u in urls)):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            example = '{"urls": ["https://..."]}'
            raise HTTPException(422, f"The JSON names no pictures; send {example}.") from None
        if len(urls) > self._limits.pictures:
            most = count(self._limits.pictures, "picture")
            raise HTTPException(413, f"A request brings {most} at most; send the rest in others.")
        return urls


def _no_form(error: FormParserError) -> HTTPException:
    return HTTPException(400, f"The body is no form: {error}.")


def _too_large(name: str, limits: Limits) -> HTTPException:
    return HTTPException(413, f"{name} is larger than {size(limits.upload)}; send a smaller file.")
