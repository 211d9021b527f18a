"""`voxmill decode --keys`: a few rows as files, at once and without a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.decode_prepare import open_decoding
from jobs.decode_setup import load_synthesizer
from jobs.executor import InlineExecutor
from jobs.prepare import absolute
from pipeline.audio_config import DecodeConfig
from pipeline.audio_objects import check_file_name
from pipeline.audio_writer import encoded
from pipeline.encoder import Progress
from pipeline.errors import ConfigError
from pipeline.layout import output_place
from pipeline.records import CommitRecord
from pipeline.storage import Stores
from pipeline.token_batcher import token_windows
from pipeline.token_keys import find_keys
from pipeline.token_reader import TokenReader
from pipeline.types import TokenRow

LIST_BYTES_MAX = 64 << 20
"""Of an `@list` of keys; for more the whole job is the way."""


@dataclass(frozen=True)
class KeysReport:
    """The files written, by key in the order asked for; `several` are keys that stand in more than one shard."""

    output: str
    why: str
    files: Mapping[str, str]
    unknown: tuple[str, ...]
    several: Mapping[str, tuple[str, ...]]

    @property
    def exit_code(self) -> int:
        """0 when every key was written, else 1."""
        return int(bool(self.unknown or self.several))

    def lines(self) -> list[str]:
        """For people."""
        return [
            self.why,
            *self.files.values(),
            *(f"unknown: no committed shard holds the key {key!r}" for key in self.unknown),
            *(
                f"not written: the key {key!r} stands in {len(shards)} shards: {', '.join(shards)}"
                for key, shards in self.several.items()
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "output": self.output,
            "why": self.why,
            "files": dict(self.files),
            "unknown": list(self.unknown),
            "several": {key: list(shards) for key, shards in self.several.items()},
        }


def read_keys(text: str) -> list[str]:
    """The keys of `k1,k2,...` or of the lines of `@list.txt`, each once. Raises `ConfigError` when there is none."""
    if text.startswith("@"):
        path = Path(text[1:])
        try:
            with path.open("rb") as file:
                content = file.read(LIST_BYTES_MAX + 1)
            if len(content) > LIST_BYTES_MAX:
                raise ConfigError(f"{path} has more than {LIST_BYTES_MAX} bytes; decode the whole job instead")
            names = content.decode().splitlines()
        except OSError as error:
            raise ConfigError(f"--keys: {path} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--keys: {path} is no text in UTF-8") from None
    else:
        names = text.split(",")
    keys = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not keys:
        raise ConfigError("--keys names no key; give k1,k2,... or @list.txt with one a line")
    return keys


def decode_keys(config: DecodeConfig, keys: Sequence[str]) -> KeysReport:
    """Decode these rows into `<output>/<key>.<audio>`, over any older files.

    Raises what `open_decoding` raises, and `DataError` for a damaged shard or a key that is no name of a file; then
    what was written before stands.
    """
    output = output_place(config.output).base
    config = absolute(config.model_copy(update={"tokens": output_place(config.tokens).base}))
    stores = Stores(config.storage, config.retry)
    decoding = open_decoding(config, InlineExecutor().pick_device(config.device), stores=stores)
    source, audio = decoding.source, config.audio
    found = find_keys(source, keys)
    held = {key: found[key][0] for key in keys if len(found[key]) == 1}
    for key in held:
        check_file_name(f"{key}.{audio}")
    files: dict[str, str] = {}
    if held:
        synthesizer, progress = load_synthesizer(decoding.setup), Progress()
        rate_hz = source.rules.sample_rate_hz / source.rules.frame_size
        for window in token_windows(_rows(source, held), config.batching, frame_rate_hz=rate_hz):
            for row in synthesizer.synthesize(window, ticket=0, progress=progress):
                files[row.key] = f"{output}/{row.key}.{audio}"
                stores(output).put(files[row.key], encoded(row, audio))
    return KeysReport(
        output=output,
        why=decoding.why,
        files={key: files[key] for key in held},
        unknown=tuple(key for key in keys if not found[key]),
        several={key: tuple(record.shard_id for record in found[key]) for key in keys if len(found[key]) > 1},
    )


def _rows(source: TokenReader, held: Mapping[str, CommitRecord]) -> Iterator[TokenRow]:
    """The rows of these keys; each shard that holds one is read once, and held to its record."""
    by_shard: dict[str, set[str]] = {}
    for key, record in held.items():
        by_shard.setdefault(record.shard_id, set()).add(key)
    records = {record.shard_id: record for record in held.values()}
    for shard_id, wanted in by_shard.items():
        for row in source.read_commit(records[shard_id]):
            if row.key in wanted:
                yield row
                wanted.discard(row.key)
            if not wanted:
                break
