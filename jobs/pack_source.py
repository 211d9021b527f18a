"""What there is to pack: a folder of audio files, or a JSONL manifest that names them.

A sample in memory is its key, a path and a byte offset; texts and other fields are read again when they are
written, so memory grows with the number of samples alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pipeline.errors import DataError, RefusedError
from pipeline.reader import AUDIO_EXTENSIONS
from pipeline.storage import is_remote
from pipeline.storage_local import local_path

MANIFEST_SUFFIXES = frozenset({"json", "jsonl", "ndjson"})
LINE_BYTES_MAX = 16 << 20
"""Of one manifest line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample to pack; `line_start` is the byte offset of its manifest line, None for a folder."""

    key: str
    audio: str
    line_start: int | None = None


class Source(Protocol):
    """A place of loose audio files."""

    @property
    def entries(self) -> list[Entry]:
        """All samples in key order, every key once."""
        ...

    @property
    def num_skipped(self) -> int:
        """Files that were seen and are not packed: neither audio nor the text of one, or hidden."""
        ...

    def sidecars(self, entry: Entry) -> dict[str, bytes]:
        """The sample's other members by suffix."""
        ...


def open_source(source: str) -> Source:
    """The folder or manifest at a local path or `file://` URI, wholly listed.

    Raises `RefusedError` when it is neither, or not local; `DataError` on a malformed manifest line, on two
    files with one key, and when there is no audio.
    """
    if is_remote(source):
        raise RefusedError(
            f"{source!r} is not on a local disk; pack reads a local folder or manifest: copy or mount it first"
        )
    path = local_path(source)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower().removeprefix(".") in MANIFEST_SUFFIXES:
        return ManifestSource(path)
    found = "a file of another kind" if path.exists() else "nothing"
    raise RefusedError(
        f"{source!r}: found {found}; give a folder of audio files, or a manifest of JSON lines "
        f"that ends in {dotted(MANIFEST_SUFFIXES)}"
    )


class FolderSource:
    """Every audio file below a folder, with the `.txt` file of the same stem beside it as its text."""

    def __init__(self, folder: Path) -> None:
        self.num_skipped = 0
        entries = []
        for parent, names in _walk(folder):
            audio = [name for name in names if has_audio_suffix(name) and not name.startswith(".")]
            texts = {f"{PurePosixPath(name).stem}.txt" for name in audio}.intersection(names)
            self.num_skipped += len(names) - len(audio) - len(texts)
            entries += [Entry(webdataset_key(parent / name, folder), str(parent / name)) for name in audio]
        if not entries:
            raise DataError(
                f"{folder} has no audio files among {self.num_skipped} others; looked for {dotted(AUDIO_EXTENSIONS)}"
            )
        self.entries = _in_key_order(entries)

    def sidecars(self, entry: Entry) -> dict[str, bytes]:
        """`txt` as it stands in its file."""
        text = Path(entry.audio).with_suffix(".txt")
        return {"txt": text.read_bytes()} if text.is_file() else {}


class ManifestSource:
    """JSON lines with `audio_filepath` (absolute or from the manifest's folder), `text` and any other fields.

    Keys are relative to the manifest's folder when all audio is below it, else to the deepest folder that
    holds all audio.
    """

    num_skipped = 0

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        found: list[tuple[str, int]] = []
        for number, start, line in _lines(manifest):
            audio, _ = _parse(line, where=f"{manifest}, line {number}")
            found.append((os.path.normpath(manifest.parent / audio), start))
        if not found:
            raise DataError(f"{manifest} has no lines; give one JSON object a line with 'audio_filepath'")
        root = _root(manifest.parent, [audio for audio, _ in found])
        self.entries = _in_key_order(Entry(webdataset_key(Path(audio), root), audio, start) for audio, start in found)

    def sidecars(self, entry: Entry) -> dict[str, bytes]:
        """`txt` of the field `text` and `json` of the fields that are left, each only where there is one."""
        assert entry.line_start is not None
        with self._manifest.open("rb") as file:
            file.seek(entry.line_start)
            line = file.readline(LINE_BYTES_MAX)
        return _parse(line, where=f"{self._manifest}, byte {entry.line_start}")[1]


