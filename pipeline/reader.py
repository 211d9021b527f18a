"""Members of a shard -> samples, grouped and keyed exactly as the `webdataset` package does it.

Where that package drops something in silence, a reject says so. A reject for a stray member (a link, a name
without a key) bears the member's name as its key; all other rejects stand for one group of members.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import DataError, TarError
from pipeline.seen_keys import SeenKeys
from pipeline.settings import ReadingConfig
from pipeline.tar import ByteStream, Member, MemberKind, printable, read_members
from pipeline.types import Content, Reject, RejectReason, Sample

AUDIO_EXTENSIONS: Final = frozenset(
    {
        *(
            "aif",
            "aifc",
            "aiff",
            "au",
            "flac",
            "mp3",
            "nist",
            "oga",
            "ogg",
            "opus",
            "rf64",
            "snd",
            "sph",
            "wav",
            "wave",
        ),
        *("aac", "m4a", "m4b", "mka", "weba", "webm"),
    }
)
"""The last dotted part of a suffix that makes a member audio.

Not so `mp4`, `mov` and `mkv`: beside the audio of many a sample stands its video. `reading.audio_suffix` names them.
"""

SIDECAR_BYTES_MAX: Final = 16 << 20
"""Of a sidecar that is carried over: it becomes one cell of a token shard."""

SAMPLE_MEMBERS_MAX: Final = 10_000
"""Of one key: their names are held until the key ends."""

NAME_CHARS_MAX: Final = 4096
"""Of a member's name, as of a path on Linux: the names of tens of thousands are held at once."""

DETAIL_CHARS_MAX: Final = 1000

_KEY_AND_SUFFIX: Final = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META_FOLDER_OR_FILE: Final = re.compile(r"__[^/]*__($|/)")


@dataclass(slots=True)
class _Group:
    """The members of one key that stand together, as far as they were read."""

    key: str
    first_member: str
    is_repeated: bool
    num_bytes: int = 0
    members: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Content] = field(default_factory=dict)
    num_kept_bytes: int = 0
    fault: Reject | None = None


