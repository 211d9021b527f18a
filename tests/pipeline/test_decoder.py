from __future__ import annotations

import io
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import decode_processes, pages
from pipeline.decode_chunk import Chunk, Decoded, Refused
from pipeline.decode_memory import AUDIO_BYTES, PCM_BYTES, Answer
from pipeline.decode_messages import channel_pair, send
from pipeline.decoder import DecoderPool
from pipeline.errors import DecoderUnavailableError
from pipeline.settings import DecodingConfig
from pipeline.types import Clip, Reject, RejectReason, Sample
from tests import faulty_decoding
from tests.corpus import GOLDEN

RATE_HZ = 16_000
HOOK = "tests.faulty_decoding:break_down"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """Two decoding processes that go wrong on command, and are soon found hanging."""
    with DecoderPool(DecodingConfig(workers=2, timeout_s=1.5), RATE_HZ, fault_hook=HOOK) as pool:
        yield pool


def flac(num_samples: int) -> bytes:
    file = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(num_samples) / 7)
    soundfile.write(file, samples, RATE_HZ, format="FLAC")
    return file.getvalue()


def sample(key: str, audio: bytes) -> Sample:
    return Sample(key, f"{key}.flac", "flac", audio, {"txt": key.encode()})


def good(key: str) -> Sample:
    """A sample whose length tells its key."""
    return sample(key, flac(1000 + int(key)))


def outcomes(items: Iterable[Clip | Reject]) -> list[tuple[str, int | str]]:
    return [(item.key, len(item.waveform) if isinstance(item, Clip) else item.reason.value) for item in items]


def test_golden_clips_come_out_bit_for_bit_and_in_order(pool: DecoderPool) -> None:
    expected = np.load(GOLDEN / "expected.npz")
    paths = sorted(GOLDEN.glob("clip_*.flac"))
    samples = [sample(path.stem.removeprefix("clip_"), path.read_bytes()) for path in paths]
    clips = list(pool.decode(samples))
    assert [clip.key for clip in clips] == [sample.key for sample in samples]
    for clip, given in zip(clips, samples, strict=True):
        assert isinstance(clip, Clip)
        np.testing.assert_array_equal(clip.waveform, expected[f"{clip.key}/wav16k"].reshape(-1))
        assert clip.sidecars == given.sidecars
    by_key = {clip.key: clip for clip in clips if isinstance(clip, Clip)}
    assert (by_key["44k_stereo"].source_sample_rate_hz, by_key["44k_stereo"].source_num_channels) == (44_100, 2)


def test_rejects_keep_their_place(pool: DecoderPool) -> None:
    stray = Reject("README", "README", RejectReason.BAD_NAME, "no extension", 3)
    found = list(pool.decode([good("1"), stray, sample("2", b"hello"), good("3"), stray]))
    assert outcomes(found) == [
        ("1", 1001),
        ("README", "bad_name"),
        ("2", "unreadable"),
        ("3", 1003),
        ("README", "bad_name"),
    ]
    assert found[1] is stray
    assert isinstance(found[2], Reject)
    assert (found[2].member, found[2].num_bytes) == ("2.flac", 5)


@pytest.mark.parametrize(
    ("audio", "reason", "said"),
    [
        (faulty_decoding.SEGFAULT, "decoder_crashed", "SIGSEGV"),
        (faulty_decoding.ABORT, "decoder_crashed", "SIGABRT"),
        (faulty_decoding.RAISE, "decoder_crashed", "RuntimeError: an odd error"),
        (faulty_decoding.HANG, "decoder_timeout", "decoding.timeout_s"),
        (faulty_decoding.ALLOCATE, "decoder_out_of_memory", "decoding.memory_bytes_max"),
    ],
)
def test_a_decoder_that_goes_wrong_costs_the_one_sample(
    pool: DecoderPool, audio: bytes, reason: str, said: str
) -> None:
    found = list(pool.decode([good("1"), good("2"), sample("bad", audio), good("4"), good("5")]))
    assert outcomes(found) == [("1", 1001), ("2", 1002), ("bad", reason), ("4", 1004), ("5", 1005)]
    assert isinstance(found[2], Reject)
    assert said in found[2].detail