def has_audio_suffix(name: str) -> bool:
    """Whether the reader of shards takes a file for audio by its ending, in any case."""
    return PurePosixPath(name).suffix.lower().removeprefix(".") in AUDIO_EXTENSIONS


def dotted(suffixes: Iterable[str]) -> str:
    """Suffixes as messages name them."""
    return ", ".join(f".{suffix}" for suffix in sorted(suffixes))


def webdataset_key(audio: Path, root: Path) -> str:
    """The key of a file: its path below `root` without the ending, such that WebDataset reads it back whole.

    WebDataset ends a key at the first dot of the base name, finds no key across a line break, and skips
    members below a first folder named `__...__`. Dots in the base name and control characters become `_`,
    such a folder loses one `_`. Raises `DataError` when the name is not UTF-8.
    """
    path = audio.relative_to(root)
    key = (path.parent / path.stem.replace(".", "_")).as_posix()
    key = re.sub(r"^__(?=[^/]*__/)", "_", re.sub(r"[\x00-\x1f\x7f]", "_", key))
    try:
        key.encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(audio)!r}: the name is not UTF-8, as keys must be; rename the file") from None
    return key


def _in_key_order(entries: Iterable[Entry]) -> list[Entry]:
    ordered = sorted(entries, key=lambda entry: (entry.key, entry.audio))
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise DataError(f"{one.audio} and {other.audio} both have the key {one.key!r}; rename or drop one")
    return ordered


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with the names of its files and hidden folders, links followed; hidden folders are not entered."""
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} is a link to a folder that holds it; remove the link")
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        # os.walk and Path.rglob pass over such a folder without a word.
        raise DataError(f"{folder} cannot be listed: {error.strerror}; give this user the right to it") from error
    folders = {child for child in children if child.is_dir() and not child.name.startswith(".")}
    yield folder, [child.name for child in children if child not in folders]
    for child in sorted(folders):
        yield from _walk(child, (*above, real))


def _root(folder: Path, audio: list[str]) -> Path:
    if all(Path(path).is_relative_to(folder) for path in audio):
        return folder
    return Path(os.path.commonpath([str(Path(path).parent) for path in audio]))


def _lines(manifest: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte offset and content of every line that is not blank."""
    with manifest.open("rb") as file:
        start = 0
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), start=1):
            if len(line) == LINE_BYTES_MAX:
                raise DataError(f"{manifest}, line {number}: has {LINE_BYTES_MAX} bytes or more; split it")
            if line.strip():
                yield number, start, line
            start += len(line)


def _parse(line: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """The audio path and the sidecars of a manifest line."""
    try:
        fields = json.loads(line.decode(), parse_constant=_refuse_constant)
        rest = {name: value for name, value in _checked(fields).items() if name not in ("audio_filepath", "text")}
        sidecars = {}
        if fields.get("text") is not None:
            sidecars["txt"] = fields["text"].encode()
        if rest:
            sidecars["json"] = json.dumps(rest, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"{where}: {error}; each line is a JSON object with 'audio_filepath'") from None
    return fields["audio_filepath"], sidecars


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _checked(fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"found a {type(fields).__name__}")
    audio, text = fields.get("audio_filepath"), fields.get("text")
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise ValueError(f"'audio_filepath' is {audio!r}, not a path")
    if not isinstance(text, str | None):
        raise ValueError(f"'text' is {text!r}, not a string")
    if fields.get("offset") not in (None, 0):
        # NeMo's way to name a piece of a file. Packing the whole file under the piece's text would be wrong.
        raise ValueError(f"'offset' is {fields['offset']!r}, and pack copies whole files: cut the audio first")
    return fields
