"""From a YAML file and flags to one validated config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import JobConfig, RetryConfig, StorageConfig, load_config
from pipeline.errors import ConfigError

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


def config_of(arguments: argparse.Namespace) -> JobConfig:
    """The YAML file's settings, `--set` over them, the flags over all. Raises `ConfigError`."""
    values = read_yaml(Path(arguments.job)) if arguments.job else {}
    for assignment in arguments.set:
        _assign(values, *_parse(assignment))
    for flag in _FLAGS:
        value = getattr(arguments, flag, None)
        if value is not None:
            values[flag] = value
    if arguments.ray_address:
        _assign(values, "ray.address", arguments.ray_address)
    for needed in ("input", "output"):
        if needed not in values:
            raise ConfigError(f"no {needed} is given; name it with --{needed} or in a job.yaml")
    return load_config(values)


def storage_settings() -> tuple[StorageConfig, RetryConfig]:
    """For commands that take a place and no config: all from the environment."""
    return StorageConfig(), RetryConfig()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises `ConfigError` with the line where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a job.yaml, or flags alone") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; it must be a mapping of settings")
    return values


def _parse(assignment: str) -> tuple[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {assignment!r}: write NAME=VALUE, e.g. --set batching.batch_s=120")
    try:
        return name, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment!r}: the value is no YAML scalar or list") from None


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {group!r} is a setting, not a group of settings")
        values = inner
    values[last] = value