def test_a_chunk_may_take_longer_than_a_file(pool: DecoderPool) -> None:
    assert outcomes(pool.decode([good("1")])) == [("1", 1001)]
    before = {seat._worker.pid for seat in pool._all_seats if seat._worker is not None}
    slow = [sample(str(index), faulty_decoding.SLOW) for index in range(6)]  # 2.4 s, of which one file may take 1.5
    assert outcomes(pool.decode(slow)) == [(str(index), "unreadable") for index in range(6)]
    assert before <= {seat._worker.pid for seat in pool._all_seats if seat._worker is not None}


def test_faults_in_a_row_do_not_end_the_pool(pool: DecoderPool) -> None:
    bad = [sample(f"bad{index}", faulty_decoding.SEGFAULT) for index in range(decode_processes.STARTS_MAX + 1)]
    expected = [(item.key, "decoder_crashed") for item in bad]
    assert outcomes(pool.decode([*bad, good("1")])) == [*expected, ("1", 1001)]


def test_a_worker_killed_from_outside_costs_nothing(pool: DecoderPool, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    unlucky = sample("2", faulty_decoding.DIE_ONCE + bytes(marker) + b"\n")
    found = outcomes(pool.decode([good("1"), unlucky, good("3")]))
    assert marker.exists()
    assert found == [("1", 1001), ("2", "unreadable"), ("3", 1003)]  # unreadable: decoded, in the second process


def test_limits_of_the_config_are_applied() -> None:
    config = DecodingConfig(workers=1, clip_ms_min=50, clip_s_max=0.1)
    with DecoderPool(config, 8_000) as pool:
        found = pool.decode([sample("a", flac(799)), sample("b", flac(800)), sample("c", flac(1601))])
        assert outcomes(found) == [("a", "too_short"), ("b", 400), ("c", "too_long")]


def test_several_threads_share_a_pool(pool: DecoderPool) -> None:
    def work(first: int) -> list[tuple[str, int | str]]:
        bad = sample("bad", faulty_decoding.SEGFAULT)
        return outcomes(pool.decode([good(str(first + index)) for index in range(20)] + [bad]))

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(work, [0, 100, 200]))
    for first, result in zip([0, 100, 200], results, strict=True):
        assert result == [(str(first + index), 1000 + first + index) for index in range(20)] + [
            ("bad", "decoder_crashed")
        ]


@pytest.mark.parametrize(("workers", "in_flight_max"), [(2, 1), (2, 3), (1, 5), (2, 64)])
def test_never_takes_more_samples_than_it_may(workers: int, in_flight_max: int) -> None:
    num_taken = num_given = 0

    def source() -> Iterator[Reject]:
        nonlocal num_taken
        for index in range(500):
            num_taken += 1
            assert num_taken - num_given <= in_flight_max
            yield Reject(str(index), "", RejectReason.NO_AUDIO, "", 0)

    config = DecodingConfig(workers=workers, clips_in_flight_max=in_flight_max)
    # Rejects take the way of all samples, and need no process.
    with closing(DecoderPool(config, RATE_HZ)) as pool:
        for item in pool.decode(source()):
            assert item.key == str(num_given)
            num_given += 1
    assert num_given == 500


def test_an_error_of_the_source_passes_through_and_the_pool_goes_on(pool: DecoderPool) -> None:
    def source() -> Iterator[Sample]:
        yield good("1")
        raise DecoderUnavailableError("from the source")

    with pytest.raises(DecoderUnavailableError, match="from the source"):
        list(pool.decode(source()))
    abandoned = pool.decode(good("2") for _ in range(100))
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert outcomes(pool.decode([good("3")])) == [("3", 1003)]


