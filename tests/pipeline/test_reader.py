from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import webdataset.tariterators
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import reader
from pipeline.errors import DataError, TarError
from pipeline.reader import read_samples, split_name
from pipeline.settings import ReadingConfig
from pipeline.types import Reject, RejectReason, Sample
from tests.tars import END, BytesStream, block, padded, tar


def read(data: bytes, carry: Collection[str] = (), **config: Any) -> list[Sample | Reject]:
    return list(read_samples(BytesStream(data), len(data), ReadingConfig(**config), carry))


def groups(files: Sequence[tuple[str, bytes]], carry: Collection[str] = (), **config: Any) -> list[Sample | Reject]:
    return read(tar(files), carry, **config)


def outcomes(items: Sequence[Sample | Reject]) -> list[tuple[str, str]]:
    """Key, and audio suffix or reason."""
    return [(item.key, item.audio_suffix if isinstance(item, Sample) else item.reason.value) for item in items]


def of_webdataset(data: bytes) -> list[dict[str, Any]]:
    """The samples as the `webdataset` package makes them."""
    files = webdataset.tariterators.tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(data)}])
    return list(webdataset.tariterators.group_by_keys(files))


def test_a_sample_has_its_audio_and_the_carried_sidecars() -> None:
    files = [("a.JSON", b"{}"), ("a.FLAC", b"audio"), ("a.txt", b"hello"), ("a.npy", b"0")]
    assert groups(files, carry=("json", "txt", "lang")) == [
        Sample("a", "a.FLAC", "flac", b"audio", {"json": b"{}", "txt": b"hello"})
    ]


def test_keys_are_those_of_webdataset() -> None:
    files = [("d.v/utt.v1.wav", b"1"), ("d.v/utt.txt", b"2"), ("/abs.wav", b"3"), ("../up.wav", b"4")]
    found = groups(files)
    assert outcomes(found) == [("d.v/utt", "v1.wav"), ("/abs", "wav"), ("../up", "wav")]
    assert [sample["__key__"] for sample in of_webdataset(tar(files))] == [item.key for item in found]


parts = st.text(st.sampled_from("aB._é1 "), min_size=1, max_size=5)
odd_names = st.lists(parts, min_size=1, max_size=3).map("/".join) | st.sampled_from(
    ["__m__", "__m__/a.wav", "d/__m__/a.wav", "__a__.wav", "__a.b__", ".hidden", "d/.hidden.wav", "a.", "a..wav", "x"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(odd_names, st.binary(max_size=8)), max_size=8))
