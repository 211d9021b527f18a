from __future__ import annotations

import errno
import hashlib
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from webdataset.tariterators import group_by_keys, tar_file_expander

from jobs import pack as pack_module
from jobs.pack import PackReport, pack
from pipeline.errors import ConfigError, DataError, InfraError, RefusedError
from pipeline.ranges import RangeStream
from pipeline.reader import AUDIO_EXTENSIONS, read_samples
from pipeline.settings import ReadingConfig, RetryConfig, StorageConfig
from pipeline.storage import Store, open_store
from pipeline.types import Reject, Sample, Shard
from tests.media import encoded

HUMAN_SPEECH = Path(__file__).parents[1] / "data" / "pocketsphinx"


def store_of(uri: str) -> Store:
    return open_store(uri, StorageConfig(), RetryConfig(attempts_max=1))


def packed(source: Path, output: Path, **options: Any) -> PackReport:
    defaults: dict[str, Any] = {"shard_bytes": 1 << 30, "samples_max": 1000, "prefix": "train", "store_of": store_of}
    return pack(str(source), str(output), **(defaults | options))


MEDIA_KINDS = {
    ".aac": "aac", ".m4a": "m4a-aac", ".m4b": "m4a-aac", ".mka": "mka-flac", ".weba": "webm-opus", ".webm": "webm-opus",
}  # fmt: skip


