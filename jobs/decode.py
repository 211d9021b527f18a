"""`voxmill decode`: tokens back to audio, as a job like `voxmill run`, by the same driver and executors."""

from __future__ import annotations

from jobs.decode_prepare import open_decode_job, tokens_so_far
from jobs.display import Display
from jobs.finish import RunReport
from jobs.prepare import OpenJob, absolute
from jobs.run import run_opened
from pipeline.audio_config import DecodeConfig
from pipeline.config import Device
from pipeline.layout import output_place


def decode_job(config: DecodeConfig, *, plain: bool = False) -> RunReport:
    """Decode what is committed and not decoded yet. Raises what `open_decode_job` and `Driver.run` raise."""
    config = config.model_copy(update={"tokens": output_place(config.tokens).base})

    def open_it(device: Device, display: Display) -> OpenJob:
        job, decoding = open_decode_job(absolute(config), device)
        display.say(decoding.why)
        if note := tokens_so_far(decoding.source):
            display.say(note)
        return job

    return run_opened(config, open_it, plain=plain)
