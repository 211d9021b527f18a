"""Tokenize shards with `webdataset` and a torch DataLoader, as a plain script on one host does it.

    python -m infra.bench.rival_dataloader SHARDS OUTPUT CODEC

Workers of the loader read and decode, the main process encodes with all cores and writes one parquet file. Prints the
seconds from the first clip that is asked for to the end of the file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from codec.registry import load_codec
from infra.bench.rival_work import BATCH_CLIPS, decode, encode

ROW_GROUP_ROWS = 1024


def main() -> None:
    shards, output, codec_name = sys.argv[1:]
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_cores)
    codec = load_codec(codec_name, device="cpu", precision="float32")
    dataset = (
        wds.WebDataset(sorted(map(str, Path(shards).glob("*.tar"))), shardshuffle=False, empty_check=False)
        .map(partial(decoded, sample_rate_hz=codec.info.sample_rate_hz))
        .batched(BATCH_CLIPS, collation_fn=list, partial=True)
    )
    # As tensors, the clips come from the workers through shared memory.
    loader: Iterable[list[tuple[str, torch.Tensor]]] = DataLoader(dataset, batch_size=None, num_workers=num_cores)
    started_s = time.perf_counter()
    num_rows = write(
        (encode(codec, [key for key, _ in batch], [clip.numpy() for _, clip in batch]) for batch in loader),
        Path(output, "tokens.parquet"),
    )
    print(json.dumps({"work_s": time.perf_counter() - started_s, "num_rows": num_rows}))


def decoded(sample: dict[str, Any], sample_rate_hz: int) -> tuple[str, torch.Tensor]:
    """Key and waveform of a sample, whose one member beside WebDataset's own is audio."""
    (audio,) = [content for name, content in sample.items() if not name.startswith("__")]
    return sample["__key__"], torch.from_numpy(decode(audio, sample_rate_hz))


def write(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables in row groups of like size; returns the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting: list[pa.Table] = []
    num_rows = num_waiting = 0
    writer: pq.ParquetWriter | None = None
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        waiting.append(table)
        num_rows, num_waiting = num_rows + table.num_rows, num_waiting + table.num_rows
        if num_waiting >= ROW_GROUP_ROWS:
            writer.write_table(pa.concat_tables(waiting))
            waiting, num_waiting = [], 0
    if writer is not None:
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.close()
    return num_rows


if __name__ == "__main__":
    main()