def write_audio(path: Path, num_audio_samples: int = 160, value: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in MEDIA_KINDS:
        samples = np.full((1, num_audio_samples), value, np.float32)
        path.write_bytes(encoded(MEDIA_KINDS[path.suffix], samples, 48000))
        return path
    suffix = path.suffix[1:].upper()
    file_format = {"AIF": "AIFF", "AIFC": "AIFF", "OGA": "OGG", "SND": "AU", "SPH": "NIST", "WAVE": "WAV"}.get(
        suffix, suffix
    )
    subtype = "OPUS" if suffix == "OPUS" else None
    soundfile.write(
        path, np.full(num_audio_samples, value, np.float32), 16000, subtype, format=file_format.replace("OPUS", "OGG")
    )
    return path


def write_manifest(path: Path, *lines: dict[str, Any] | str) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("".join(line + "\n" for line in text).encode(errors="surrogateescape"))
    return path


def samples(report: PackReport) -> list[dict[str, Any]]:
    """What the webdataset package reads from the shards."""
    found: list[dict[str, Any]] = []
    for shard in report.shards:
        with Path(shard.uri).open("rb") as file:
            found += group_by_keys(tar_file_expander([{"url": shard.uri, "stream": file}]))
    return [{name: value for name, value in sample.items() if name != "__url__"} for sample in found]


def own_samples(report: PackReport) -> list[Sample | Reject]:
    """What voxmill's own reader makes of the shards."""
    found: list[Sample | Reject] = []
    config = ReadingConfig()
    for shard in report.shards:
        with RangeStream(store_of(shard.uri), Shard(shard.uri, shard.size_bytes, shard.etag), config) as stream:
            found += read_samples(stream, shard.size_bytes, config, carry=("txt", "json"))
    return found


def members(report: PackReport) -> Iterator[tarfile.TarInfo]:
    for shard in report.shards:
        with tarfile.open(shard.uri) as tar:
            yield from tar


def digests(report: PackReport) -> dict[str, str]:
    return {Path(s.uri).name: hashlib.sha256(Path(s.uri).read_bytes()).hexdigest() for s in report.shards}


def test_human_speech_manifest_is_read_back_by_webdataset(tmp_path: Path) -> None:
    report = packed(HUMAN_SPEECH / "manifest.jsonl", tmp_path, samples_max=4)
    lines = [json.loads(line) for line in (HUMAN_SPEECH / "manifest.jsonl").read_text().splitlines()]
    found = samples(report)
    assert [Path(shard.uri).name for shard in report.shards] == [f"train-00000{n}.tar" for n in range(3)]
    assert [sample["__key__"] for sample in found] == sorted(Path(line["audio_filepath"]).stem for line in lines)
    assert (report.num_samples, report.num_texts, report.num_skipped) == (10, 10, 0)
    for line, sample in zip(sorted(lines, key=lambda line: line["audio_filepath"]), found, strict=True):
        assert sample["flac"] == (HUMAN_SPEECH / line["audio_filepath"]).read_bytes()
        assert sample["txt"].decode() == line["text"]
        assert json.loads(sample["json"]) == {"duration": line["duration"]}
    assert [sample.key for sample in own_samples(report) if isinstance(sample, Sample)] == [s["__key__"] for s in found]


def test_the_report_tells_the_same_to_people_and_programs(tmp_path: Path) -> None:
    for name in ("1.wav", "2.wav", "3.doc"):
        write_audio(tmp_path / "in" / name.replace("doc", "wav")).rename(tmp_path / "in" / name)
    report = packed(tmp_path / "in", tmp_path / "out", samples_max=1)
    assert report.lines() == [
        f"packed 2 samples (0 with text) into 2 shard(s), 0.0 MB: {report.shards[0].uri} to {report.shards[1].uri}",
        "left out 1 files or folders that are hidden or neither audio nor its text",
    ]
    told = json.loads(json.dumps(report.to_json()))
    assert (told["num_samples"], told["num_skipped"], told["num_bytes"]) == (2, 1, 20480)
    assert [shard["uri"] for shard in told["shards"]] == [shard.uri for shard in report.shards]


def test_shards_reach_a_bucket_whole(tmp_path: Path, bucket: str) -> None:
    write_audio(tmp_path / "in" / "0.wav")
    (local,) = packed(tmp_path / "in", tmp_path / "out").shards
    options: dict[str, Any] = {"shard_bytes": 1 << 20, "samples_max": 9, "prefix": "train", "store_of": store_of}
    (remote,) = pack(str(tmp_path / "in"), f"{bucket}/audio/", **options).shards
    assert remote.uri == f"{bucket}/audio/train-000000.tar"
    assert store_of(bucket).read(remote.uri, bytes_max=1 << 20) == Path(local.uri).read_bytes()
    with pytest.raises(RefusedError, match="already"):
        pack(str(tmp_path / "in"), f"{bucket}/audio", **options)


def test_human_speech_manifest_tells_the_true_durations() -> None:
    for line in map(json.loads, (HUMAN_SPEECH / "manifest.jsonl").read_text().splitlines()):
        assert soundfile.info(HUMAN_SPEECH / line["audio_filepath"]).duration == line["duration"]


def test_folder_takes_texts_beside_the_audio_and_counts_what_it_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b/2.wav", "b/3.MP3", "a.flac", ".hidden.wav", ".cache/4.wav"):
        write_audio(folder / name)
    (folder / "b/2.txt").write_text("zwei")
    (folder / "b/lonely.txt").write_text("of no audio")
    (folder / "readme.md").write_text("")
    report = packed(folder, tmp_path / "out")
    assert [(sample["__key__"], sorted(sample)[1:]) for sample in samples(report)] == [
        ("a", ["flac"]),
        ("b/2", ["txt", "wav"]),
        ("b/3", ["mp3"]),
    ]
    assert samples(report)[1]["txt"] == b"zwei"
    assert [member.name for member in members(report)] == ["a.flac", "b/2.wav", "b/2.txt", "b/3.mp3"]
    # .hidden.wav, the folder .cache, lonely.txt and readme.md
    assert (report.num_samples, report.num_texts, report.num_skipped) == (3, 1, 4)


@pytest.mark.parametrize("suffix", sorted(AUDIO_EXTENSIONS))
def test_every_audio_ending_is_packed_as_it_is(tmp_path: Path, suffix: str) -> None:
    content = write_audio(tmp_path / "in" / f"clip.{suffix}", num_audio_samples=16000).read_bytes()
    assert samples(packed(tmp_path / "in", tmp_path / "out")) == [{"__key__": "clip", suffix: content}]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("utt.v1.wav", "utt_v1"),
        ("v1.0/utt.wav", "v1.0/utt"),
        ("__meta__/utt.wav", "_meta__/utt"),
        ("speaker\n1/utt\t2.wav", "speaker_1/utt_2"),
        ("Fjörður/söngur 1.wav", "Fjörður/söngur 1"),
        ("d" * 120 + "/" + "n" * 120 + ".wav", "d" * 120 + "/" + "n" * 120),
    ],
)
def test_names_become_keys_that_webdataset_reads_whole(tmp_path: Path, name: str, key: str) -> None:
    write_audio(tmp_path / "in" / name).with_suffix(".txt").write_text("text")
    report = packed(tmp_path / "in", tmp_path / "out")
    assert [sample["__key__"] for sample in samples(report)] == [key]
    audio = (tmp_path / "in" / name).read_bytes()
    assert own_samples(report) == [Sample(key, f"{key}.wav", "wav", audio, {"txt": b"text"})]
    assert [member.name for member in members(report)] == [f"{key}.wav", f"{key}.txt"]


