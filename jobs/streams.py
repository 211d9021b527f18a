"""Whether a codec has the streams that a job asks for."""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.errors import ConfigError


def check_streams(config: JobConfig, *, codec: str, has_semantic: bool, num_acoustic: int) -> None:
    """Raises `ConfigError` on a stream that the codec has not; `num_acoustic` is how many acoustic codebooks it has."""
    offered = [name for name, found in (("semantic", has_semantic), ("acoustic", num_acoustic)) if found]
    missing = [stream for stream in config.streams if stream not in offered]
    if missing:
        raise ConfigError(
            f"streams is {','.join(config.streams)}, codec {codec} has no {' and no '.join(missing)} tokens; "
            f"use --streams {','.join(offered)}"
        )
