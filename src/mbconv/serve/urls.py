"""Pictures behind URLs, from public addresses alone.

Who may name a URL makes this machine ask for it. Addresses of the machine itself, of its network
and of its cloud are therefore refused; each connection, also behind a redirect, goes to the very
address that was checked. A proxy would hide the address, so that none is used.
"""

import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from mbconv.report.words import size
from mbconv.serve.limits import Limits
from mbconv.serve.upload import Upload

_CHUNK = 1 << 16


class _Refused(OSError):
    """A URL that is not fetched; its text is the reason."""


def fetch(url: str, limits: Limits) -> Upload:
    """The file behind a URL; one that cannot be had is an Upload with an `error`."""
    try:
        return Upload(url, _content(url, limits))
    except urllib.error.HTTPError as error:
        error.close()
        return Upload(url, b"", f"its server answered {error.code}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        known = reason if isinstance(reason, _Refused) else "it could not be fetched"
        return Upload(url, b"", str(known))


def _content(url: str, limits: Limits) -> bytes:
    until = monotonic() + limits.seconds
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Refused("it is no http or https URL")
    pieces, total = [], 0
    with _opener().open(url, timeout=min(limits.seconds, 10)) as answer:
        while chunk := answer.read1(_CHUNK):
            total += len(chunk)
            if total > limits.upload:
                raise _Refused(f"it is larger than {size(limits.upload)}")
            if monotonic() > until:
                raise _Refused(f"it did not arrive within {limits.seconds:g} seconds")
            pieces.append(chunk)
    return b"".join(pieces)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Http(), _Https(), urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "mbconv")]
    return opener


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_checked(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_checked(http.client.HTTPSConnection), req)


def _checked(kind: Any) -> Any:
    def connection(*args: Any, **kwargs: Any) -> Any:
        made = kind(*args, **kwargs)
        made._create_connection = connect_to_public
        return made

    return connection


def connect_to_public(address: tuple[str, int], timeout: Any = None, source: Any = None) -> Any:
    """As socket.create_connection; an address that is not public is refused before it is called."""
    host, port = address
    failure: OSError = _Refused("its name is unknown")
    for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_public(str(found[0])):
            failure = _Refused("its address is not a public one")
            continue
        try:
            return socket.create_connection((str(found[0]), port), timeout, source)
        except OSError as error:
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, also when written inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inside = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return ip.is_global and not ip.is_multicast and (inside is None or inside.is_global)
