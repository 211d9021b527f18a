"""The exception tree. Every message says what was found, what is allowed and what to do.

VoxmillError
├── RefusedError              wrong usage, or a guarantee that cannot be given        (exit code 2)
│   ├── ConfigError              a setting that is unknown or out of range
│   ├── StoreDeniedError         credentials missing, wrong or without the right
│   ├── UnsafeStoreError         a store that cannot put an object only if it is absent
│   └── OtherJobError            the output place belongs to another job
├── DataError                 the shard itself is at fault: few retries, then it is failed
│   ├── ObjectMissingError       the object is not there
│   ├── ObjectChangedError       the object is no longer the one that was listed
│   ├── TarError                 the archive is damaged
│   └── TooManyRejectsError      more samples rejected than the config allows
├── InfraError                the surroundings are at fault: retried with backoff under a wide bound
│   ├── StoreUnavailableError    a store or network that does not answer as it should
│   ├── SpoolFullError           the temporary disk has no room for a token shard
│   ├── DecoderUnavailableError  decoding processes that cannot be kept alive
│   ├── ReplicaLostError         a replica died, stalled, or its node went away
│   ├── AttemptFencedError       the attempt was ended by a fence; another one may commit
│   └── ShardCancelledError      the run is stopping
└── CodecContractError        a codec returned what it must not: of unknown fault
"""

from __future__ import annotations

from enum import StrEnum

from codec.base import CodecUnavailableError


class VoxmillError(Exception):
    """Root of all errors that voxmill raises on purpose."""


class RefusedError(VoxmillError):
    """Wrong usage, or a weaker guarantee than promised; never retried."""


class ConfigError(RefusedError):
    """A setting is unknown, of the wrong type or out of range."""


class StoreDeniedError(RefusedError):
    """The store knows us not, or forbids what is needed."""


class UnsafeStoreError(RefusedError):
    """The store lets a second put-if-absent of one key through."""


class OtherJobError(RefusedError):
    """The output place holds a job with another fingerprint."""


class DataError(VoxmillError):
    """The input itself is at fault."""


class ObjectMissingError(DataError):
    """An object that was asked for is not there."""


class ObjectChangedError(DataError):
    """An object is no longer the one that was listed (its ETag differs)."""


class TarError(DataError):
    """An archive is damaged; the message has the byte offset."""


class TooManyRejectsError(DataError):
    """More samples of a shard were rejected than the config allows."""


class InfraError(VoxmillError):
    """The surroundings are at fault; the same work may succeed later or elsewhere."""


class StoreUnavailableError(InfraError):
    """A store did not answer, answered with a server's error, or broke off."""


class SpoolFullError(InfraError):
    """The temporary disk, where token shards are gathered, is full."""


class DecoderUnavailableError(InfraError):
    """Decoding processes cannot be started or kept alive."""


class ReplicaLostError(InfraError):
    """A replica died, stalled past its lease, or its node went away."""


class AttemptFencedError(InfraError):
    """A fence stands where the attempt would have committed: it was taken for dead, or its input was redone."""


class ShardCancelledError(InfraError):
    """The run is stopping; the shard is left for the next run."""


class CodecContractError(VoxmillError):
    """A codec returned the wrong number of frames, a wrong shape or an id out of range."""


class FailureKind(StrEnum):
    """Whose fault a failed attempt is; decides how often it is tried again."""

    INFRA = "infra"
    DATA = "data"
    UNKNOWN = "unknown"


def failure_kind(error: BaseException) -> FailureKind:
    """The kind of an error by its class alone, never by its text."""
    if isinstance(error, DataError):
        return FailureKind.DATA
    if isinstance(error, (InfraError, StoreDeniedError, CodecUnavailableError, OSError)):
        return FailureKind.INFRA
    return FailureKind.UNKNOWN
