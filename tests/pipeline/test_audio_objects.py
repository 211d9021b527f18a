"""Audio shards as tars and as files: what is in them, which names are safe, whose an object is by its name."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from pipeline import audio_objects
from pipeline.audio_objects import check_file_name, put_files
from pipeline.audio_writer import AudioFormat, AudioWriter
from pipeline.errors import DataError
from pipeline.layout import OutputPlace, file_path, parse_token_path, token_path
from pipeline.spool import Spool
from pipeline.types import AudioRow
from tests.corpus import store_of

SHARD, ATTEMPT = "speech-000-0123abcd-4567cdef", "a" * 32


def row(key: str, num_samples: int = 5, **sidecars: bytes) -> AudioRow:
    pcm = (np.arange(num_samples) * 7 - 3).astype(np.int16)
    return AudioRow(key, pcm, 24000, 1, 44100, 2, 2, {name.replace("_", "."): text for name, text in sidecars.items()})


def audio_format(*, files: bool = False, audio: str = "flac") -> AudioFormat:
    return AudioFormat(audio, files, {"voxmill.fingerprint": "f" * 64})  # type: ignore[arg-type]


def spooled(spool: Spool, rows: list[AudioRow], **changes):
    writer = AudioWriter(spool, audio_format(**changes))
    writer.write(rows)
    writer.close()
    return list(spool.finished())


def members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_a_shard_has_audio_numbers_and_sidecars_and_its_bytes_follow_from_the_rows(audio):
    rows = [row("a", 1, txt=b"words", json=b"{}", flac=b"theirs"), row("sub/b", 3000)]
    contents = []
    for _ in range(2):
        with Spool() as spool:
            (file,) = spooled(spool, rows, audio=audio)
            contents.append(file.path.read_bytes())
    assert contents[0] == contents[1]
    found = members(contents[0])
    own = "source.flac" if audio == "flac" else "flac"
    assert list(found) == [
        f"a.{audio}", "a.json", f"a.{own}", "a.source.json", "a.txt", f"sub/b.{audio}", "sub/b.json",
    ]  # fmt: skip
    samples, rate_hz = soundfile.read(io.BytesIO(found[f"sub/b.{audio}"]), dtype="int16")
    assert (rate_hz, samples.tolist()) == (24000, rows[1].pcm.tolist())
    numbers = json.loads(found["sub/b.json"])
    assert numbers == {
        "key": "sub/b",
        "sample_rate_hz": 24000,
        "num_samples": 3000,
        "duration_s": 0.125,
        "num_frames": 1,
        "source_sample_rate_hz": 44100,
        "source_num_channels": 2,
        "acoustic_codebooks": 2,
        "voxmill.fingerprint": "f" * 64,
    }


def test_files_are_the_audio_alone_each_an_object_of_the_attempt(tmp_path):
    rows = [row(f"k{n:02d}", n + 1, txt=b"words") for n in range(20)] + [row("sub/z")]
    place, steps = OutputPlace(str(tmp_path)), []
    with Spool() as spool:
        files = spooled(spool, rows, files=True)
        objects = put_files(store_of(str(tmp_path)), place, SHARD, ATTEMPT, files, on_put=lambda: steps.append(1))
    assert [item.path for item in objects] == [f"audio/{SHARD}.{ATTEMPT}/{one.key}.flac" for one in rows]
    assert len(steps) == 3, "a sign of progress for each handful"
    for item, one in zip(objects, rows, strict=True):
        content = (tmp_path / item.path).read_bytes()
        assert (item.num_bytes, item.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert soundfile.read(io.BytesIO(content), dtype="int16")[0].tolist() == one.pcm.tolist()
        assert parse_token_path(item.path) == (SHARD, ATTEMPT)
    on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert on_disk == {item.path for item in objects}


def test_an_empty_shard_is_no_object_as_files_and_one_as_a_tar(tmp_path):
    with Spool() as spool:
        files = spooled(spool, [], files=True)
        assert len(files) == 1
        nothing = put_files(
            store_of(str(tmp_path)), OutputPlace(str(tmp_path)), SHARD, ATTEMPT, files, on_put=lambda: None
        )
    assert nothing == ()


@pytest.mark.parametrize("name", ["a.flac", "sub/deep/a.flac", "..a/b..flac", "a b+c=%?#.wav", "ü/ñ.flac", ".a/b.flac"])
def test_names_that_are_files(name):
    check_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["a//b.flac", "./a.flac", "a/./b.flac", ".tmp-a.flac", "x/.tmp-y/a.flac", "é" * 126 + ".flac",
     "n" * 260 + "/a.flac"],
)  # fmt: skip
def test_names_that_are_none_are_refused_before_anything_is_put(tmp_path, name):
    with pytest.raises(DataError, match="--format shards"):
        check_file_name(name)
    with Spool() as spool:
        files = spooled(spool, [row("good"), row(name.removesuffix(".flac"))], files=True)
        with pytest.raises(DataError, match="--format shards"):
            put_files(store_of(str(tmp_path)), OutputPlace(str(tmp_path)), SHARD, ATTEMPT, files, on_put=lambda: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["/a", "../a", "a/../b", "a\0"])
def test_keys_that_lead_out_of_a_folder_or_would_be_cut_are_refused(key):
    with Spool() as spool, pytest.raises(DataError, match="no name below a folder"):
        spooled(spool, [row("good"), row(key)])
    with pytest.raises(DataError, match="--format shards"):
        check_file_name(f"{key}.flac")


def test_more_files_than_a_commit_record_holds_are_refused_before_anything_is_put(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_objects, "RECORD_BYTES_MAX", 2000)
    with Spool() as spool:
        files = spooled(spool, [row(f"k{n}") for n in range(10)], files=True)
        with pytest.raises(DataError, match="10 files are too many"):
            put_files(store_of(str(tmp_path)), OutputPlace(str(tmp_path)), SHARD, ATTEMPT, files, on_put=lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_whose_an_object_is_does_not_depend_on_what_its_file_is_called():
    """A key is anybody's text: it may look like an object of another shard, and must not make gc take it for one."""
    theirs = f"other-89abcdef.{'b' * 32}"
    for name in (f"{theirs}/x.flac", f"x/audio/{theirs}/y.flac", f"{theirs}.tar", f"commits/{theirs}.json"):
        assert parse_token_path(file_path(SHARD, ATTEMPT, name)) == (SHARD, ATTEMPT)
    assert parse_token_path(token_path("audio", SHARD, ATTEMPT)) == (SHARD, ATTEMPT)
    for stray in (f"audio/{SHARD}.{ATTEMPT}/", f"audio/{SHARD}.{ATTEMPT}", f"audio/sub/{SHARD}.{ATTEMPT}/a.flac",
                  f"audio/{SHARD}.{ATTEMPT}.parquet", f"tokens/{SHARD}.{ATTEMPT}/a.flac"):  # fmt: skip
        assert parse_token_path(stray) is None
