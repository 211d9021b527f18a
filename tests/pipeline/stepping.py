"""A store in memory whose calls are steps, and actors of which exactly one moves at a time.

Each actor is a thread that runs the product's own functions; it stops before every call to the store until it is told
how that call shall go (`FATES`). So a test chooses every interleaving, and each of them can be had again.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.commit import FENCE
from pipeline.errors import ObjectMissingError, StoreUnavailableError, VoxmillError
from pipeline.layout import TOKEN_FOLDERS, OutputPlace, parse_commit_path, parse_token_path
from pipeline.records import CommitRecord
from pipeline.storage import PROBE_PREFIX
from pipeline.types import ObjectInfo, PartialObject

PLACE = OutputPlace("s3://bucket/out")
PAGE = 3
"""Names a page of a listing; each page is a step, so listings are torn as those of a real store are."""

FATES = ("do", "fail", "lose", "late", "twice", "copy")
"""Of a call: done; not done; done without a reply; no reply, and done later; done, its reply lost and done again by the
client; done, and a copy of the request done again later. Calls that write nothing know the first two."""

LIMIT_S = 30.0
"""An actor that has not come to its next call by then hangs."""


class HaltedError(BaseException):
    """Ends the thread of an actor that never moves again; no `except` of the product may catch it."""


class World:
    """What the store holds, checked at each write: `broken` names what was violated."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.inputs: dict[str, bytes] = {}
        self.pending: list[Callable[[], object]] = []
        self.terms: dict[str, int] = {}
        self.broken: list[str] = []
        self.seen: Counter[str] = Counter()
        self.attempts = (f"{number:032x}" for number in count())
        self._records: dict[bytes, CommitRecord] = {}

    def records(self) -> Iterator[tuple[str, int, CommitRecord | None]]:
        """(shard id, term, commit or None for a fence) of all that stand."""
        for uri, content in self.objects.items():
            owner = parse_commit_path(PLACE.path(uri))
            if owner is not None:
                yield (*owner, None if content == FENCE else self._parsed(content, uri))

    def commits(self) -> list[CommitRecord]:
        """Those that stand."""
        return [record for _, _, record in self.records() if record is not None]

    def named(self) -> set[str]:
        """URIs that the commits name."""
        return {PLACE.uri(item.path) for record in self.commits() for item in record.objects}

    def tokens(self) -> set[str]:
        """URIs of what attempts have put."""
        return {uri for uri in self.objects if PLACE.path(uri).split("/")[0] in TOKEN_FOLDERS}

    def write(self, uri: str, data: bytes, *, takes_back: bool = False) -> None:
        """Put an object, over any older one; over a commit only who `takes_back`."""
        owner, older = parse_commit_path(PLACE.path(uri)), self.objects.get(uri)
        if owner is not None:
            self.seen[f"{'fence' if data == FENCE else 'commit'}{'' if older is None else ' over a record'}"] += 1
            if older is not None and data != FENCE:
                self.broken.append(f"{uri}: a record became a commit")
            if older not in (None, FENCE) and not takes_back:
                self.broken.append(f"{uri}: a commit became a fence, though nobody took it back")
        elif older is not None and data != older and uri in self.tokens():
            self.broken.append(f"{uri}: an attempt's object became another")
        self.objects[uri] = data
        self._check()

    def delete(self, uri: str) -> None:
        """Delete an object."""
        path = PLACE.path(uri)
        if parse_commit_path(path):
            self.broken.append(f"{uri}: a record was deleted")
        elif owner := parse_token_path(path):
            term = self.terms.get(owner[1])
            self.seen["token object deleted"] += uri in self.objects
            if term is not None and PLACE.commit(owner[0], term) not in self.objects:
                self.broken.append(f"{uri} was deleted, and may still be committed in term {term}")
        elif not path.startswith(PROBE_PREFIX):
            self.broken.append(f"{uri}: nothing that anybody deletes")
        self.objects.pop(uri, None)
        self._check()

    def _check(self) -> None:
        shards = Counter(record.shard_id for record in self.commits())
        self.broken += [f"{shard_id} is committed twice" for shard_id, num in shards.items() if num > 1]
        for record in self.commits():
            for item in record.objects:
                content = self.objects.get(PLACE.uri(item.path))
                if content is None or hashlib.sha256(content).hexdigest() != item.sha256:
                    self.broken.append(f"the commit of {record.shard_id} names {item.path}, which is not so")

    def _parsed(self, content: bytes, uri: str) -> CommitRecord:
        if content not in self._records:
            self._records[content] = CommitRecord.from_bytes(content, uri)
        return self._records[content]


