"""From what a person gives as input to the exact list of shards."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from braceexpand import braceexpand

from pipeline.errors import ConfigError, ObjectMissingError, RefusedError
from pipeline.storage import Store, is_remote, join, normal_uri
from pipeline.types import ObjectInfo, Shard
from pipeline.uris import check_uri, without_credentials

LIST_BYTES_MAX = 1 << 30
"""Of one `@list` file."""

ENTRIES_MAX = 10_000_000
ENTRIES_CHARS_MAX = 4 << 30
"""URIs that one input may stand for, and their length: a slip in a brace must not fill the memory."""

BRACES_DEPTH_MAX = 32

_STATS_MAX = 16
"""Above so many named files of one folder, the folder is listed once instead."""

_STATS_IN_FLIGHT = 16
_ALL_TARS = "**/*.tar"
_MAGIC = re.compile(r"[*?\[]")
_INT_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_CHAR_RANGE = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")

StoreAt = Callable[[str], Store]


@dataclass(frozen=True, slots=True)
class Listing:
    """The shards found and the URIs that were named one by one and are not there, both in URI order."""

    shards: tuple[Shard, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Search:
    """A glob below a folder; `given` is how the person wrote it."""

    folder: str
    pattern: str
    given: str


def list_shards(inputs: Sequence[str], open: Callable[[str], Store]) -> Listing:  # noqa: A002
    """The shards that `inputs` name, each once; `open` gives the store of a URI, opened once (`Stores`).

    An input is a file; a glob (`*`, `?`, `[..]` within one name, `**` as a whole name for any depth); braces
    (`{000..127}`, `{a,b}`), also with globs in them; a folder, for all `*.tar` below it; or `@list.txt`, a
    file of plain URIs, one a line, relative ones from its own folder, blank lines and `#` comments skipped.
    Globs find a name that begins with a dot only where they spell the dot, folders never. Local paths become
    absolute (from the working folder) and lose their `file://`, so that a file has one shard id.
    The requests grow with the folders, not with the shards.

    Raises `RefusedError` for a glob, folder or list without a shard and for two shards of one id,
    `ConfigError` for an input that cannot be understood, and the store's own errors.
    """
    named: dict[str, str] = {}
    searches: list[_Search] = []
    for given, literal in _expanded(inputs, open):
        if _MAGIC.search(given) and not literal:
            searches.append(_glob(given))
        elif given.endswith("/") or (is_remote(given) and given.count("/") == 2):
            searches.append(_Search(normal_uri(given.rstrip("/") or "/"), _ALL_TARS, given))
        else:
            named[normal_uri(given)] = given
    found = _find_named(named, open)
    missing = []
    for uri in named.keys() - found.keys():
        if not uri.endswith(".tar") and _is_folder(uri, open):
            searches.append(_Search(uri, _ALL_TARS, named[uri]))
        else:
            missing.append(uri)
    found.update(_find_matching(searches, open))
    shards = tuple(Shard(info.uri, info.size_bytes, info.etag) for _, info in sorted(found.items()))
    _refuse_equal_ids(shards)
    return Listing(shards, tuple(sorted(missing)))


def _expanded(inputs: Sequence[str], store_at: StoreAt) -> Iterator[tuple[str, bool]]:
    """Each URI that the inputs stand for, and whether it is literal (from a list), so that `*` is a `*`."""
    for given in inputs:
        literal = given.startswith("@")
        try:
            if not given.removeprefix("@"):
                raise ValueError("it names nothing")
            check_uri(given.removeprefix("@"))
            uris = _list_lines(given.removeprefix("@"), store_at) if literal else _unbraced(given)
            yield from ((uri, literal) for uri in uris)
        except ValueError as error:
            raise ConfigError(f"input {without_credentials(given)!r}: {error}") from None


def _list_lines(given: str, store_at: StoreAt) -> list[str]:
    uri = normal_uri(given)
    try:
        text = store_at(uri).read(uri, bytes_max=LIST_BYTES_MAX).decode("utf-8-sig")
    except ObjectMissingError as error:
        raise RefusedError(f"the list of shards @{given} is not there: {error}") from error
    _check_entries(text.count("\n"), 1)
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise RefusedError(f"the list of shards @{given} is empty; it holds one URI a line")
    for line in lines:
        check_uri(line)
    folder = uri.rpartition("/")[0]
    return [line if line.startswith("/") or "://" in line else join(folder, line) for line in lines]


def _unbraced(given: str) -> list[str]:
    if "{" not in given:
        return [given]
    _check_braces(given)
    try:
        return list(braceexpand(given))
    except ValueError:  # its words hold the input, which may hold a secret
        raise ValueError("Unbalanced braces; each '{' needs its '}'") from None


def _check_braces(given: str) -> None:
    """Refuse braces that stand for too many names, ahead of braceexpand, which holds all that is nested at once."""
    opened = [_Brace(0)]
    position = 0
    while position < len(given):
        brace = opened[-1]
        match given[position]:
            case "{":
                opened.append(_Brace(position + 1))
                if len(opened) > BRACES_DEPTH_MAX:
                    raise ValueError(f"its braces are nested more than {BRACES_DEPTH_MAX} deep")
            case "," if len(opened) > 1:
                brace.end_alternative()
            case "}" if len(opened) > 1:
                brace.end_alternative()
                inside = opened.pop()
                opened[-1].num_names *= _num_in_range(given[inside.start : position]) or inside.num_before
                opened[-1].num_chars += inside.num_chars_max
                _check_entries(opened[-1].num_names, opened[-1].num_chars)
            case "\\":
                position += 1
                brace.num_chars += 1
            case _:
                brace.num_chars += 1
        position += 1
    _check_entries(opened[0].num_names, opened[0].num_chars)


@dataclass
class _Brace:
    """An open brace: where it began, its alternatives so far, and of the one being read how many and how long."""

    start: int
    num_before: int = 0
    num_chars_max: int = 0
    num_names: int = 1
    num_chars: int = 0

    def end_alternative(self) -> None:
        self.num_before += self.num_names
        self.num_chars_max = max(self.num_chars_max, self.num_chars)
        self.num_names, self.num_chars = 1, 0


def _num_in_range(text: str) -> int:
    """How many names a range (`0..127`, `a..f..2`) stands for, 0 for what is none."""
    if found := _INT_RANGE.fullmatch(text):
        first, last = int(found[1]), int(found[2])
    elif found := _CHAR_RANGE.fullmatch(text):
        first, last = ord(found[1]), ord(found[2])
    else:
        return 0
    return abs(last - first) // max(int(found[3] or 1), 1) + 1


def _check_entries(num_entries: int, chars_max: int) -> None:
    if num_entries > ENTRIES_MAX or num_entries * chars_max > ENTRIES_CHARS_MAX:
        raise ValueError(
            f"it stands for {num_entries} names or more of up to {chars_max} characters; at most {ENTRIES_MAX} names "
            f"and {ENTRIES_CHARS_MAX} characters are allowed"
        )


def _glob(given: str) -> _Search:
    magic = _MAGIC.search(given)
    assert magic is not None
    literal, slash, last = given[: magic.start()].rpartition("/")
    if is_remote(given) and literal.count("/") < 2:
        raise ConfigError(
            f"input {without_credentials(given)!r}: a bucket's name cannot be a glob; give s3://bucket/..."
        )
    folder = normal_uri((literal or slash) or ".")
    pattern = last + given[magic.start() :]
    return _Search(folder, pattern + _ALL_TARS if pattern.endswith("/") else pattern, given)


def _find_named(named: Mapping[str, str], store_at: StoreAt) -> dict[str, ObjectInfo]:
    by_folder: defaultdict[str, set[str]] = defaultdict(set)
    for uri in named:
        by_folder[uri.rpartition("/")[0]].add(uri)
    found: list[ObjectInfo] = []
    few: list[str] = []
    for folder, uris in by_folder.items():
        if len(uris) <= _STATS_MAX:
            few += uris
        else:
            found += _pick(uris, folder or "/", store_at)
    with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
        found += filter(None, pool.map(_stat_or_none, few, map(store_at, few)))
    return {info.uri: info for info in found}


def _pick(uris: set[str], folder: str, store_at: StoreAt) -> Iterator[ObjectInfo]:
    """Those of `uris` that are in the folder; stops listing once past the last of them."""
    last = max(uris)
    try:
        for info in store_at(folder).list(folder):
            if info.uri in uris:
                yield info
            if info.uri >= last:
                return
    except ObjectMissingError:  # no such bucket: all of them are missing
        return


def _stat_or_none(uri: str, store: Store) -> ObjectInfo | None:
    try:
        return store.stat(uri)
    except ObjectMissingError:
        return None


def _is_folder(uri: str, store_at: StoreAt) -> bool:
    try:
        return next(store_at(uri).list(uri), None) is not None
    except ObjectMissingError:
        return False


def _find_matching(searches: Sequence[_Search], store_at: StoreAt) -> dict[str, ObjectInfo]:
    """What the searches find; a folder that several share is listed once."""
    by_folder: defaultdict[str, list[_Search]] = defaultdict(list)
    for search in searches:
        by_folder[search.folder].append(search)
    found: dict[str, ObjectInfo] = {}
    for folder, together in by_folder.items():
        found.update(_match(folder, together, store_at(folder)))
    return found


def _match(folder: str, searches: Sequence[_Search], store: Store) -> dict[str, ObjectInfo]:
    matchers = [(search, _matcher(search)) for search in searches]
    fruitless = set(searches)
    found: dict[str, ObjectInfo] = {}
    try:
        for info in store.list(folder):
            name = info.uri.removeprefix(folder.rstrip("/") + "/")
            for search, matches in matchers:
                if matches(name):
                    found[info.uri] = info
                    fruitless.discard(search)
    except ObjectMissingError as error:
        raise RefusedError(f"input {searches[0].given!r}: {error}") from error
    for search in searches:
        if search in fruitless:
            raise RefusedError(
                f"input {search.given!r} matches nothing: no object {search.pattern!r} was found below "
                f"{folder}; check the path and that it holds .tar shards"
            )
    return found


def _matcher(search: _Search) -> Callable[[str], bool]:
    parts = [_part_matcher(part, search) for part in search.pattern.split("/")]
    shows_hidden = "/." in f"/{search.pattern}"
    return lambda name: (shows_hidden or "/." not in f"/{name}") and _matches(parts, name.split("/"))


_PartMatcher = Callable[[str], object] | None
"""Whether one part of a path matches one of a pattern; None stands for `**`, any number of parts."""


def _part_matcher(part: str, search: _Search) -> _PartMatcher:
    if part == "**":
        return None
    if "**" in part:
        raise ConfigError(
            f"input {without_credentials(search.given)!r}: '**' can only be an entire path component; write a/**/b"
        )
    return re.compile(fnmatch.translate(part)).match if part != "*" else bool


def _matches(parts: Sequence[_PartMatcher], names: Sequence[str]) -> bool:
    """Whether a pattern matches a path whole.

    Only the last `**` is gone back to, and `fnmatch` never goes back behind a `*`, so that the time is bounded by the
    lengths' product: names come from a bucket, and one of a thousand dashes must not hold up a run for hours.
    """
    part = at = resume = 0
    last_any = -1
    while at < len(names):
        matches = parts[part] if part < len(parts) else bool
        if matches is None:
            last_any, resume = part, at
            part += 1
        elif part < len(parts) and matches(names[at]):
            part += 1
            at += 1
        elif last_any >= 0:
            resume += 1
            part, at = last_any + 1, resume
        else:
            return False
    return part == len(parts)


def _refuse_equal_ids(shards: Sequence[Shard]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        try:
            other = seen.setdefault(shard.shard_id, shard.uri)
        except UnicodeEncodeError as error:
            raise RefusedError(f"the name of {shard.uri!r} is not UTF-8; rename the file") from error
        if other != shard.uri:
            raise RefusedError(
                f"{other} and {shard.uri} have one shard id ({shard.shard_id}); rename or leave out one of them"
            )
