"""Judges a job by what its store did, request by request in the store's own order, as Jepsen's checkers do.

Pure: events in, violations out; it knows the names and records of an output place, and nothing of the product's code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.exchanges import Exchange

_RECORD = re.compile(r"commits/(?P<shard>.+-[0-9a-f]{8})(\.(?P<term>\d+))?\.json")
_OBJECT = re.compile(
    r"(tokens|rejects|semantic|acoustic)/(?P<shard>.+-[0-9a-f]{8})\.(?P<attempt>[0-9a-f]{32})\.(parquet|tar)"
)


@dataclass(frozen=True)
class Event:
    """A request that the store did. `path` is below the output, `record` the body of a put below `commits/`."""

    method: str
    path: str
    status: int
    conditional: bool = False
    sha256: str = ""
    record: bytes = b""
    acknowledged: bool = True

    @property
    def done(self) -> bool:
        """Whether the store did what was asked."""
        return 200 <= self.status < 300


@dataclass
class Verdict:
    """What was violated, and what there was to judge."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def events_of(log: Iterable[Exchange], records: Mapping[int, bytes], prefix: str) -> list[Event]:
    """The events below a prefix; `records` are the bodies of puts below `commits/` by exchange."""
    done = [one for one in log if one.store_order is not None and one.key.startswith(prefix)]
    return [
        Event(
            method=one.method,
            path=one.key.removeprefix(prefix),
            status=one.store_status or 0,
            conditional="if-none-match" in one.headers,
            sha256=one.body_sha256,
            record=records.get(one.number, b""),
            acknowledged=one.client_status is not None,
        )
        for one in sorted(done, key=lambda one: one.store_order or 0)
        if "uploadId" not in one.query
    ]


def judge(events: Iterable[Event], final: Mapping[str, bytes]) -> Verdict:
    """Replay the events; `final` are the objects that stand at the end."""
    events = list(events)
    replay = _Replay(_terms(events))
    for event in events:
        replay.take(event)
    replay.compare(final)
    return replay.verdict


def _terms(events: Iterable[Event]) -> dict[str, int]:
    """The term of each attempt that tried to commit, whatever came of it."""
    records = [_parsed(event.record) for event in events if event.record]
    return {record["attempt"]: record.get("term", 0) for record in records if record is not None}


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A commit record; None for a fence."""
    record: dict[str, Any] = json.loads(content)
    return None if record.get("fence") else record


class _Replay:
    """The store as it was after each event. A shard's records stand by term: a commit, or None for a fence."""

    def __init__(self, terms: Mapping[str, int]) -> None:
        self.verdict = Verdict()
        self._terms = terms
        self._hashes: dict[str, str] = {}
        self._records: dict[str, dict[int, dict[str, Any] | None]] = {}
        self._last_terms: dict[str, int] = {}

    def take(self, event: Event) -> None:
        """The next event."""
        record, token = _RECORD.fullmatch(event.path), _OBJECT.fullmatch(event.path)
        if record is not None:
            self._take_record(event, record["shard"], int(record["term"] or 0))
        elif token is not None:
            self._take_object(event, token["shard"], token["attempt"])

    def compare(self, final: Mapping[str, bytes]) -> None:
        """Whether the store holds in the end what its answers said."""
        standing = {path for path in self._hashes if _RECORD.fullmatch(path) or _OBJECT.fullmatch(path)}
        found = {path for path in final if _RECORD.fullmatch(path) or _OBJECT.fullmatch(path)}
        for path in sorted(standing ^ found):
            self._blame(f"{path} {'was lost' if path in standing else 'came from nowhere'}")
        for path in sorted(standing & found):
            if hashlib.sha256(final[path]).hexdigest() != self._hashes[path]:
                self._blame(f"{path} is not what was written last")

    def _take_record(self, event: Event, shard: str, term: int) -> None:
        standing = self._records.setdefault(shard, {})
        if event.method == "DELETE":
            self._blame(f"{event.path}: a record was deleted")
        elif event.method == "PUT" and event.status == 412 and term not in standing:
            self._blame(f"{event.path}: was refused as existing, and was not there")
        elif event.method == "PUT" and event.done:
            content = _parsed(event.record)
            if term in standing and event.conditional:
                self._blame(f"{event.path}: was created twice by put-if-absent")
            elif content is None:
                self._take_fence(event, standing, term)
            elif not event.conditional:
                self._blame(f"{event.path}: a commit was put over whatever stood there")
            else:
                self._take_commit(event, content, standing, term)
            standing[term] = content
            self._hashes[event.path] = event.sha256

    def _take_fence(self, event: Event, standing: dict[int, dict[str, Any] | None], term: int) -> None:
        if event.conditional:
            self.verdict.counts["fences"] += 1
        elif term not in standing:
            self._blame(f"{event.path}: a fence without put-if-absent where nothing stood")
        elif standing[term] is not None:
            self.verdict.counts["commits taken back"] += 1

    def _take_commit(
        self, event: Event, record: dict[str, Any], standing: dict[int, dict[str, Any] | None], term: int
    ) -> None:
        self.verdict.counts["commits"] += 1
        self.verdict.counts["commits that were not acknowledged"] += not event.acknowledged
        if record.get("term", 0) != term:
            self._blame(f"{event.path}: the record says term {record.get('term', 0)}")
        if any(earlier not in standing or standing[earlier] is not None for earlier in range(term)):
            self._blame(f"{event.path}: committed, and not every term before it is a fence")
        for item in record["objects"]:
            if self._hashes.get(item["path"]) != item["sha256"]:
                self._blame(f"{event.path}: committed before {item['path']} was there as the record says")

    def _take_object(self, event: Event, shard: str, attempt: str) -> None:
        named = self._names(shard).get(event.path)
        if event.method == "PUT" and event.done:
            if named is not None and named != event.sha256:
                self._blame(f"{event.path}: was overwritten while a commit named it")
            self._hashes[event.path] = event.sha256
            self._last_terms.setdefault(attempt, self._last_term(shard))
        elif event.method == "DELETE" and event.done:
            existed = self._hashes.pop(event.path, None) is not None
            if named is not None:
                self._blame(f"{event.path}: was deleted while a commit named it")
            elif existed:
                self.verdict.counts["objects deleted"] += 1
                self._check_proof(event.path, shard, attempt)
        elif event.method in ("GET", "HEAD"):
            self.verdict.counts["reads of objects"] += 1
            if event.status == 404 and named is not None:
                self._blame(f"{event.path}: a reader missed it while a commit named it")

    def _check_proof(self, path: str, shard: str, attempt: str) -> None:
        """A record stands in the attempt's term: the one of its commit, or any that it could know when it put this."""
        standing = self._records.get(shard, {})
        last = self._last_terms.get(attempt, 0)
        possible = [self._terms[attempt]] if attempt in self._terms else range(last + 1)
        if any(term not in standing for term in possible):
            self._blame(f"{path}: was deleted while its attempt could still commit")

    def _last_term(self, shard: str) -> int:
        """The last term in which an attempt that has begun by now may commit."""
        standing = self._records.get(shard, {})
        term = 0
        while term in standing and standing[term] is None:
            term += 1
        return term

    def _names(self, shard: str) -> dict[str, str]:
        """SHA-256 by path of all that the commits of a shard name."""
        commits = [record for record in self._records.get(shard, {}).values() if record is not None]
        return {item["path"]: item["sha256"] for record in commits for item in record["objects"]}

    def _blame(self, what: str) -> None:
        self.verdict.violations.append(what)