class SteppedStore:
    """The store as one actor has it; without an actor every call is done at once."""

    def __init__(self, world: World, actor: Actor | None = None) -> None:
        self.world = world
        self.actor = actor

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = ""
        while True:
            page = self._reads("list", prefix, lambda last=last: self._page(prefix, last))
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1].uri

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        def read() -> bytes:
            if uri not in self.world.objects:
                raise ObjectMissingError(uri)
            return self.world.objects[uri]

        return self._reads("read", uri, read)

    def put(self, uri: str, data: bytes) -> ObjectInfo:
        takes_back = self.actor is None or "redo" in self.actor.name
        return self._writes("put", uri, lambda: self._put(uri, data, takes_back=takes_back))

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        data = path.read_bytes()
        return self._writes("put_file", uri, lambda: self._put(uri, data))

    def put_if_absent(self, uri: str, data: bytes) -> ObjectInfo | None:
        def put() -> ObjectInfo | None:
            return None if uri in self.world.objects else self._put(uri, data)

        if parse_commit_path(PLACE.path(uri)) and data != FENCE:
            record = CommitRecord.from_bytes(data, uri)
            self.world.terms[record.attempt] = record.term
        return self._writes("put_if_absent", uri, put)

    def delete(self, uri: str) -> None:
        self._writes("delete", uri, lambda: self.world.delete(uri))

    def list_partial(self, prefix: str) -> Iterator[PartialObject]:
        return iter(())

    def _page(self, prefix: str, last: str) -> list[ObjectInfo]:
        uris = sorted(uri for uri in self.world.objects if uri.startswith(f"{prefix}/") and uri > last)
        return [self._info(uri) for uri in uris[:PAGE]]

    def _put(self, uri: str, data: bytes, *, takes_back: bool = False) -> ObjectInfo:
        self.world.write(uri, data, takes_back=takes_back)
        return self._info(uri)

    def _info(self, uri: str) -> ObjectInfo:
        data = self.world.objects[uri]
        return ObjectInfo(uri, len(data), hashlib.md5(data).hexdigest(), 0.0)

    def _reads(self, name: str, uri: str, deed: Callable[[], Any]) -> Any:
        if self._fate(name, uri) in ("fail", "lose", "late"):
            raise StoreUnavailableError(f"{name} of {uri}: no answer")
        return deed()

    def _writes(self, name: str, uri: str, deed: Callable[[], Any]) -> Any:
        fate = self._fate(name, uri)
        if fate in ("do", "lose", "twice", "copy"):
            result = deed()
        if fate == "twice":
            result = deed()
        if fate in ("late", "copy"):
            self.world.pending.append(deed)
        if fate in ("fail", "lose", "late"):
            raise StoreUnavailableError(f"{name} of {uri}: no answer")
        return result

    def _fate(self, name: str, uri: str) -> str:
        if self.actor is None:
            return "do"
        step = re.sub(r"[0-9a-f]{8,}", "*", PLACE.path(uri).split("/")[0])
        fate = self.actor.next_fate(f"{name} {step}")
        self.world.seen[f"{name} {step}"] += 1
        self.world.seen[f"fate {fate}"] += 1
        return fate


class Actor:
    """A body that runs in a thread of its own and stops at each call to its store; `step` is what it is about to do."""

    def __init__(self, world: World, name: str, body: Callable[[SteppedStore], None]) -> None:
        self.name = name
        self.step = ""
        self.ended = False
        self.error: BaseException | None = None
        self._fate = "do"
        self._halted = False
        self._may_go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(body, SteppedStore(world, self)), daemon=True)
        self._thread.start()
        self._wait()

    def move(self, fate: str = "do") -> None:
        """Let the call be done, and the actor go on to its next one or to its end."""
        self._fate = fate
        self._may_go.release()
        self._wait()

    def halt(self) -> None:
        """Let it never move again."""
        self._halted = True
        self._may_go.release()
        self._thread.join(LIMIT_S)
        self.ended = True

    def next_fate(self, step: str) -> str:
        """In the actor's thread: stop here until it is told how the call shall go."""
        self.step = step
        if not self._halted:
            self._stands.release()
            self._may_go.acquire()
        if self._halted:
            raise HaltedError
        return self._fate

    def _wait(self) -> None:
        assert self._stands.acquire(timeout=LIMIT_S), f"{self.name} hangs after {self.step}"

    def _run(self, body: Callable[[SteppedStore], None], store: SteppedStore) -> None:
        try:
            body(store)
        except HaltedError:
            return
        except VoxmillError as error:
            self.error = error  # an end that the product foresees
        except BaseException as error:
            self.error = error
            store.world.broken.append(f"{self.name}: {error!r}")
        self.ended = True
        self._stands.release()