def test_archives_tell_nothing_of_time_owner_or_machine(tmp_path: Path) -> None:
    for name in ("one.wav", "two.flac", "Þrír.wav"):
        write_audio(tmp_path / "in" / name).chmod(0o600)
    first = packed(tmp_path / "in", tmp_path / "first", samples_max=2)
    for member in members(first):
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname) == ("", "")
    copy = tmp_path / "elsewhere" / "copy"
    for path in sorted((tmp_path / "in").iterdir(), reverse=True):
        copy.mkdir(parents=True, exist_ok=True)
        (copy / path.name).write_bytes(path.read_bytes())
    assert digests(packed(copy, tmp_path / "second", samples_max=2)) == digests(first)


def test_archives_end_in_two_zero_blocks_and_fill_their_last_record(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "one.wav")
    (shard,) = packed(tmp_path / "in", tmp_path / "out").shards
    content = Path(shard.uri).read_bytes()
    assert len(content) % tarfile.RECORDSIZE == 0
    assert content[-2 * tarfile.BLOCKSIZE :] == bytes(2 * tarfile.BLOCKSIZE)
    # A plain name takes a plain ustar header: one block, then the audio.
    assert content[tarfile.BLOCKSIZE :].startswith((tmp_path / "in" / "one.wav").read_bytes())


def test_a_shard_closes_before_it_would_grow_over_its_size(tmp_path: Path) -> None:
    for index in range(5):
        write_audio(tmp_path / "in" / f"{index}.wav", num_audio_samples=1000)  # 2044 bytes: 4 blocks and a header
    write_audio(tmp_path / "in" / "3.wav", num_audio_samples=100_000)
    report = packed(tmp_path / "in", tmp_path / "out", shard_bytes=2 * 5 * tarfile.BLOCKSIZE)
    keys = [[sample["__key__"] for sample in samples(PackReport((shard,), 0, 0, 0))] for shard in report.shards]
    assert keys == [["0", "1"], ["2"], ["3"], ["4"]]


def test_manifest_keys_are_relative_to_what_holds_all_audio(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "x" / "1.wav")
    write_audio(tmp_path / "lists" / "2.wav")
    lines = [{"audio_filepath": "../audio/x/1.wav"}, {"audio_filepath": str(tmp_path / "lists" / "2.wav")}]
    report = packed(write_manifest(tmp_path / "lists" / "m.jsonl", *lines), tmp_path / "out")
    assert [sample["__key__"] for sample in samples(report)] == ["audio/x/1", "lists/2"]


