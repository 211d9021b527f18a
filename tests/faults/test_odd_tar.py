"""Odd archives: every sample is a row or a reject, or the shard fails by name; nothing vanishes, nothing is mixed."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow.parquet as pq
import webdataset.tariterators

from tests.corpus import CLIPS, tar_of
from tests.faults.matrix import row
from tests.tars import END, block, padded, tar

AUDIO = [clip.read_bytes() for clip in CLIPS]


@dataclass(frozen=True)
class Odd:
    """An archive, which of the clips are rows of it under which key, and what is rejected."""

    content: bytes
    rows: Mapping[str, int] = field(default_factory=dict)
    rejects: Mapping[str, str] = field(default_factory=dict)


def judge(ground, odd: Mapping[str, Odd], failed: Mapping[str, tuple[bytes, str]] | None = None, *flags: str):
    """Run over odd shards, shards that must fail with the words given, and clean ones beside them, at once."""
    failed = failed or {}
    for name, case in odd.items():
        told = {*case.rows, *(key.removesuffix(".flac") for key in case.rejects)}
        unseen = seen_by_others(case.content) - told
        assert not unseen, f"{name}: tarfile and webdataset see {unseen}: the case forgets them"
    ground.put_clean(2)
    ground.put({f"{name}.tar": case.content for name, case in odd.items()})
    ground.put({f"{name}.tar": content for name, (content, _) in failed.items()})
    objects = ground.check(
        ground.run(*flags),
        exit_code=1 if failed else 0,
        rows={
            f"{name}.tar": {key: ground.lab.clip_ids(AUDIO[clip]) for key, clip in case.rows.items()}
            for name, case in odd.items()
        },
        rejects={f"{name}.tar": case.rejects for name, case in odd.items() if case.rejects},
        failed={f"{name}.tar": words for name, (_, words) in failed.items()},
        says=[f"{name}.tar" for name in failed],
    )
    reads = [path for path in objects if path.startswith("failures/")]
    assert len(reads) == 2 * len(failed), "a shard whose archive is at fault is tried twice"
    return objects


def seen_by_others(content: bytes) -> set[str]:
    """Keys of audio that `tarfile` or `webdataset` would give, the latter as far as it does not stop."""
    found = set()
    with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            if member.isreg() and not member.issparse() and member.name.lower().endswith(".flac"):
                found.add(key_of(member.name))
    try:
        stream = [{"url": "odd.tar", "stream": io.BytesIO(content)}]
        for sample in webdataset.tariterators.group_by_keys(webdataset.tariterators.tar_file_expander(stream)):
            if sample.get("flac"):
                found.add(key_of(f"{sample['__key__']}.flac"))
    except ValueError:  # a key with two members of one suffix
        return found
    return found


def key_of(name: str) -> str:
    """The key of a `.flac`; for a name that can have none, the name without its suffix as rejects show it."""
    folder, slash, last = name.rpartition("/")
    visible = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    visible = "".join(f"\\x{ord(one):02x}" if ord(one) < 32 else one for one in visible)
    is_keyed = visible == name and not last.startswith(".")
    return folder + slash + last.split(".")[0] if is_keyed else visible[: -len(".flac")]


def file(name: str | bytes, clip: int, kind: bytes = b"0", **fields: object) -> bytes:
    """A header of its own making and one of the clips."""
    raw = name.encode() if isinstance(name, str) else name
    return block(name=raw, size=octal(len(AUDIO[clip])), kind=kind, **fields) + padded(AUDIO[clip])


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b"".join(pax_record(keyword, value) for keyword, value in records.items())
    return block(name=b"pax", size=octal(len(body)), kind=kind) + padded(body)


def pax_record(keyword: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (keyword, value)
    length = next(number for number in range(len(rest), len(rest) + 9) if len(rest) + len(str(number)) == number)
    return b"%d" % length + rest


def clips_named(*names: str) -> list[tuple[str, bytes]]:
    return [(name, AUDIO[index]) for index, name in enumerate(names)]


@row("tar", "repeated and interleaved keys", "a member twice in a row, two keys in turns, a key again at the end")
def test_repeated_and_interleaved_keys(ground):
    duplicate = "duplicate_key"
    odd = {
        "twice": Odd(tar_of(clips_named("a.flac", "a.flac", "b.flac")), {"a": 0, "b": 2}, {"a": duplicate}),
        "turns": Odd(
            tar_of([("a.flac", AUDIO[0]), ("b.flac", AUDIO[1]), ("a.txt", b"of a"), ("b.txt", b"of b")]),
            {"a": 0, "b": 1},
            {"a": duplicate, "b": duplicate},
        ),
        "again": Odd(
            tar_of(clips_named("a.flac", "b.flac", "c.flac", "a.wav")), {"a": 0, "b": 1, "c": 2}, {"a": duplicate}
        ),
    }
    judge(ground, odd, None, "--carry=txt")


@row("tar", "repeated and interleaved keys", "the same with reading.duplicate_keys=fail")
def test_repeated_keys_that_may_not_be(ground):
    twice = tar_of(clips_named("a.flac", "b.flac", "a.flac"))
    judge(ground, {}, {"twice": (twice, "key 'a' comes again")}, "--set=reading.duplicate_keys=fail")


@row("tar", "the same key in two shards", "other audio under one key, and one shard under two names")
def test_same_key_in_two_shards(ground):
    odd = {
        "one": Odd(tar_of(clips_named("a.flac", "b.flac")), {"a": 0, "b": 1}),
        "two": Odd(tar_of(clips_named("b.flac", "a.flac")), {"b": 0, "a": 1}),
        "copy": Odd(tar_of(clips_named("b.flac", "a.flac")), {"b": 0, "a": 1}),
    }
    judge(ground, odd)


@row(
    "tar", "odd names", "dots, upper case, ../, absolute, long (GNU, PAX, ustar), not UTF-8, control characters, hidden"
)
def test_odd_names(ground):
    plain = {
        "utt.v1.flac": "utt",
        "a.b/c.flac": "a.b/c",
        "x.flac": "x",
        "X.FLAC": "X",
        "./y.flac": "./y",
        "ü/ж.flac": "ü/ж",
    }
    bad = {"../up.flac": "../up", "a/../../up.flac": "a/../../up", "/abs.flac": "/abs", ".hid.flac": ".hid.flac"}
    bad |= {"..\\w.flac": "..\\w.flac", "none": "none", "__m__/z.flac": "__m__/z.flac"}
    named = [(name, AUDIO[index % 10]) for index, name in enumerate([*plain, *bad])]
    rows = {key: index for index, key in enumerate(plain.values())}
    rejects = dict.fromkeys(bad.values(), "bad_name")
    long = "folder/" * 40 + "deep" * 60 + ".flac"
    prefixed = "folder/" * 20 + "deep.flac"
    raw = file(b"\xff\xfe.flac", 0) + file(b"a\x1b[2J.flac", 1) + file(b"ok.flac", 2) + END
    odd = {
        "gnu": Odd(tar(named, format=tarfile.GNU_FORMAT), rows, rejects),
        "pax": Odd(tar(named, format=tarfile.PAX_FORMAT), rows, rejects),
        "long-gnu": Odd(tar(clips_named(long), format=tarfile.GNU_FORMAT), {long[:-5]: 0}),
        "long-pax": Odd(tar(clips_named(long), format=tarfile.PAX_FORMAT), {long[:-5]: 0}),
        "prefix": Odd(tar(clips_named(prefixed), format=tarfile.USTAR_FORMAT), {prefixed[:-5]: 0}),
        "raw": Odd(raw, {"ok": 2}, {r"\xff\xfe.flac": "bad_name", r"a\x1b[2J.flac": "bad_name"}),
    }
    judge(ground, odd)


@row("tar", "links and devices", "hard and symbolic links, devices, a FIFO, unknown types, a volume's label")
def test_links_and_devices(ground):
    kinds = {b"1": "hard", b"2": "soft", b"3": "char", b"4": "block", b"6": "fifo"}
    links = b"".join(block(name=name.encode() + b".flac", size=octal(0), kind=kind) for kind, name in kinds.items())
    unknown = b"".join(file(kind + b".flac", 1, kind=kind) for kind in (b"Z", b"M", b"N", b"V"))
    folders = block(name=b"d.flac/", kind=b"5", size=octal(0)) + block(name=b"e/", kind=b"\0", size=octal(0))
    names = [*kinds.values(), "Z", "M", "N", "V"]
    odd = Odd(
        file("a.flac", 0) + links + folders + unknown + file("b.flac", 2, kind=b"7") + END,
        {"a": 0, "b": 2},
        {f"{name}.flac": "not_a_file" for name in names},
    )
    judge(ground, {"links": odd})


def sparse_gnu(name: bytes, clip: int) -> bytes:
    """The clip as an old GNU sparse file in two pieces, with a further block of map."""
    header = bytearray(block(name=name, size=octal(len(AUDIO[clip])), kind=b"S", magic=b"ustar  \0"))
    header[386:410] = octal(0) + octal(1024)
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = octal(4096) + octal(len(AUDIO[clip]) - 1024)
    return bytes(header) + padded(more) + padded(AUDIO[clip])


@row("tar", "sparse members", "old GNU, and PAX 0.0, 0.1 and 1.0")
def test_sparse_members(ground):
    records = {
        "0-0": {b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"1", b"GNU.sparse.offset": b"0"},
        "0-1": {b"GNU.sparse.map": b"0,9", b"GNU.sparse.size": b"9", b"GNU.sparse.name": b"0-1.flac"},
        "1-0": {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"1-0.flac"},
    }
    modern = b"".join(pax(found) + file(f"{name}.flac", 3) for name, found in records.items())
    odd = Odd(
        file("a.flac", 0) + sparse_gnu(b"old.flac", 1) + modern + file("b.flac", 2) + END,
        {"a": 0, "b": 2},
        {f"{name}.flac": "not_a_file" for name in ("old", *records)},
    )
    ground.put_clean(2)
    ground.put({"sparse.tar": odd.content})  # `tarfile` fails on maps that are none, so it is no witness here
    rows = {key: ground.lab.clip_ids(AUDIO[clip]) for key, clip in odd.rows.items()}
    ground.check(ground.run(), rows={"sparse.tar": rows}, rejects={"sparse.tar": odd.rejects})


@row("tar", "absurd size fields", "octal junk, base 256 huge and negative, past the end, none, two that differ, in PAX")
def test_absurd_sizes(ground):
    first, last = file("a.flac", 0), file("z.flac", 1)

    def sized(size: bytes, before: bytes = b"") -> bytes:
        return first + before + block(name=b"b.flac", size=size) + padded(AUDIO[2]) + last + END

    swallowing = b"%d" % (len(padded(AUDIO[2])) + len(last))
    failed = {
        "junk": (sized(b"0000000009x\0"), "allowed are octal digits"),
        "minus": (sized(b"-0000000512\0"), "allowed are octal digits"),
        "huge": (sized(b"\x80" + b"\x7f" * 11), "the shard has"),
        "negative": (sized(b"\xff" * 11 + b"\0"), "a size of -256 bytes"),
        "past": (sized(b"77777777777\0"), "says 8589934591 bytes, but the shard has"),
        "none": (sized(bytes(12)), "no tar header"),
        "short": (sized(octal(512)), "no tar header"),
        "two": (sized(octal(len(AUDIO[2])), pax({b"size": swallowing})), "by a pax header before it"),
        "global": (sized(octal(len(AUDIO[2])), pax({b"size": swallowing}, b"g")), "by a pax header before it"),
        "pax": (sized(octal(0), pax({b"size": b"-1"})), "allowed are decimal digits"),
        "name": (first + block(name=b"n", kind=b"L", size=b"77777777777\0") + last + END, "an extension header says"),
    }
    judge(ground, {}, failed)


@row("tar", "members hidden behind forged headers", "right checksums: data of a directory, long names, sparse maps")
def test_hidden_members(ground):
    hidden = file("hidden.flac", 1)
    around = (file("a.flac", 0), file("z.flac", 2) + END)
    link = block(name=b"link.flac", kind=b"2", size=octal(0))

    def between(middle: bytes) -> bytes:
        return around[0] + middle + around[1]

    def bearing(kind: bytes, name: bytes = b"forged.flac") -> bytes:
        return block(name=name, kind=kind, size=octal(len(hidden))) + hidden

    swallowed_map = bytearray(sparse_gnu(b"s.flac", 3)[:512]) + hidden
    odd = {
        "dump": Odd(between(bearing(b"D", b"folder/")), {"a": 0, "z": 2}, {"folder/": "not_a_file"}),
        "unknown": Odd(between(bearing(b"Q")), {"a": 0, "z": 2}, {"forged.flac": "not_a_file"}),
    }
    failed = {
        "long-link": (between(bearing(b"K") + link), "holds more than a name"),
        "long-name": (between(bearing(b"L") + link), "holds more than a name"),
        "link-before-file": (
            between(block(name=b"k", kind=b"K", size=octal(5)) + padded(b"name\0") + hidden),
            "which is no link",
        ),
        "sparse": (between(bytes(swallowed_map)), "octal"),
        "attributes": (between(bearing(b"x") + link), "where a record"),
        "global": (between(bearing(b"g") + link), "where a record"),
        "link": (between(block(name=b"l", kind=b"1", size=octal(512)) + b"\1" * 512), "no tar header"),
    }
    judge(ground, odd, failed)


def zeros_packed(num_bytes: int) -> bytes:
    return gzip.compress(bytes(num_bytes), compresslevel=1, mtime=0)


@row("tar", "compressed shards and a gzip bomb", "a .tar that is gzip, bzip2 or xz; 1 GiB of zeros as a shard")
def test_compressed(ground):
    plain = tar_of(clips_named("a.flac"))
    bomb = b"".join([zeros_packed(64 << 20)] * 16)  # members of one gzip file follow one another
    failed = {
        "gzip": (gzip.compress(plain, mtime=0), "compressed with gzip"),
        "xz": (lzma.compress(plain), "compressed with xz"),
        "bomb": (bomb, "compressed with gzip"),
    }
    judge(ground, {}, failed)


@row("tar", "a gzip bomb as a member", "as a sidecar, carried byte for byte, and under the name of audio")
def test_bomb_as_member(ground):
    bomb = zeros_packed(256 << 20)
    content = tar_of([("a.flac", AUDIO[0]), ("a.bin.gz", bomb), ("b.flac", bomb), ("c.flac.gz", AUDIO[1])])
    odd = Odd(content, {"a": 0}, {"b": "unreadable", "c": "no_audio"})
    objects = judge(ground, {"bomb": odd}, None, "--carry=bin.gz")
    tables = [pq.read_table(io.BytesIO(data)) for path, data in objects.items() if path.startswith("tokens/bomb-")]
    assert [table["bin.gz"].to_pylist() for table in tables] == [[bomb]]


def of_cpython() -> Iterator[tuple[bytes, dict[str, int], dict[str, str]]]:
    """Members such as those of CPython's own `testtar.tar`, each with its rows and rejects."""
    latin = "umlauts-ÄÖÜ".encode("latin-1")
    shown = r"umlauts-\xc4\xd6\xdc"
    yield file("ustar/conttype.flac", 0, kind=b"7"), {"ustar/conttype": 0}, {}
    yield block(name=b"ustar/dirtype-with-size/", kind=b"5", size=octal(255)), {}, {}
    yield file(latin + b".flac", 1), {}, {shown + ".flac": "bad_name"}
    yield file("name.flac", 2, prefix=b"ustar/" + b"12345/" * 20), {"ustar/" + "12345/" * 20 + "/name": 2}, {}
    yield file("old-v7.flac", 3, kind=b"\0", magic=b""), {"old-v7": 3}, {}
    yield block(name=b"dirtype-old-v7/", kind=b"\0", magic=b"", size=octal(0)), {}, {}
    yield file("signed-ж.flac", 4, is_signed=True), {"signed-ж": 4}, {}
    yield file("signed-v7-ж.flac", 5, kind=b"\0", magic=b"", is_signed=True), {"signed-v7-ж": 5}, {}
    base_256 = b"\x80" + len(AUDIO[6]).to_bytes(11, "big")
    yield block(name=b"gnu-256.flac", size=base_256) + padded(AUDIO[6]), {"gnu-256": 6}, {}
    yield pax({b"path": b"suntar.flac"}, b"X") + file("s", 7), {"suntar": 7}, {}
    yield pax({b"path": "pax/ÄÖÜ.flac".encode(), b"VENDOR.umlauts": "ÄÖ".encode()}) + file("p", 8), {"pax/ÄÖÜ": 8}, {}
    yield pax({b"path": latin + b"-bad.flac"}) + file("b", 9), {}, {shown + "-bad.flac": "bad_name"}
    binary = {b"hdrcharset": b"BINARY", b"path": latin + b"-binary.flac"}
    yield pax(binary) + file("h", 0), {}, {shown + "-binary.flac": "bad_name"}
    yield pax({b"uid": b"123", b"mtime": b"-0.5", b"foo": b"bar"}, b"g") + file("pax/g.flac", 1), {"pax/g": 1}, {}
    yield pax({b"path": b"folder.flac/"}) + block(name=b"f/", kind=b"5", size=octal(0)), {}, {}
    yield file("misc/eof.flac", 2), {"misc/eof": 2}, {}


@row(
    "tar",
    "the odd members of CPython's tests",
    "contiguous, V7, signed checksums, base 256, Sun and global PAX, Latin-1",
)
def test_odd_members_of_cpython(ground):
    whole, rows, rejects = b"", {}, {}
    for content, its_rows, its_rejects in of_cpython():
        whole, rows, rejects = whole + content, rows | its_rows, rejects | its_rejects
    judge(ground, {"cpython": Odd(whole + END, rows, rejects)})