def test_answers_that_nobody_took_are_not_given_to_other_samples(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(pages.PAGES, "take", out_of_memory)
        for _ in range(2):
            with pytest.raises(MemoryError):
                list(pool.decode([good("1"), good("2")]))
    assert outcomes(pool.decode([good("3"), good("4")])) == [("3", 1003), ("4", 1004)]


def test_a_zygote_killed_from_outside_costs_nothing() -> None:
    with DecoderPool(DecodingConfig(workers=1), RATE_HZ) as pool:
        assert outcomes(pool.decode([good("1")])) == [("1", 1001)]
        zygote = pool._nursery._zygote
        assert zygote is not None
        zygote.process.kill()
        zygote.process.wait()
        assert outcomes(pool.decode([good("2"), good("3")])) == [("2", 1002), ("3", 1003)]


def test_processes_that_cannot_be_started_are_an_error_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(decode_processes, "_BACKOFF_S", 0)
    with DecoderPool(DecodingConfig(), RATE_HZ) as pool, pytest.raises(DecoderUnavailableError, match="5 starts"):
        list(pool.decode([good("1")]))


def test_a_broken_installation_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_processes, "STARTS_MAX", 1)
    with (
        DecoderPool(DecodingConfig(), RATE_HZ, fault_hook="no_such_module:hook") as pool,
        pytest.raises(DecoderUnavailableError, match="No module named 'no_such_module'"),
    ):
        list(pool.decode([good("1")]))


def test_close_ends_calls_under_way() -> None:
    config = DecodingConfig(workers=1, timeout_s=3600, clips_in_flight_max=2)
    pool = DecoderPool(config, RATE_HZ, fault_hook=HOOK)
    found = pool.decode([good("1"), sample("bad", faulty_decoding.HANG)])
    assert next(found).key == "1"
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(list, found)
        pool.close()
        with pytest.raises(DecoderUnavailableError, match="closed"):
            hanging.result(WAIT_MS / 1000)
    with pytest.raises(DecoderUnavailableError, match="closed"):
        list(pool.decode([good("1")]))


PARENT = """
    import os, sys, signal, subprocess
    from pipeline.settings import DecodingConfig
    from pipeline.decoder import DecoderPool
    from pipeline.types import Sample

    def children(pid):
        tasks = open(f"/proc/{pid}/task/{pid}/children").read().split()
        return [int(task) for task in tasks]

    audio = open(sys.argv[1], "rb").read()
    with DecoderPool(DecodingConfig(workers=1), 16000) as pool:
        decoded = list(pool.decode([Sample("a", "a.flac", "flac", audio)]))
        zygote = pool._nursery._zygote.process.pid
        print(zygote, *children(zygote), flush=True)
        sys.stdin.read()
"""


def test_no_process_outlives_a_killed_parent() -> None:
    clip = GOLDEN / "clip_16k_short_350ms.flac"
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(clip)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2  # the zygote and a worker
        handles = [os.pidfd_open(pid) for pid in pids]
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGINT)  # neither listens to Ctrl-C
        parent.kill()
        for handle in handles:
            assert select.select([handle], [], [], WAIT_MS / 1000)[0], "a decoding process lives on"
            os.close(handle)