def test_manifest_fields_stay_with_their_sample(tmp_path: Path) -> None:
    for name in ("b.wav", "a.wav", "c.wav"):
        write_audio(tmp_path / name)
    lines: list[dict[str, Any] | str] = [
        {"audio_filepath": "b.wav", "text": "önnur", "speaker": {"id": 7, "nafn": "Ása"}, "offset": 0},
        "  \r",
        {"audio_filepath": "a.wav", "text": None},
        {"audio_filepath": "c.wav", "text": ""},
    ]
    report = packed(write_manifest(tmp_path / "m.jsonl", *lines), tmp_path / "out")
    a, b, c = samples(report)
    assert "txt" not in a
    assert "json" not in a
    assert b["txt"].decode() == "önnur"
    assert json.loads(b["json"]) == {"speaker": {"id": 7, "nafn": "Ása"}, "offset": 0}
    assert c["txt"] == b""
    assert report.num_texts == 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"audio_filepath": "a.wav"', "delimiter"),
        ('["a.wav"]', "found a list"),
        ('{"text": "no audio"}', "'audio_filepath' is None"),
        ('{"audio_filepath": "a\\u0000.wav"}', "not a path"),
        ('{"audio_filepath": "a.wav", "text": 3}', "'text' is 3"),
        ('{"audio_filepath": "a.wav", "text": "\\ud800"}', "surrogates"),
        ('{"audio_filepath": "a.wav", "score": NaN}', "NaN is not JSON"),
        ('{"audio_filepath": "a.wav", "offset": 1.5}', "'offset' is 1.5"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, found: str) -> None:
    write_audio(tmp_path / "a.wav")
    manifest = write_manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"}, "", line)
    with pytest.raises(DataError, match=f"m.jsonl, line 3: .*{found}"):
        packed(manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_endless_line_is_refused_before_it_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.pack_source.LINE_BYTES_MAX", 64)
    manifest = write_manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "x" * 64})
    with pytest.raises(DataError, match="line 1: has 64 bytes or more"):
        packed(manifest, tmp_path / "out")


def test_faulty_audio_is_named_before_anything_is_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "good.wav")
    write_audio(tmp_path / "silent.wav", num_audio_samples=0)
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "folder.wav").mkdir()
    cut = write_audio(tmp_path / "cut.m4a", num_audio_samples=16000)
    cut.write_bytes(cut.read_bytes()[:-40])
    write_audio(tmp_path / "odd.wav").rename(tmp_path / "odd.xyz")
    names = ["good.wav", "silent.wav", "text.wav", "folder.wav", "cut.m4a", "odd.xyz", "missing.wav"]
    manifest = write_manifest(tmp_path / "m.jsonl", *({"audio_filepath": name} for name in names))
    with pytest.raises(DataError) as error:
        packed(manifest, tmp_path / "out")
    message = str(error.value)
    assert message.startswith("6 of 7 audio files")
    for name, fault in [
        ("silent.wav", "is empty"),
        ("text.wav", "is not readable: Format not recognised"),
        ("folder.wav", "is not a file"),
        ("cut.m4a", "is not readable: its box 'moov'"),
        ("odd.xyz", "has an ending"),
        ("missing.wav", "is missing"),
    ]:
        assert f"{tmp_path / name}: {fault}" in message
    assert not (tmp_path / "out").exists()


