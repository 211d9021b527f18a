"""Tokenize shards with Ray Data: `read_webdataset`, `map_batches` on actors that hold the codec, `write_parquet`.

    python -m infra.bench.rival_ray_data SHARDS OUTPUT CODEC

As many actors as cores, each on one thread of torch; they ask for half a core, so that tasks which read and write find
room too. Prints the seconds from the first actor that has its codec to the end of the writing.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray listens on all interfaces of the host

import pyarrow as pa
import ray
import ray.data
import torch

from codec.registry import load_codec
from infra.bench.rival_work import BATCH_CLIPS, decode, encode


class Tokenizer:
    """One actor's codec; decodes and encodes a batch of samples."""

    def __init__(self, codec: str, ready: str) -> None:
        torch.set_num_threads(1)
        self._codec = load_codec(codec, device="cpu", precision="float32")
        Path(ready, f"{os.getpid()}").write_text(str(time.time()), encoding="ascii")

    def __call__(self, samples: pa.Table) -> pa.Table:
        (audio,) = [name for name in samples.column_names if not name.startswith("__")]
        rate_hz = self._codec.info.sample_rate_hz
        waveforms = [decode(content.as_py(), rate_hz) for content in samples[audio]]
        return encode(self._codec, samples["__key__"].to_pylist(), waveforms)


def main() -> None:
    shards, output, codec = sys.argv[1:]
    ready = Path(output, "ready")
    ready.mkdir(parents=True)
    num_cores = len(os.sched_getaffinity(0))
    ray.init(
        address="local", num_cpus=num_cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    samples = ray.data.read_webdataset(sorted(map(str, Path(shards).glob("*.tar"))), decoder=None)
    tokens = samples.map_batches(
        Tokenizer,
        fn_constructor_args=(codec, str(ready)),
        batch_size=BATCH_CLIPS,
        batch_format="pyarrow",
        concurrency=num_cores,
        num_cpus=0.5,
    )
    tokens.write_parquet(str(Path(output, "tokens")))
    ended_s = time.time()
    work_s = ended_s - min(float(path.read_text(encoding="ascii")) for path in ready.iterdir())
    print(json.dumps({"work_s": work_s, "num_rows": ray.data.read_parquet(str(Path(output, "tokens"))).count()}))


if __name__ == "__main__":
    main()
