"""Checkpoints on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from codec.base import CodecError, CodecUnavailableError
from codec.sources import CHECKPOINT_SUBFOLDER, folder_of

_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class HubRepository:
    """A model repository, `owner/name`; the hub client's cache, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count.

    Only the files asked for are fetched, all from the commit that the first fetch found.
    """

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._commit: str | None = None

    @property
    def uri(self) -> str:
        """The repository as `hf://owner/name`."""
        return f"hf://{self._repository}"

    def fetch(self, names: Sequence[str]) -> Path:
        """The cached snapshot's folder. Raises as `Source.fetch` says."""
        patterns = [pattern for name in names for pattern in (name, f"{CHECKPOINT_SUBFOLDER}/{name}")]
        try:
            snapshot = Path(snapshot_download(self._repository, revision=self._commit, allow_patterns=patterns))
        except Exception as error:
            # The client lets its HTTP library's transport errors through, and that library differs by version.
            raise self._explained(error) from error
        self._commit = snapshot.name
        return folder_of(snapshot, names)

    def _explained(self, error: Exception) -> CodecError:
        """The error to raise, by the client's error class; its text may hold addresses and stays in the chain."""
        if isinstance(error, GatedRepoError):
            return CodecError(
                f"{self.uri} is gated: accept its terms on the hub and set HF_TOKEN to a token of that account"
            )
        if isinstance(error, RepositoryNotFoundError):
            return CodecError(
                f"{self.uri} was not found, or is private: check the name, and set HF_TOKEN if it needs one"
            )
        # A snapshot that is neither reachable nor whole in the cache: the cause says why it is not reachable.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, OfflineModeIsEnabled):
            return CodecError(
                f"{self.uri} is not whole in the local hub cache and HF_HUB_OFFLINE is set: "
                "unset it once to fetch the checkpoint, or give a folder that holds it"
            )
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in _DENIED:
            return CodecError(
                f"{self.uri}: the hub refused with status {cause.response.status_code}: check HF_TOKEN and its rights"
            )
        return CodecUnavailableError(
            f"{self.uri} cannot be fetched now ({type(cause).__name__}): check the network and HF_ENDPOINT and run "
            "again, or give a folder that holds the checkpoint"
        )
