"""`voxmill demo`: ten clips of human speech, packed, tokenized on a local Ray, verified; and how to read the tokens."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from jobs.options import storage_settings
from jobs.pack import pack
from jobs.run import run_job
from jobs.verify import verify
from pipeline.config import load_config
from pipeline.errors import RefusedError
from pipeline.storage import Stores

DATA = Path(__file__).parent.parent / "tests" / "data"
MARK = ".voxmill-demo"
"""Stands in a folder that a demo made: only such a folder is ever replaced."""

READ = """
Read them:
  pyarrow     import pyarrow.parquet as pq; pq.read_table("{tokens}/tokens", columns=["key", "semantic"])
  datasets    from datasets import load_dataset; load_dataset("parquet", data_files="{tokens}/tokens/*.parquet")
  webdataset  import webdataset as wds; shard = "{first_tar}"
              next(iter(wds.WebDataset(shard, shardshuffle=False).decode()))["semantic.npy"]

These small weights are untrained: the tokens are real arithmetic without meaning. The published ones: --codec longcat
"""


def demo(output: str, *, force: bool) -> int:
    """Run the demo into a new folder; returns the exit code of its worst step.

    Raises `RefusedError` where the folder holds something else, or the checkout's data is not there.
    """
    clips, codec = DATA / "pocketsphinx" / "manifest.jsonl", DATA / "longcat-golden"
    if not clips.exists() or not codec.exists():
        raise RefusedError(f"the demo's clips are not in {DATA}: run it in a checkout of the project (make demo)")
    folder = _fresh(Path(output), force=force)
    shards, tokens, tars = folder / "shards", folder / "tokens", folder / "tokens-webdataset"
    _say(f"1. pack {clips} into shards")
    store_of = Stores(*storage_settings())
    packed = pack(
        str(clips), str(shards), shard_bytes=300_000, samples_max=100, prefix="speech", store_of=store_of, force=False
    )
    for line in packed.lines():
        _say(f"   {line}")
    exit_code = 0
    for number, format_, place in ((2, "parquet", tokens), (3, "webdataset", tars)):
        _say(f"{number}. tokenize them on a local Ray: {place} ({format_})")
        config = load_config(
            {"input": f"{shards}/", "output": str(place), "codec": str(codec), "format": format_, "carry": "txt"}
        )
        report = run_job(config)
        for line in report.lines():
            _say(f"   {line}")
        exit_code = max(exit_code, report.exit_code)
    _say("4. verify: read every object again")
    for place in (tokens, tars):
        checked = verify(str(place), *storage_settings())
        for line in checked.lines():
            _say(f"   {line}")
        exit_code = max(exit_code, 0 if checked.sound else 1)
    if exit_code == 0:
        first_tar = min((tars / "semantic").glob("*.tar"))
        _say(READ.format(tokens=tokens, first_tar=first_tar))
    return exit_code


def _fresh(folder: Path, *, force: bool) -> Path:
    folder = folder.absolute()
    if folder.exists():
        if not (folder / MARK).exists():
            raise RefusedError(f"{folder} is there and no demo made it; give another --output")
        if not force:
            raise RefusedError(f"{folder} holds an earlier demo; --force replaces it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