def test_workers_do_not_listen_to_ctrl_c(pool: DecoderPool) -> None:
    assert outcomes(pool.decode([good("1")])) == [("1", 1001)]
    workers = [seat._worker for seat in pool._all_seats if seat._worker is not None]
    assert workers
    pids = [worker.pid for worker in workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert outcomes(pool.decode([good(str(index)) for index in range(40)])) == [
        (str(index), 1000 + index) for index in range(40)
    ]
    now = {seat._worker.pid for seat in pool._all_seats if seat._worker is not None}
    assert now >= set(pids)  # none was replaced


def answers_of(
    *answers: Answer, num_files: int = 1, message: dict[str, object] | None = None
) -> list[Decoded | Refused]:
    """What a parent makes of a worker that says so."""
    ours, theirs = channel_pair()
    with ours, theirs:
        memory = decode_processes._shared_with(ours)
        chunk = Chunk(ours, memory, num_files, timeout_s=60)
        for answer in answers:
            memory.add_answer(answer)
        send(theirs, {"num_answers": len(answers)} | (message or {}))
        theirs.shutdown(socket.SHUT_WR)
        chunk.wait()
    return chunk.outcomes


@pytest.mark.parametrize(
    ("num_announced", "sample_bytes"), [(0, 4), (3, 4), (5, 4), (1 << 50, 4), (4, 2), (16, 1), (2, 8)]
)
def test_a_waveform_of_another_length_than_announced_is_not_taken(num_announced: int, sample_bytes: int) -> None:
    with pytest.raises(EOFError, match="announced"):
        answers_of(Answer(0, 0, 16, num_announced, sample_bytes, 1, 1))


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(1, 0, 16, 4, 4, 1, 1)],
        [Answer(0, -16, 0, 4, 4, 1, 1)],
        [Answer(0, 16, 0, -4, 4, 1, 1)],
        [Answer(0, PCM_BYTES - 8, PCM_BYTES + 8, 4, 4, 1, 1)],
        [Answer(0, 0, 16, 4, 4, 1, 1), Answer(1, 8, 24, 4, 4, 1, 1)],
        [Answer(0, 0, 16, 4, 4, 1, 1), Answer(1, 16, 32, 4, 4, 1, 1), Answer(2, 32, 48, 4, 4, 1, 1)],
    ],
    ids=["another file", "before the memory", "backwards", "past the memory", "overlapping", "too many"],
)
def test_what_cannot_stand_in_the_memory_is_not_taken(answers: list[Answer]) -> None:
    with pytest.raises(EOFError, match=r"cannot be|more files"):
        answers_of(*answers, num_files=2)


@pytest.mark.parametrize("num_answers", [1, 1 << 40])
def test_a_chunk_that_ends_early_is_not_taken_for_whole(num_answers: int) -> None:
    with pytest.raises(EOFError, match=r"1 of 2 files|cannot be"):
        answers_of(Answer(0, 0, 16, 4, 4, 1, 1), num_files=2, message={"num_answers": num_answers})


def test_messages_leave_no_descriptor_behind() -> None:
    num_before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(answers_of(Answer(0, 0, 16, 4, 4, 1, 1))) == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == num_before


def test_clips_longer_than_the_shared_memory_come_in_parts() -> None:
    rng = np.random.default_rng(0)
    num_samples_max = PCM_BYTES // 2  # of 16 bits each
    lengths = [1000, num_samples_max - 1000, num_samples_max + 1, 2 * num_samples_max, 3 * num_samples_max - 5, 1001]
    waveforms = [rng.integers(-9, 9, length).astype(np.int16) for length in lengths]
    samples = []
    for index, waveform in enumerate(waveforms):
        file = io.BytesIO()
        soundfile.write(file, waveform, RATE_HZ, format="FLAC")
        samples.append(sample(str(index), file.getvalue()))
    # All in one chunk, so that each clip begins where the one before it ended.
    with DecoderPool(DecodingConfig(workers=1, chunk_bytes=1 << 28), RATE_HZ) as pool:
        clips = list(pool.decode(samples))
    for clip, waveform in zip(clips, waveforms, strict=True):
        assert isinstance(clip, Clip)
        np.testing.assert_array_equal(clip.waveform, waveform.astype(np.float32) / 32768)


def test_files_larger_than_the_shared_memory_are_decoded() -> None:
    noise = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, AUDIO_BYTES // 2 + 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, noise, RATE_HZ, format="FLAC")
    assert len(file.getvalue()) > AUDIO_BYTES
    with DecoderPool(DecodingConfig(workers=1), RATE_HZ) as pool:
        found = list(pool.decode([good("1"), sample("2", file.getvalue()), good("3")]))
    assert outcomes(found) == [("1", 1001), ("2", len(noise)), ("3", 1003)]
    assert isinstance(found[1], Clip)
    np.testing.assert_array_equal(found[1].waveform, noise.astype(np.float32) / 32768)
