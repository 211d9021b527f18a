"""From a YAML file and flags to one validated config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.audio_config import DecodeConfig, load_decode_config
from pipeline.config import JobConfig, load_config
from pipeline.errors import ConfigError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.uris import without_credentials

JOB_FILE_BYTES_MAX = 8 << 20
"""Of a job.yaml: a larger file is something else, and PyYAML takes a second for each megabyte."""

DEPTH_MAX = 16
"""Of lists and mappings in one another, as deep as a config may go and further; PyYAML's time grows with its square."""

_FLAGS = (
    "input",
    "output",
    "codec",
    "streams",
    "num_acoustic_codebooks",
    "format",
    "executor",
    "replicas",
    "device",
    "precision",
    "carry",
    "redo_changed",
    "retry_failed",
    "allow_unsafe_store",
)

_DECODE_FLAGS = (
    "tokens",
    "output",
    "sample_rate_hz",
    "codec",
    "streams",
    "num_acoustic_codebooks",
    "format",
    "audio",
    "executor",
    "replicas",
    "device",
    "redo_changed",
    "retry_failed",
    "allow_unsafe_store",
)


def config_of(arguments: argparse.Namespace) -> JobConfig:
    """The YAML file's settings, `--set` over them, the flags over all. Raises `ConfigError`."""
    values = read_yaml(Path(arguments.job)) if arguments.job else {}
    _take_flags(values, arguments, _FLAGS)
    for needed in ("input", "output"):
        if needed not in values:
            raise ConfigError(f"no {needed} is given; name it with --{needed} or in a job.yaml")
    return load_config(values)


def decode_config_of(arguments: argparse.Namespace) -> DecodeConfig:
    """The `--set` settings, the flags over them. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    _take_flags(values, arguments, _DECODE_FLAGS)
    return load_decode_config(values)


def _take_flags(values: dict[str, Any], arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    for assignment in arguments.set:
        _assign(values, *_parse(assignment))
    for flag in flags:
        value = getattr(arguments, flag, None)
        if value is not None:
            values[flag] = value
    if arguments.ray_address:
        _assign(values, "ray.address", arguments.ray_address)


def storage_settings() -> tuple[StorageConfig, RetryConfig]:
    """For commands that take a place and no config: all from the environment."""
    return StorageConfig(), RetryConfig()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises `ConfigError` with the line where it is none."""
    try:
        with path.open("rb") as file:
            content = file.read(JOB_FILE_BYTES_MAX + 1)
        if len(content) > JOB_FILE_BYTES_MAX:
            raise ConfigError(
                f"{path} has more than {JOB_FILE_BYTES_MAX} bytes; many inputs go into a file of their own: @list.txt"
            )
        values = _plain_values(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a job.yaml, or flags alone") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no YAML of plain values: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; it must be a mapping of settings")
    return values


def _plain_values(text: str) -> Any:
    """What YAML text says. Raises `ValueError`, whose words hold nothing of the text, which may hold a secret.

    Tags and aliases are refused: a config needs none, PyYAML stumbles over many (`!!bool maybe`), and a few
    aliases of aliases make a kilobyte stand for gigabytes.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_MAX:
                raise ValueError(f"{_place(event.start_mark)}lists and mappings stand more than {DEPTH_MAX} deep")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                raise ValueError(f"{_place(event.start_mark)}a tag or alias stands here; write the value itself")
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(error.problem_mark)}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _place(mark: Any) -> str:  # of PyYAML's two parsers, each with its own type
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _parse(assignment: str) -> tuple[str, Any]:
    name, equals, text = assignment.partition("=")
    shown = without_credentials(assignment)
    if not equals or not name:
        raise ConfigError(f"--set {shown!r}: write NAME=VALUE, e.g. --set batching.batch_s=120")
    try:
        return name, _plain_values(text)
    except ValueError as error:
        raise ConfigError(f"--set {shown!r}: the value is no YAML scalar or list ({error})") from None


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {group!r} is a setting, not a group of settings")
        values = inner
    values[last] = value
