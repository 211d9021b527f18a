"""Replicas that turn tokens back into audio: a decoder on a device, without the codec's encoder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from codec.base import DecoderInfo
from codec.registry import load_decoder
from jobs.replica import Work, checkpoint_options, environment
from pipeline.audio_config import DecodeConfig
from pipeline.audio_writer import AudioFormat
from pipeline.commit import Committed
from pipeline.config import Device
from pipeline.encoder import Progress
from pipeline.fingerprint import FORMAT_VERSION
from pipeline.layout import OutputPlace
from pipeline.storage import Stores
from pipeline.synthesis_worker import SynthesisBench, synthesize_shard
from pipeline.synthesizer import Synthesizer
from pipeline.token_reader import TokenReader
from pipeline.types import Task


@dataclass(frozen=True, slots=True)
class DecodeSetup:
    """The setup of replicas that decode; `config` has the codec that the source's tokens are of.

    `num_acoustic_codebooks` is the number that is decoded: 0 without the acoustic stream.
    """

    config: DecodeConfig
    fingerprint: str
    device: Device
    decoder: DecoderInfo
    source_rate_hz: int
    semantic: bool
    num_acoustic_codebooks: int

    @property
    def carry(self) -> tuple[str, ...]:
        """None by name: all that the tokens carry is carried on."""
        return ()

    @property
    def chosen_from(self) -> tuple[int, ...]:
        """Nothing: a row has the codebooks that it came with."""
        return ()

    @property
    def audio_format(self) -> AudioFormat:
        """What every audio shard of the job has in common."""
        return AudioFormat(
            audio=self.config.audio,
            files=self.config.format == "files",
            metadata={
                "semantic_codebooks": int(self.semantic),
                "voxmill.format_version": str(FORMAT_VERSION),
                "voxmill.fingerprint": self.fingerprint,
                "voxmill.decoder": self.decoder.name,
                "voxmill.decoder_hash": self.decoder.file_hash,
            },
        )

    def describe(self) -> str:
        """The decoder, and where."""
        return f"decoder {self.decoder.name} ({self.decoder.file_hash[:12]}) on {self.device}, float32"

    def load(self) -> Work:
        """Load the decoder."""
        return _Decoding(self)


class _Decoding:
    """The work of making audio."""

    def __init__(self, setup: DecodeSetup) -> None:
        config = setup.config
        stores = Stores(config.storage, config.retry)
        self._bench = SynthesisBench(
            config=config,
            fingerprint=setup.fingerprint,
            audio_format=setup.audio_format,
            place=OutputPlace(config.output),
            outputs=stores(config.output),
            source=TokenReader.open(config.tokens, store=stores(config.tokens)),
            synthesizer=load_synthesizer(setup),
            environment=environment(setup),
        )

    def process(self, task: Task, progress: Progress) -> Committed:
        return synthesize_shard(task, self._bench, progress)

    def stop(self) -> None:
        self._bench.synthesizer.cancelled.set()

    def close(self) -> None:
        pass  # nothing runs beside the attempts


def load_synthesizer(setup: DecodeSetup) -> Synthesizer:
    """The decoder loaded, ready for windows of rows. Raises as `codec.registry.load_decoder`."""
    config = setup.config
    return Synthesizer(
        decoder=load_decoder(
            config.codec, setup.decoder, device=setup.device, storage_options=checkpoint_options(config)
        ),
        source_rate_hz=setup.source_rate_hz,
        semantic=setup.semantic,
        num_acoustic_codebooks=setup.num_acoustic_codebooks,
        clock=time.monotonic,
    )
