"""Every picture of a list decoded once: what it is, what it shows, or why it cannot be read."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

import PIL

from mbconv.data.cache import Store
from mbconv.data.decode import Facts, Unreadable, decode_with_facts
from mbconv.data.fingerprint import SIDE, make_print
from mbconv.data.place import Place

Progress = Callable[[int, int], None]
"""Called with the number of files done and their total."""

_VERSION = f"1-pillow-{PIL.__version__}"  # raise the first number when a stored field changes
_WHOLE = 64_000_000  # bytes; larger files are not held in memory
_BATCH = 1000  # entries between two writes, so that an interrupted audit keeps most of its work


@dataclass(frozen=True)
class Entry:
    """One file: its content's hash, and facts and print, or the reason why there are none."""

    digest: bytes | None = None
    facts: Facts | None = None
    print: bytes | None = None
    reason: str | None = None


def examine(places: Sequence[Place], progress: Progress | None = None) -> list[Entry]:
    """Entries in the order of `places`; contents that were seen before come from the cache.

    A JPEG is decoded at reduced scale. That reads its whole stream, so damage is found as well,
    in half the time.
    """
    entries: list[Entry] = [Entry()] * len(places)
    new: list[Entry] = []
    store = Store(_VERSION)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        futures = {pool.submit(_examine, place, store): i for i, place in enumerate(places)}
        for done, future in enumerate(as_completed(futures), start=1):
            entry, fresh = future.result()
            entries[futures.pop(future)] = entry
            if fresh:
                new.append(entry)
            if len(new) >= _BATCH:
                _keep(store, new)
                new = []
            if progress:
                progress(done, len(places))
    finally:
        pool.shutdown(cancel_futures=True)  # at once when interrupted
        _keep(store, new)
        store.close()
    return entries


def _examine(place: Place, store: Store) -> tuple[Entry, bool]:
    """The entry of one file, and whether it belongs into the store."""
    try:
        source, digest = _read(place)
    except OSError as error:
        return Entry(reason=(error.strerror or str(error)).lower()), False
    except Unreadable as error:
        return Entry(reason=error.reason), False
    if (row := store.get(digest)) and (entry := _from_row(digest, *row)):
        return entry, False
    try:
        picture, facts = decode_with_facts(source, min_side=2 * SIDE)
    except Unreadable as error:  # not stored: the next version of Pillow may read it
        return Entry(digest=digest, reason=error.reason), False
    return Entry(digest=digest, facts=facts, print=make_print(picture)), True


def _read(place: Place) -> tuple[Path | bytes, bytes]:
    """What to decode, and the content's hash."""
    if not isinstance(place, Path):
        data = place.read()
        return data, blake2b(data, digest_size=20).digest()
    status = place.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("not a file")
    if status.st_size > _WHOLE:
        with place.open("rb") as stream:
            return place, file_digest(stream, lambda: blake2b(digest_size=20)).digest()
    data = place.read_bytes()
    return data, blake2b(data, digest_size=20).digest()


def _keep(store: Store, entries: Iterable[Entry]) -> None:
    store.put(
        (e.digest, json.dumps(asdict(e.facts)), e.print) for e in entries if e.digest and e.facts
    )


def _from_row(digest: bytes, text: str, data: bytes | None) -> Entry | None:
    try:
        return Entry(digest=digest, facts=Facts(**json.loads(text)), print=data)
    except (ValueError, TypeError):
        return None