def test_groups_and_keys_agree_with_the_package(files: list[tuple[str, bytes]]) -> None:
    # Well-formed: each key stands once, its members together, no suffix twice.
    files = sorted({(split_name(name) or (name,), name): (name, data) for name, data in files}.values())
    by_key: dict[object, list[tuple[str, bytes]]] = {}
    for name, data in files:
        key, suffix = split_name(name) or (name, "")
        if suffix not in ("__key__", "__url__"):
            by_key.setdefault(key, []).append((name, data))
    # "wav" is added to each key, so that each is a sample and its other members can be compared.
    archive = tar(
        [member for key, members in by_key.items() for member in [*members, (f"{key}.voxmill-test.wav", b"x")]]
    )
    expected = {
        sample["__key__"]: {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
        for sample in of_webdataset(archive)
    }
    carry = {suffix for sample in expected.values() for suffix in sample}
    found = {
        item.key: {**item.sidecars, item.audio_suffix: item.audio}
        for item in read(archive, carry, audio_suffix="voxmill-test.wav")
        if isinstance(item, Sample)
    }
    assert found == expected


@settings(deadline=None, max_examples=300)
@given(odd_names)
def test_every_name_is_keyed_skipped_or_rejected_as_the_package_does(name: str) -> None:
    archive = tar([(name, b"1")])
    expected = [sample["__key__"] for sample in of_webdataset(archive)]
    found = read(archive)
    if expected:
        assert [item.key for item in found] == expected
    elif found:
        assert outcomes(found) == [(name, "bad_name")]
    else:
        assert reader.is_meta(name)


def test_links_and_devices_are_rejected_by_their_name() -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        found = read(tar([("a.wav", b"")], type=kind, linkname="b.wav"))
        assert outcomes(found) == [("a.wav", "not_a_file")]


def test_folders_and_meta_members_are_passed_over() -> None:
    assert read(tar([("folder", b"")], type=tarfile.DIRTYPE)) == []
    assert groups([("__index__", b"1"), ("__meta__/a.txt", b"2")]) == []
    (reject,) = groups([("__train__/a.wav", b"2")])
    assert (reject.member, reject.reason) == ("__train__/a.wav", RejectReason.BAD_NAME), "audio does not vanish unsaid"


def test_a_stray_member_does_not_end_the_group_around_it() -> None:
    found = groups([("a.wav", b"1"), ("README", b"2"), ("a.txt", b"3")], carry=("txt",))
    assert outcomes(found) == [("README", "bad_name"), ("a", "wav")]
    assert found[1] == Sample("a", "a.wav", "wav", b"1", {"txt": b"3"})


@pytest.mark.parametrize("name", [b"\xff.wav", b"a\x01.wav", b"a\x7f.wav", "a\x85.wav".encode()])
def test_names_that_no_column_can_hold_are_rejected_escaped(name: bytes) -> None:
    found = read(block(name=name) + padded(b"hello") + END)
    assert [item.reason for item in found if isinstance(item, Reject)] == [RejectReason.BAD_NAME]
    assert found[0].key.isprintable()
    assert "\\x" in found[0].key


def test_a_name_too_long_to_be_held_by_the_thousand_is_rejected_cut() -> None:
    long = "d/" * reader.NAME_CHARS_MAX
    found = groups([("d" * (reader.NAME_CHARS_MAX - 4) + ".wav", b"1"), (f"{long}.wav", b"2"), ("a.wav", b"3")])
    assert [item.key for item in found] == [long[: reader.NAME_CHARS_MAX], "d" * (reader.NAME_CHARS_MAX - 4), "a"]
    assert isinstance(found[0], Reject)
    assert (found[0].reason, found[0].detail) == (
        RejectReason.BAD_NAME,
        "the name has 8196 characters; allowed are 4096",
    )
    (link,) = read(tar([(f"{long}.wav", b"")], type=tarfile.SYMTYPE, linkname="b.wav"))
    assert (link.key, len(link.key)) == (long[: reader.NAME_CHARS_MAX], reader.NAME_CHARS_MAX)


def test_a_sample_without_audio_is_rejected_with_its_suffixes() -> None:
    (found,) = groups([("a.txt", b"1"), ("a.json", b"23")])
    assert isinstance(found, Reject)
    assert (found.reason, found.member, found.num_bytes) == (RejectReason.NO_AUDIO, "a.txt", 3)
    assert "'txt', 'json'" in found.detail


def test_several_audio_members_need_a_word_which_one() -> None:
    files = [("a.wav", b"1"), ("a.mic2.wav", b"2"), ("b.wav", b"3")]
    assert outcomes(groups(files)) == [("a", "ambiguous_audio"), ("b", "wav")]
    assert outcomes(groups(files, audio_suffix="mic2.wav")) == [("a", "mic2.wav"), ("b", "wav")]
    assert outcomes(groups(files, audio_suffix="flac")) == [("a", "ambiguous_audio"), ("b", "wav")]


def test_repeated_keys_cost_one_reject_for_each_later_group() -> None:
    files = [("a.wav", b"1"), ("b.wav", b"2"), ("a.txt", b"33"), ("a.json", b"4"), ("a.txt", b"5"), ("c.wav", b"6")]
    found = groups(files, carry=("txt",))
    assert outcomes(found) == [
        ("a", "wav"),
        ("b", "wav"),
        ("a", "duplicate_key"),
        ("a", "duplicate_key"),
        ("c", "wav"),
    ]
    assert found[0] == Sample("a", "a.wav", "wav", b"1", {})
    assert isinstance(found[2], Reject)
    assert (found[2].member, found[2].num_bytes) == ("a.txt", 3)


def test_an_adjacent_repeated_suffix_starts_a_later_group() -> None:
    assert outcomes(groups([("a.wav", b"1"), ("a.WAV", b"2"), ("b.wav", b"3")])) == [
        ("a", "wav"),
        ("a", "duplicate_key"),
        ("b", "wav"),
    ]


def test_repeated_keys_can_fail_the_shard() -> None:
    data = tar([("a.wav", b"1"), ("b.wav", b"2"), ("a.wav", b"3")], format=tarfile.USTAR_FORMAT)
    with pytest.raises(TarError, match=r"offset 2048: key 'a' .* 'a.wav'"):
        read(data, duplicate_keys="fail")


class NeverReadWhole(BytesStream):
    """A stream that refuses to hand out a large piece."""

    def read_exact(self, num_bytes: int) -> bytes:
        assert num_bytes < 1 << 20
        return super().read_exact(num_bytes)


def test_what_is_too_large_or_not_wanted_is_never_held() -> None:
    large = bytes(1 << 20)
    data = tar([("a.wav", large), ("a.txt", b"1"), ("b.wav", b"2"), ("b.mp4", large)])
    found = list(read_samples(NeverReadWhole(data), len(data), ReadingConfig(sample_bytes_max=2000), ()))
    assert outcomes(found) == [("a", "too_large"), ("b", "wav")]
    assert isinstance(found[0], Reject)
    assert (found[0].member, found[0].num_bytes) == ("a.wav", 1 << 20)


def test_the_members_of_a_sample_count_together() -> None:
    files = [("a.wav", bytes(1000)), ("a.txt", bytes(1000))]
    assert outcomes(groups(files, carry=("txt",), sample_bytes_max=1999)) == [("a", "too_large")]
    assert outcomes(groups(files, carry=("txt",), sample_bytes_max=2000)) == [("a", "wav")]


def test_a_large_sidecar_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SIDECAR_BYTES_MAX", 10)
    files = [("a.txt", bytes(11)), ("a.wav", b"1"), ("b.wav", b"1"), ("b.txt", bytes(10))]
    assert outcomes(groups(files, carry=("txt",))) == [("a", "bad_sidecar"), ("b", "wav")]
    assert outcomes(groups(files)) == [("a", "wav"), ("b", "wav")]


def test_the_number_of_samples_is_bounded() -> None:
    files = [("a.wav", b""), ("README", b""), ("b.wav", b"")]
    assert len(groups(files, samples_max=3)) == 3
    with pytest.raises(DataError, match="samples_max"):
        groups(files, samples_max=2)


def test_the_members_of_a_key_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SAMPLE_MEMBERS_MAX", 3)
    files = [(f"a.{index}", b"") for index in range(4)]
    assert len(groups(files[:3])) == 1
    with pytest.raises(DataError, match="members"):
        groups(files)


def test_samples_before_a_cut_are_given_and_then_it_fails() -> None:
    data = tar([("a.wav", b"1"), ("b.wav", b"2"), ("c.wav", bytes(5000))])[:5000]
    samples = read_samples(BytesStream(data), len(data), ReadingConfig(), ())
    assert next(samples).key == "a"
    with pytest.raises(TarError, match="offset"):
        list(samples)
