from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TarError
from pipeline.tar import (
    EXTENSION_BYTES_MAX,
    TRAILING_ZEROS_BYTES_MAX,
    MemberKind,
    printable,
    read_members,
)
from pipeline.tar_header import has_valid_checksum
from tests.tars import END, BytesStream, block, padded, tar

SECOND_HEADER = 1536
FILES = [("a.wav", b"x" * 700), ("dir/b.txt", b""), ("c.flac", b"y" * 512), ("d.json", b"{}")]


def read(data: bytes) -> list[tuple[str, MemberKind, bytes]]:
    return [(m.name, m.kind, m.read()) for m in read_members(BytesStream(data), len(data))]


def names(data: bytes) -> list[str]:
    return [member.name for member in read_members(BytesStream(data), len(data))]


def kinds(data: bytes) -> list[MemberKind]:
    return [member.kind for member in read_members(BytesStream(data), len(data))]


def pax(kind: bytes, records: bytes) -> bytes:
    return block(kind=kind, size=b"%011o\0" % len(records)) + padded(records)


def fault(data: bytes) -> str:
    with pytest.raises(TarError) as caught:
        read(data)
    return str(caught.value)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_tarfile_writes(format: int) -> None:  # noqa: A002
    files = [*FILES, ("long/" * 25 + "e.wav", b"z"), ("n" * 90 + ".txt", b"w" * 2000)]
    assert read(tar(files, format=format)) == [(name, MemberKind.FILE, data) for name, data in files]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_names_of_any_length_and_script(format: int) -> None:  # noqa: A002
    files = [("ü" * 300 + "/голос.wav", b"1"), ("x" * 5000, b"2"), ("short", b"3")]
    assert read(tar(files, format=format)) == [(name, MemberKind.FILE, data) for name, data in files]


def test_payloads_that_are_not_read_are_passed_over() -> None:
    data = tar(FILES)
    members = read_members(BytesStream(data), len(data))
    assert [member.read() if member.name == "c.flac" else None for member in members] == [
        None,
        None,
        b"y" * 512,
        None,
    ]


def test_offsets_are_those_of_the_first_header() -> None:
    data = tar([("a", b"1"), ("n" * 200, b"2")], format=tarfile.GNU_FORMAT)
    assert [member.offset for member in read_members(BytesStream(data), len(data))] == [0, 1024]


def test_old_v7_headers() -> None:
    data = block(magic=b"", kind=b"\0") + padded(b"hello") + block(name=b"dir/", magic=b"", kind=b"\0") + END
    assert read(data) == [("a.txt", MemberKind.FILE, b"hello"), ("dir/", MemberKind.DIRECTORY, b"")]


def test_the_prefix_counts_in_posix_headers_only() -> None:
    posix = block(prefix=b"folder") + padded(b"hello")
    gnu = block(prefix=b"01234567", magic=b"ustar  \0") + padded(b"hello")
    assert names(posix + gnu + END) == ["folder/a.txt", "a.txt"]


def test_sizes_in_base_256() -> None:
    assert read(block(size=b"\x80" + (5).to_bytes(11, "big")) + padded(b"hello") + END)[0][2] == b"hello"


def test_checksums_over_signed_bytes() -> None:
    data = block(name="ä.txt".encode(), is_signed=True) + padded(b"hello") + END
    assert names(data) == ["ä.txt"]


def test_pax_size_and_path_count_before_the_header() -> None:
    records = b"15 path=b.flac\n9 size=5\n"
    assert read(pax(b"x", records) + block(size=b"00000000000\0") + padded(b"hello") + END) == [
        ("b.flac", MemberKind.FILE, b"hello")
    ]


def test_global_pax_records_hold_until_the_end() -> None:
    records = b"22 comment=from a git\n"
    assert names(pax(b"g", records) + block() + padded(b"hello") + END) == ["a.txt"]


def test_a_members_own_pax_records_come_before_global_ones() -> None:
    both = pax(b"g", b"15 path=g.flac\n") + pax(b"x", b"15 path=x.flac\n") + block() + padded(b"hello")
    assert names(both + block() + padded(b"hello") + END) == ["x.flac", "g.flac"]


