"""The output place: which object stands where. The one file that knows the names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.storage import join, normal_uri

TOKEN_FOLDERS = ("tokens", "semantic", "acoustic", "audio", "rejects")
"""Folders of objects that a commit names; all else below the output is a record or derived."""

_TOKEN_NAME = re.compile(
    r"(?P<folder>tokens|rejects|semantic|acoustic|audio)/(?P<shard_id>.*-[0-9a-f]{8})"
    r"\.(?P<attempt>[0-9a-f]{32})\.(?P<ending>parquet|tar)",
    re.DOTALL,
)
_FILE_NAME = re.compile(r"audio/(?P<shard_id>[^/]*-[0-9a-f]{8})\.(?P<attempt>[0-9a-f]{32})/.+", re.DOTALL)
_COMMIT_NAME = re.compile(r"commits/(?P<shard_id>.*-[0-9a-f]{8})(\.(?P<term>[1-9][0-9]{0,8}))?\.json", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """URIs below the output; paths in records are relative to `base`, so a moved output stays whole."""

    base: str

    def uri(self, path: str) -> str:
        """The URI of a relative path."""
        return join(self.base, path)

    def path(self, uri: str) -> str:
        """The relative path of a URI below the output."""
        return uri.removeprefix(self.base.rstrip("/") + "/")

    @property
    def job(self) -> str:
        """The job record."""
        return self.uri("job.json")

    @property
    def commits(self) -> str:
        """The folder of commit records."""
        return self.uri("commits")

    @property
    def failures(self) -> str:
        """The folder of failure records."""
        return self.uri("failures")

    @property
    def manifest(self) -> str:
        """The manifest, folded from the commits."""
        return self.uri("manifest.parquet")

    @property
    def status(self) -> str:
        """The last status that a driver wrote."""
        return self.uri("status.json")

    def commit(self, shard_id: str, term: int = 0) -> str:
        """The one record of a shard's term: its commit, or a fence."""
        return self.uri(f"commits/{shard_id}.{term}.json" if term else f"commits/{shard_id}.json")

    def failure(self, shard_id: str, attempt: str) -> str:
        """The failure record of an attempt."""
        return self.uri(f"failures/{shard_id}/{attempt}.json")


def output_place(uri: str) -> OutputPlace:
    """The place of an output as a person names it. Raises `ConfigError` when it is no folder of a known store."""
    base = normal_uri(uri).rstrip("/")
    if not base:
        raise ConfigError(f"{uri!r} is no place for an output; give a folder below the root, or an s3:// URI")
    return OutputPlace(base)


def token_path(folder: str, shard_id: str, attempt: str) -> str:
    """Relative path of a token object or reject list: unique to the attempt, so no two attempts meet."""
    return f"{folder}/{shard_id}.{attempt}.{_ending(folder)}"


def file_path(shard_id: str, attempt: str, name: str) -> str:
    """Relative path of one of the files of a shard that is written as files: below a folder of the attempt's own."""
    return f"audio/{shard_id}.{attempt}/{name}"


def parse_token_path(path: str) -> tuple[str, str] | None:
    """(shard id, attempt) of a relative path written by an attempt; None for anything else."""
    # First, since the name of a file is anything: it may look like that of a tar.
    if match := _FILE_NAME.fullmatch(path):
        return match["shard_id"], match["attempt"]
    match = _TOKEN_NAME.fullmatch(path)
    if not match or match["ending"] != _ending(match["folder"]):
        return None
    return match["shard_id"], match["attempt"]


def _ending(folder: str) -> str:
    return "tar" if folder in ("semantic", "acoustic", "audio") else "parquet"


def parse_commit_path(path: str) -> tuple[str, int] | None:
    """(shard id, term) of a commit record's or fence's relative path; None for anything else."""
    match = _COMMIT_NAME.fullmatch(path)
    return (match["shard_id"], int(match["term"] or 0)) if match else None
