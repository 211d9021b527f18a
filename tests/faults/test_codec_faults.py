"""Codecs that raise, hang, run out of memory or return what they must not, with the run in one process."""

from __future__ import annotations

import pytest
import soundfile

from tests.corpus import CLIPS, GOLDEN
from tests.faults.ground import CODEC
from tests.faults.invariants import commits
from tests.faults.matrix import row
from tests.faults.saboteurs import noted, sabotage

LENGTHS = [str(soundfile.info(clip).frames) for clip in CLIPS]
"""Number of audio samples of each clip; no two are equal, so that one names its clip to the codec."""

BROKEN_CONTRACTS = {
    "none": "returned no semantic tokens",
    "frames": "frames for segments of",
    "short": "semantic tokens of shape",
    "shape": "acoustic tokens of shape",
    "range": "semantic tokens outside",
    "negative": "acoustic tokens outside",
    "nan": "semantic tokens of type float32",
}


@row(
    "processes",
    "a codec that breaks its contract",
    "no tokens, wrong frames or shapes, ids out of range, NaN, one each",
)
def test_codec_that_breaks_its_contract(ground, tmp_path):
    ground.put_clean(10)
    notes = tmp_path / "notes"
    faults = dict(zip(LENGTHS, BROKEN_CONTRACTS, strict=False))
    codec = sabotage("with_codec", notes, faults=faults)
    ended = ground.run("--set=running.unknown_attempts_max=2", sabotage=codec)
    names = [f"speech-{index:03d}.tar" for index in range(len(BROKEN_CONTRACTS))]
    ground.check(ended, exit_code=1, failed=dict(zip(names, BROKEN_CONTRACTS.values(), strict=True)))
    assert sorted(noted(notes)) == sorted([f"{fault} at {length}" for length, fault in faults.items()] * 2)
    ground.check(ground.run("--retry-failed"))


@row("processes", "a codec that raises", "RuntimeError and MemoryError at one clip each, always or once")
def test_codec_that_raises(ground, tmp_path):
    ground.put_clean(10)
    notes = tmp_path / "notes"
    faults = {LENGTHS[0]: "raise", LENGTHS[1]: "raise once", LENGTHS[2]: "exhaust once"}
    ended = ground.run(sabotage=sabotage("with_codec", notes, faults=faults))
    ground.check(ended, exit_code=1, failed={"speech-000.tar": "RuntimeError: scripted"}, says=["speech-000.tar"])
    counts = [noted(notes).count(f"{fault.split()[0]} at {length}") for length, fault in faults.items()]
    assert counts == [3, 1, 1], "running.unknown_attempts_max is 3"


ONE_BATCH = "--set=batching.batch_cost_s=60"
"""A batch more would cost more than all padding: the clips of a shard go together."""


@row("processes", "out of memory on the device", "torch.OutOfMemoryError for batches of more than two clips")
@pytest.mark.parametrize(
    "codec",
    [pytest.param(CODEC, id="calibrated"), pytest.param(str(GOLDEN), id="longcat", marks=pytest.mark.heavy)],
)
def test_out_of_memory_on_the_device(ground, tmp_path, codec):
    ground.put_clean(2)
    notes = tmp_path / "notes"
    ended = ground.run(f"--codec={codec}", ONE_BATCH, sabotage=sabotage("with_codec", notes, clips_max=2))
    objects = ground.check(ended)
    assert sorted(noted(notes)) == ["out of memory at 3 clips"] * 2 + ["out of memory at 5 clips"] * 2
    assert [record["num_halved_batches"] for record in commits(objects).values()] == [2, 2]
    ground.note("2 batches halved a shard")


@row("processes", "a clip that never fits the device", "torch.OutOfMemoryError wherever it is in a batch")
def test_a_clip_that_never_fits(ground, tmp_path):
    ground.put_clean(3)
    saboteur = sabotage("with_codec", tmp_path / "notes", faults={LENGTHS[0]: "never fits"})
    ended = ground.run(ONE_BATCH, sabotage=saboteur)
    ground.check(ended, exit_code=1, failed={"speech-000.tar": "OutOfMemoryError"})
    assert noted(tmp_path / "notes") == [f"never fits at {LENGTHS[0]}"] * 9, "batches of 4, 2 and 1, three times"


@row("processes", "a codec that hangs, in one process", "it never returns from one clip", heavy=True)
def test_codec_that_hangs_inline(ground, tmp_path):
    ground.put_clean(10)
    codec = sabotage("with_codec", tmp_path / "notes", faults={LENGTHS[4]: "hang"})
    ended = ground.run("--set=running.stall_s=20", sabotage=codec)
    says = ["running.stall_s", "speech-004.tar", "the inline executor cannot replace"]
    ground.check(ended, exit_code=1, may_miss=True, says=says)
    assert ended.report["state"] == "incomplete"
    assert any("speech-004.tar" in uri for uri in ended.report["unfinished"])
    assert noted(tmp_path / "notes") == [f"hang at {LENGTHS[4]}"]
    ground.check(ground.run())