def read_samples(
    stream: ByteStream, shard_size_bytes: int, config: ReadingConfig, carry: Collection[str]
) -> Iterator[Sample | Reject]:
    """The samples of a shard in its order, and a reject for whatever is none.

    `carry` are the lower-cased suffixes of the sidecars to keep. Only audio and these are ever held in memory,
    at most `config.sample_bytes_max` of one sample. Raises `TarError` at the first damage (samples before it have
    been yielded) or, when `config.duplicate_keys` is `fail`, at a repeated key; `DataError` above
    `config.samples_max` samples and rejects or `SAMPLE_MEMBERS_MAX` members of one key.
    """
    found = _Grouping(config, frozenset(carry)).samples(read_members(stream, shard_size_bytes))
    for num_before, item in enumerate(found):
        if num_before == config.samples_max:
            raise DataError(
                f"the shard has more than {config.samples_max} samples; split it, or raise reading.samples_max"
            )
        yield item


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-cased suffix of a member's name, None where WebDataset has none.

    The key is the path up to the first dot of its last part (`base_plus_ext` in `webdataset/tariterators.py`).
    """
    match = _KEY_AND_SUFFIX.match(name)
    return (match[1], match[2].lower()) if match else None


def is_meta(name: str) -> bool:
    """Whether WebDataset passes over a file as its own business (`tar_file_iterator` there)."""
    if "/" not in name and name.startswith("__") and name.endswith("__"):
        return True
    return _META_FOLDER_OR_FILE.match(name) is not None


class _Grouping:
    def __init__(self, config: ReadingConfig, carry: frozenset[str]) -> None:
        self._config = config
        self._carry = carry
        self._audio_suffix = config.audio_suffix.lower() if config.audio_suffix else None
        self._seen = SeenKeys()

    def samples(self, members: Iterator[Member]) -> Iterator[Sample | Reject]:
        group: _Group | None = None
        for member in members:
            if member.kind is MemberKind.DIRECTORY:
                continue
            if (stray := _stray(member)) is not None:
                yield stray
                continue
            if is_meta(member.name):
                continue
            named = split_name(member.name)
            assert named is not None
            key, suffix = named
            if group is None or key != group.key or suffix in group.members:
                if group is not None:
                    yield self._close(group)
                group = self._open(key, member)
            self._add(group, suffix, member)
        if group is not None:
            yield self._close(group)

    def _open(self, key: str, member: Member) -> _Group:
        is_repeated = not self._seen.add(key)
        if is_repeated and self._config.duplicate_keys == "fail":
            raise TarError(
                f"offset {member.offset}: key {key!r} comes again with member {member.name!r}; the members of a "
                "key must stand together and once. Pack the shard again, or set reading.duplicate_keys to reject"
            )
        return _Group(key, member.name, is_repeated)

    def _add(self, group: _Group, suffix: str, member: Member) -> None:
        if len(group.members) == SAMPLE_MEMBERS_MAX:
            raise DataError(
                f"offset {member.offset}: key {group.key!r} has more than {SAMPLE_MEMBERS_MAX} members; a sample is "
                "the files of one name up to its first dot: pack the shard again with other names"
            )
        group.members[suffix] = member.name
        group.num_bytes += member.size_bytes
        is_audio = self._is_audio(suffix)
        if group.is_repeated or group.fault or not (is_audio or suffix in self._carry):
            return
        if not is_audio and member.size_bytes > SIDECAR_BYTES_MAX:
            detail = f"a carried sidecar has {member.size_bytes} bytes; allowed are {SIDECAR_BYTES_MAX}"
            group.fault = Reject(group.key, member.name, RejectReason.BAD_SIDECAR, detail, member.size_bytes)
        elif group.num_kept_bytes + member.size_bytes > self._config.sample_bytes_max:
            detail = (
                f"audio and carried sidecars have {group.num_kept_bytes + member.size_bytes} bytes or more; "
                f"reading.sample_bytes_max allows {self._config.sample_bytes_max}"
            )
            group.fault = Reject(group.key, member.name, RejectReason.TOO_LARGE, detail, member.size_bytes)
        else:
            group.kept[suffix] = member.read()
            group.num_kept_bytes += member.size_bytes
        if group.fault:
            group.kept.clear()

    def _is_audio(self, suffix: str) -> bool:
        return suffix == self._audio_suffix or suffix.rpartition(".")[2] in AUDIO_EXTENSIONS

    def _close(self, group: _Group) -> Sample | Reject:
        if group.is_repeated:
            detail = f"the key stood earlier in the shard; here again with {_suffixes(group)}"
            return _reject(group, RejectReason.DUPLICATE_KEY, detail)
        audio = [suffix for suffix in group.members if self._is_audio(suffix)]
        if not audio:
            return _reject(group, RejectReason.NO_AUDIO, f"no member is audio: {_suffixes(group)}")
        if len(audio) > 1 and self._audio_suffix not in audio:
            detail = f"several members are audio: {_suffixes(group)}; name one in reading.audio_suffix"
            return _reject(group, RejectReason.AMBIGUOUS_AUDIO, detail)
        if group.fault:
            return group.fault
        suffix = self._audio_suffix if len(audio) > 1 and self._audio_suffix else audio[0]
        return Sample(
            key=group.key,
            audio_member=group.members[suffix],
            audio_suffix=suffix,
            audio=group.kept[suffix],
            sidecars={
                other: bytes(data) for other, data in group.kept.items() if other in self._carry and other != suffix
            },
        )


def _stray(member: Member) -> Reject | None:
    """The reject of a member that can belong to no sample; None for all others."""
    name = printable(member.name)
    shown = name[:NAME_CHARS_MAX]
    if member.kind is not MemberKind.FILE:
        detail = f"a {member.kind}; only regular files are read"
        return Reject(shown, shown, RejectReason.NOT_A_FILE, detail, member.size_bytes)
    if len(name) > NAME_CHARS_MAX:
        detail = f"the name has {len(name)} characters; allowed are {NAME_CHARS_MAX}"
    elif name != member.name:
        detail = "the name is not UTF-8 or has control characters"
    elif is_meta(name):
        if name.rsplit(".", 1)[-1].lower() not in AUDIO_EXTENSIONS:
            return None
        detail = "audio below a folder __like_this__, or named so, is passed over by WebDataset; rename it"
    elif split_name(name) is None:
        detail = "the name has no key and suffix as in <key>.<suffix>: it has no extension, or is a hidden file"
    else:
        return None
    return Reject(shown, shown, RejectReason.BAD_NAME, detail, member.size_bytes)


def _reject(group: _Group, reason: RejectReason, detail: str) -> Reject:
    return Reject(group.key, group.first_member, reason, detail, group.num_bytes)


def _suffixes(group: _Group) -> str:
    listed = ", ".join(repr(suffix) for suffix in group.members)
    return listed if len(listed) <= DETAIL_CHARS_MAX else listed[:DETAIL_CHARS_MAX] + " ..."
