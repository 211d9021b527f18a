"""A replica: one codec on one device, with all that a shard needs around it; the same under every executor.

What it does with a shard is a parameter: a `Setup` loads the `Work`. The one that makes tokens stands here, the one
that makes audio of them in `decode_setup.py`.
"""

from __future__ import annotations

import platform
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import pyarrow as pa
import torch

from codec.base import CheckpointError, Codec, CodecInfo
from codec.registry import load_codec
from jobs.heap import steady_heap
from pipeline.commit import Committed
from pipeline.config import CommonConfig, Device, JobConfig
from pipeline.decoder import DecoderPool
from pipeline.encoder import Encoder, Progress
from pipeline.errors import FailureKind, RefusedError, failure_kind
from pipeline.fingerprint import FORMAT_VERSION
from pipeline.layout import OutputPlace
from pipeline.media_walk import HAS_MEDIA
from pipeline.storage import Stores, store_options
from pipeline.types import Task
from pipeline.worker import Workbench, process_shard
from pipeline.writer import TokenFormat

WORDS_CHARS_MAX = 10_000
TRACEBACK_CHARS_MAX = 100_000
"""Of an error: a codec may put a tensor into its message, and a record must stay one that is read again."""


class Work(Protocol):
    """What a replica does with shards, with its codec loaded; `process` is called from several threads."""

    def process(self, task: Task, progress: Progress) -> Committed:
        """Do one shard. Raises whatever went wrong; then nothing of the attempt counts."""
        ...

    def stop(self) -> None:
        """Let the attempts under way end at their next batch, uncommitted."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class Setup(Protocol):
    """All that a replica must know; travels to it once."""

    @property
    def config(self) -> CommonConfig:
        """The job's."""
        ...

    @property
    def fingerprint(self) -> str:
        """The job's."""
        ...

    @property
    def device(self) -> Device:
        """Where the codec is loaded."""
        ...

    @property
    def carry(self) -> tuple[str, ...]:
        """Suffixes that the job carries over by name: one that no sample has is a slip, and is told."""
        ...

    @property
    def chosen_from(self) -> tuple[int, ...]:
        """Cardinalities of the acoustic codebooks that clips choose their number of; none where all have the same."""
        ...

    def describe(self) -> str:
        """What is on the device, for people."""
        ...

    def load(self) -> Work:
        """Load what the work needs, in a replica. Raises `CodecError`, and what else hinders a start."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaSetup:
    """The setup of replicas that make tokens."""

    config: JobConfig
    fingerprint: str
    device: Device
    info: CodecInfo
    has_media: bool = HAS_MEDIA
    """Whether PyAV is there where the setup was made: a host that differs would put other samples aside."""

    @property
    def num_acoustic_codebooks(self) -> int:
        """How many acoustic codebooks are computed, and stored unless fewer suffice."""
        return self.config.num_codebooks_max(len(self.info.acoustic_cardinalities))

    @property
    def token_format(self) -> TokenFormat:
        """What every token shard of the job has in common."""
        return TokenFormat(
            semantic="semantic" in self.config.streams,
            num_acoustic_codebooks=self.num_acoustic_codebooks,
            adaptive=self.config.auto_codebooks is not None,
            carry=self.config.carry,
            metadata={
                "voxmill.format_version": str(FORMAT_VERSION),
                "voxmill.fingerprint": self.fingerprint,
                "voxmill.codec": self.info.name,
                "voxmill.checkpoint_hash": self.info.checkpoint_hash,
            },
            writing=self.config.writing,
        )

    @property
    def carry(self) -> tuple[str, ...]:
        """As the config has it."""
        return self.config.carry

    @property
    def chosen_from(self) -> tuple[int, ...]:
        """The codec's codebooks, where clips choose."""
        return () if self.config.auto_codebooks is None else self.info.acoustic_cardinalities

    def describe(self) -> str:
        """The codec, where and how."""
        info = self.info
        return f"codec {info.name} ({info.checkpoint_hash[:12]}) on {self.device}, {self.config.precision}"

    def load(self) -> Work:
        """Load the codec, beside the start of the decoding processes."""
        return _Encoding(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt, or a replica's start, failed."""

    kind: FailureKind
    error: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Of an error caught at the replica's border; its words cut and made text, since they go into a record."""
        trace = "".join(_words(entry) for entry in traceback.format_exception(error, limit=-20))
        message = _words(str(error)) or type(error).__name__
        return cls(failure_kind(error), type(error).__name__, message, trace[-TRACEBACK_CHARS_MAX:])


def _words(text: str) -> str:
    r"""The text as a record can hold it; what is no Unicode (a file's name) as `\udcff`."""
    return text[:WORDS_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an attempt is: audio seconds encoded, and steps of any kind; one that changes is alive."""

    audio_s: float
    num_steps: int


class _Encoding:
    """The work of making tokens: a codec, and processes that decode audio for it."""

    def __init__(self, setup: ReplicaSetup) -> None:
        config = setup.config
        _check_media(setup)
        self.decoder = DecoderPool(config.decoding, setup.info.sample_rate_hz)
        self.decoder.start()  # its processes import their libraries while the codec is loaded
        try:
            encoder = Encoder(
                codec=_load_codec(setup),
                semantic="semantic" in config.streams,
                num_acoustic_codebooks=setup.num_acoustic_codebooks,
                auto_codebooks=config.auto_codebooks,
                clock=time.monotonic,
            )
            self.decoder.wait_ready()
        except BaseException:
            self.decoder.close()
            raise
        stores = Stores(config.storage, config.retry)
        self._bench = Workbench(
            config=config,
            fingerprint=setup.fingerprint,
            token_format=setup.token_format,
            place=OutputPlace(config.output),
            stores=stores,
            outputs=stores(config.output),
            decoder=self.decoder,
            encoder=encoder,
            environment=environment(setup) | {"precision": config.precision},
        )

    def process(self, task: Task, progress: Progress) -> Committed:
        return process_shard(task, self._bench, progress)

    def stop(self) -> None:
        self._bench.encoder.cancelled.set()

    def close(self) -> None:
        self.decoder.close()


class Replica:
    """Loads the codec at once; then does shards, several at a time, from several threads."""

    def __init__(self, setup: Setup) -> None:
        steady_heap()
        torch.set_num_threads(setup.config.cpu_threads)
        # Arrow's own pools keep what they once had: a peak with each row group that comes at a full moment.
        pa.set_memory_pool(pa.system_memory_pool())
        pa.array([0])  # pyarrow looks for pandas now, and takes 50 MB if it is there: at the start, not amid a shard
        self._cpu_threads = setup.config.cpu_threads
        self._lock = threading.Lock()
        self._progress: dict[str, Progress] = {}
        self._work = setup.load()

    def process(self, task: Task) -> Committed | Failure:
        """Do one shard. Never raises: what went wrong is returned, typed, for the ledger."""
        # Binds this thread alone: every new one would go by OMP_NUM_THREADS instead.
        torch.set_num_threads(self._cpu_threads)
        progress = Progress()
        with self._lock:
            self._progress[task.attempt] = progress
        try:
            return self._work.process(task, progress)
        except Exception as error:  # the border of the attempt: whatever it is costs this attempt, not the replica
            return Failure.of(error)
        finally:
            with self._lock:
                del self._progress[task.attempt]

    def progress(self) -> Mapping[str, Mark]:
        """How far each attempt under way is."""
        with self._lock:
            return {
                attempt: Mark(now.audio_s, now.num_clips + now.num_batches + now.num_objects)
                for attempt, now in self._progress.items()
            }

    def stop(self) -> None:
        """Let the attempts under way end at their next batch, uncommitted."""
        self._work.stop()

    def close(self) -> None:
        """End what belongs to the work."""
        self._work.close()


def _load_codec(setup: ReplicaSetup) -> Codec:
    """The job's codec. Raises `CodecError`, of which `CheckpointError` where it is another than the run began with."""
    config = setup.config
    codec = load_codec(
        config.codec,
        device=setup.device,
        precision=config.precision,
        storage_options=checkpoint_options(config),
    )
    if codec.info.checkpoint_hash != setup.info.checkpoint_hash:
        raise CheckpointError(
            f"codec {config.codec} has checkpoint hash {codec.info.checkpoint_hash[:12]} here, but "
            f"{setup.info.checkpoint_hash[:12]} where the run was started; give all hosts the same files"
        )
    return codec


def _check_media(setup: ReplicaSetup) -> None:
    """Raises `RefusedError` where this host has the extra and the run's beginning had not, or the other way."""
    if setup.has_media != HAS_MEDIA:
        here, there = ("PyAV is", "was not") if HAS_MEDIA else ("PyAV is not", "was")
        raise RefusedError(
            f"{here} installed on {platform.node()}, and {there} where the run was started, so they would put other "
            "samples aside; install voxmill[media] on all hosts or on none"
        )


def checkpoint_options(config: CommonConfig) -> dict[str, Any]:
    """fsspec options for a checkpoint in object storage; none for other places."""
    return store_options(config.codec, config.storage) if config.codec.startswith("s3://") else {}


def environment(setup: Setup) -> dict[str, str | int]:
    """What the last bits of tokens and audio may depend on."""
    packages = ["voxmill", "torch", "numpy", "soundfile", "pyarrow"]
    media: dict[str, str | int] = {}
    if HAS_MEDIA:
        import av

        media = {"av": version("av"), "ffmpeg": av.ffmpeg_version_info}
    packages += ["transformers"] if "transformers" in sys.modules else []  # only a codec of its imports it
    device = torch.cuda.get_device_name() if setup.device == "cuda" else platform.machine()
    return {
        "device": setup.device,
        "device_name": device,
        "cpu_threads": setup.config.cpu_threads,
        "host": platform.node(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **media,
    }