def test_a_message_names_ten_faulty_files_and_counts_the_rest(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", *({"audio_filepath": f"{n:02}.wav"} for n in range(12)))
    with pytest.raises(DataError, match=r"12 of 12(.|\n)*09\.wav: is missing\n  and 2 more$"):
        packed(manifest, tmp_path / "out")


def test_flac_of_undeclared_length_is_not_empty(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "in" / "streamed.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples, as an encoder on a pipe leaves them
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert packed(tmp_path / "in", tmp_path / "out").num_samples == 1


@pytest.mark.parametrize("names", [("a.wav", "a.flac"), ("a.b.wav", "a_b.wav")])
def test_two_files_with_one_key_are_both_named(tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [write_audio(tmp_path / "in" / name) for name in names]
    with pytest.raises(DataError, match="both have the key") as error:
        packed(tmp_path / "in", tmp_path / "out")
    assert all(str(path) in str(error.value) for path in paths)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav").rename(tmp_path / "in" / "\udcff.wav")
    with pytest.raises(DataError, match="not UTF-8"):
        packed(tmp_path / "in", tmp_path / "out")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_audio(tmp_path / "elsewhere" / "a.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [sample["__key__"] for sample in samples(packed(tmp_path / "in", tmp_path / "out"))] == ["linked/a"]
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match="is a link to a folder that holds it"):
        packed(tmp_path / "in", tmp_path / "again")


def test_older_shards_are_refused_or_wholly_replaced(tmp_path: Path) -> None:
    for index in range(3):
        write_audio(tmp_path / "in" / f"{index}.wav")
    packed(tmp_path / "in", tmp_path / "out", samples_max=1)
    packed(tmp_path / "in", tmp_path / "out", prefix="train-b")
    deeper = tmp_path / "out" / "sub" / "train-000000.tar"
    deeper.parent.mkdir()
    deeper.write_bytes(b"not ours")
    with pytest.raises(RefusedError, match=r"holds 3 shard\(s\) 'train' already, such as .*train-000000\.tar"):
        packed(tmp_path / "in", tmp_path / "out", samples_max=2)
    packed(tmp_path / "in", tmp_path / "out", samples_max=2, force=True)
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tar"))
    assert left == ["sub/train-000000.tar", "train-000000.tar", "train-000001.tar", "train-b-000000.tar"]


def test_overwriting_deletes_nothing_when_the_new_pack_is_faulty(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "0.wav")
    before = digests(packed(tmp_path / "in", tmp_path / "out"))
    write_audio(tmp_path / "in" / "1.wav", num_audio_samples=0)
    with pytest.raises(DataError, match="is empty"):
        packed(tmp_path / "in", tmp_path / "out", force=True)
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "out").iterdir()} == before


def test_a_relative_output_and_a_file_uri_name_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "in" / "0.wav")
    monkeypatch.chdir(tmp_path)
    (shard,) = packed(Path("in"), Path("out")).shards
    assert shard.uri == str(tmp_path / "out" / "train-000000.tar")
    with pytest.raises(RefusedError, match="already"):
        pack("in", f"file://{tmp_path}/out/", shard_bytes=1, samples_max=1, prefix="train", store_of=store_of)


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        (("s3://bucket/clips", "out"), {}, "copy or mount it first"),
        (("nowhere", "out"), {}, "found nothing"),
        (("in/0.wav", "out"), {}, "found a file of another kind"),
        (("in", "s3://key:secret@host/out"), {}, "credentials"),
        (("in", "out"), {"prefix": "a/b"}, "not a file name"),
        (("in", "out"), {"shard_bytes": 0}, "at least 1"),
        (("in", "out"), {"samples_max": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    places: tuple[str, str],
    options: dict[str, Any],
    message: str,
) -> None:
    write_audio(tmp_path / "in" / "0.wav")
    monkeypatch.chdir(tmp_path)
    defaults: dict[str, Any] = {"shard_bytes": 1, "samples_max": 1, "prefix": "train", "store_of": store_of}
    with pytest.raises(RefusedError, match=message) as error:
        pack(*places, **(defaults | options))
    assert "secret" not in str(error.value)
    assert isinstance(error.value, ConfigError) == bool(options or "secret" in places[1])
    assert not (tmp_path / "out").exists()


def test_a_folder_without_audio_is_an_error_not_an_empty_pack(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"no audio files among 1 others; looked for \.aac, \.aif"):
        packed(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="has no lines"):
        packed(write_manifest(tmp_path / "m.jsonl", ""), tmp_path / "out")


def test_a_file_that_shrinks_under_the_pack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_audio(tmp_path / "in" / "0.wav")
    plain_add = pack_module._add

    def shrinking_add(tar: tarfile.TarFile, name: str, content: Any, size_bytes: int) -> None:
        path.write_bytes(path.read_bytes()[:100])
        plain_add(tar, name, content, size_bytes)

    monkeypatch.setattr(pack_module, "_add", shrinking_add)
    with pytest.raises(DataError, match=r"0\.wav cannot be read to its end"):
        packed(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_temporary_disk_is_not_blamed_on_the_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "in" / "0.wav")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack_module, "_add", full)
    with pytest.raises(InfraError, match="set TMPDIR"):
        packed(tmp_path / "in", tmp_path / "out")


def test_memory_does_not_hold_a_shard(tmp_path: Path) -> None:
    """Peak Python memory stays far below the size of the one shard that is written."""
    for index in range(4):
        write_audio(tmp_path / "in" / f"{index}.wav", num_audio_samples=2_000_000)
    tracemalloc.start()
    report = packed(tmp_path / "in", tmp_path / "out")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.num_bytes > 16_000_000
    assert peak_bytes < 4_000_000