def test_the_first_of_two_headers_that_name_a_member_counts_as_for_tarfile() -> None:
    gnu = block(kind=b"L", magic=b"ustar  \0", size=b"00000000007\0") + padded(b"g.flac\0")
    one, other = pax(b"x", b"15 path=x.flac\n"), pax(b"x", b"15 path=y.flac\n")
    for first, second, name in ((gnu, one, "g.flac"), (one, gnu, "x.flac"), (one, other, "x.flac")):
        data = first + second + block() + padded(b"hello") + END
        assert names(data) == [name]
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == [name]


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (tarfile.SYMTYPE, MemberKind.SYMBOLIC_LINK),
        (tarfile.LNKTYPE, MemberKind.HARD_LINK),
        (tarfile.CHRTYPE, MemberKind.DEVICE),
        (tarfile.FIFOTYPE, MemberKind.FIFO),
        (tarfile.DIRTYPE, MemberKind.DIRECTORY),
    ],
)
def test_members_without_data(type_: bytes, kind: MemberKind) -> None:
    odd = tar([("odd", b"")], type=type_, linkname="t" * 200)
    archive = odd[: odd.rindex(b"odd") // 512 * 512 + 512] + tar(FILES)
    assert kinds(archive)[0] is kind
    assert names(archive)[1:] == [name for name, _ in FILES]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_a_size_says_nothing_where_there_is_no_data(kind: bytes) -> None:
    # Some programs write a hard link with the size of its file.
    assert read(block(kind=kind) + block() + padded(b"hello") + END)[1][2] == b"hello"


def test_unknown_members_are_passed_over_by_their_size() -> None:
    assert kinds(block(kind=b"Z") + padded(b"hello") + block() + padded(b"hello") + END) == [
        MemberKind.UNKNOWN,
        MemberKind.FILE,
    ]


def sparse(size_bytes: int, *, mapped: bytes = b"00000000004\0", is_continued: bool = True) -> bytes:
    """An old GNU sparse header that says so many bytes, and two blocks of its map: 4 bytes in the last."""
    header = bytearray(block(kind=b"S", magic=b"ustar  \0", size=b"%011o\0" % size_bytes))
    header[386:410] = b"00000000000\0" + mapped
    header[482] = is_continued
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more, last = bytearray(512), bytearray(512)
    more[504] = 1
    last[:24] = b"00000010000\0" + mapped
    return bytes(header + more + last if is_continued else header)


def test_sparse_files_of_gnu_are_named_and_passed_over() -> None:
    archive = sparse(8) + padded(b"hellofoo") + block() + padded(b"hello") + END
    assert kinds(archive) == [MemberKind.SPARSE_FILE, MemberKind.FILE]


def test_a_sparse_map_that_is_none_hides_no_member() -> None:
    member = block() + padded(b"hello")
    assert "the map of a sparse file comes to 8 bytes" in fault(sparse(5) + padded(b"hello") + member + END)
    assert "octal" in fault(sparse(4, mapped=b"audio in it \0") + padded(b"hell") + member + END)
    swallowed = sparse(0)[:512] + member
    assert "octal" in fault(swallowed + END)


def test_sparse_files_of_pax_bear_their_real_name() -> None:
    records = b"22 GNU.sparse.major=1\n26 GNU.sparse.name=b.flac\n"
    archive = pax(b"x", records) + block() + padded(b"hello") + END
    assert [(m.name, m.kind) for m in read_members(BytesStream(archive), len(archive))] == [
        ("b.flac", MemberKind.SPARSE_FILE)
    ]


def test_names_that_are_not_utf_8_are_kept_and_can_be_shown() -> None:
    name = names(block(name=b"\xff\x01.wav") + padded(b"hello") + END)[0]
    assert name == "\udcff\x01.wav"
    assert printable(name) == r"\xff\x01.wav"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_anywhere_is_an_error(format: int) -> None:  # noqa: A002
    data = tar([*FILES, ("n" * (99 if format == tarfile.USTAR_FORMAT else 150), b"end")], format=format)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    for length in range(end):
        assert "offset" in fault(data[:length])
    for length in range(end, len(data)):
        read(data[:length])


def test_a_flipped_bit_in_a_header_is_an_error() -> None:
    data = tar(FILES, format=tarfile.USTAR_FORMAT)
    whole = read(data)
    for bit in range(512 * 8):
        damaged = bytearray(data)
        damaged[SECOND_HEADER + bit // 8] ^= 1 << bit % 8
        if 148 <= bit // 8 < 156 and has_valid_checksum(bytes(damaged[SECOND_HEADER : SECOND_HEADER + 512])):
            assert read(bytes(damaged)) == whole  # the checksum written otherwise, with a blank for a zero
        else:
            assert f"offset {SECOND_HEADER}" in fault(bytes(damaged))


def test_a_hole_of_zeros_over_a_header_is_an_error() -> None:
    data = tar(FILES, format=tarfile.USTAR_FORMAT)
    for start in range(0, 3 * 512, 512):
        for stop in range(2048, 5 * 512, 512):
            assert "offset" in fault(data[:start] + bytes(stop - start) + data[stop:])


def test_one_block_of_zeros_between_members_is_a_hole() -> None:
    member = block() + padded(b"hello")
    assert "offset 1024" in fault(member + bytes(512) + member + END)


def test_a_second_archive_is_an_error() -> None:
    found = fault(tar(FILES) + tar(FILES))
    assert "a further tar header" in found
    assert "offset 10240" in found


@pytest.mark.parametrize("junk", [b"x", bytes(700) + b"x", bytes(1_500) + b"junk" * 100])
def test_junk_after_the_end_is_an_error(junk: bytes) -> None:
    data = tar(FILES)
    assert f"offset {len(data) + junk.index(junk.strip(bytes(1)))}" in fault(data + junk)


def test_a_tail_of_zeros_is_no_end() -> None:
    """A download that was preallocated and broke off: members vanish behind what looks like an archive's padding."""
    data = tar([(f"c{n:02d}.wav", bytes([n + 1]) * 3000) for n in range(20)])
    for start in range(0, len(data) - 20_480, 512):
        assert "members were lost" in fault(data[:start] + bytes(len(data) - start))


def test_padding_is_let_in_up_to_a_bound() -> None:
    data = block() + padded(b"hello") + END
    assert len(read(data + bytes(TRAILING_ZEROS_BYTES_MAX))) == 1
    assert "members were lost" in fault(data + bytes(TRAILING_ZEROS_BYTES_MAX + 1))


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("size_bytes", [100, 5000])
def test_compressed_shards_are_named(magic: bytes, size_bytes: int) -> None:
    assert "decompress" in fault(magic.ljust(size_bytes, b"\x77"))


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF" * 1000, bytes(511), bytes(512), b"\xff" * 512])
def test_what_is_no_archive_is_an_error(data: bytes) -> None:
    assert fault(data).startswith("offset 0") or fault(data).startswith("offset 512")


def test_an_archive_without_members_is_whole() -> None:
    assert read(tar([])) == []


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (b"\xff" * 12, "-1"),
        (b"77777777777\0", "8589934591"),
        (b"\x80" + b"\x7f" * 11, "says"),
        (b"0000000000x\0", "octal"),
        (b"-0000000005\0", "octal"),
    ],
)
def test_absurd_sizes_are_errors(size: bytes, found: str) -> None:
    assert found in fault(block(size=size) + padded(b"hello") + END)


def test_an_unknown_format_mark_is_an_error() -> None:
    assert "ustart" in fault(block(magic=b"ustart00") + padded(b"hello") + END)


@pytest.mark.parametrize(
    "records",
    [
        b"99 path=b.flac\n",
        b"path=b.flac\n",
        b"15 path=b.flac ",
        b"9 size=-1\n",
        b"8 size=\n",
        b"0 path=b\n",
        b"11 pathb.f\n",
        b"99999999999999999999999999999 path=b\n",
        b"10 size=x\n",
    ],
)
def test_damaged_pax_records_are_errors(records: bytes) -> None:
    archive = pax(b"x", records) + block() + padded(b"hello") + END
    assert "offset" in fault(archive)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_long_extension_headers_are_errors(kind: bytes) -> None:
    size = EXTENSION_BYTES_MAX + 1
    assert "extension" in fault(block(kind=kind, size=b"%011o\0" % size) + padded(bytes(size)) + END)


@pytest.mark.parametrize("kind", [b"K", b"L"])
def test_a_long_name_with_members_in_it_is_an_error(kind: bytes) -> None:
    hidden = b"name\0".ljust(512, b"\0") + block() + padded(b"hello")
    for payload in (hidden, block() + padded(b"hello")):
        archive = block(kind=kind, size=b"%011o\0" % len(payload)) + payload + block(kind=b"2") + END
        assert "holds more than a name" in fault(archive)
    padded_name = block(kind=kind, size=b"00000001000\0") + padded(b"name\0") + block(kind=b"2") + END
    assert names(padded_name) == ["name" if kind == b"L" else "a.txt"]


def test_a_long_link_name_before_no_link_is_an_error() -> None:
    long = block(kind=b"K", size=b"00000000005\0") + padded(b"name\0")
    assert kinds(long + block(kind=b"2") + long + block(kind=b"1") + END) == [
        MemberKind.SYMBOLIC_LINK,
        MemberKind.HARD_LINK,
    ]
    assert "which is no link" in fault(long + block() + padded(b"hello") + END)


def test_a_directory_with_data_is_told_from_one_without() -> None:
    hidden = block() + padded(b"hello")
    archive = block(name=b"d/", kind=b"D", size=b"%011o\0" % len(hidden)) + hidden
    archive += block(name=b"e/", kind=b"D", size=bytes(12)) + END
    assert kinds(archive) == [MemberKind.DIRECTORY_WITH_DATA, MemberKind.DIRECTORY]


def test_two_sizes_of_one_member_are_an_error() -> None:
    member = block() + padded(b"hello")
    for kind in (b"x", b"g"):
        swallowing = pax(kind, b"13 size=1029\n") + member + member + END
        assert "5 bytes by its own header and 1029 by a pax" in fault(swallowing)
        assert names(pax(kind, b"9 size=5\n") + member + END) == ["a.txt"]


def test_of_files_too_large_for_the_field_the_pax_size_counts() -> None:
    saturated = pax(b"x", b"20 size=99999999999\n") + block(size=b"77777777777\0") + END
    assert "says 99999999999 bytes" in fault(saturated)


def test_an_extension_header_without_a_member_is_an_error() -> None:
    assert "offset 1024" in fault(block(kind=b"L") + padded(b"name\0") + END)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=120),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_agrees_with_tarfile(files: list[tuple[str, bytes]], format: int) -> None:  # noqa: A002
    data = tar(files, format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    assert [(name, payload) for name, _, payload in read(data)] == expected
