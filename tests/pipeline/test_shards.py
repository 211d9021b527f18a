"""What inputs stand for: files, globs, braces, folders and lists, on local files and on S3 (moto)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import shards
from pipeline.errors import ConfigError, RefusedError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.shards import Listing, _unbraced, list_shards
from pipeline.storage import Store, Stores, join
from pipeline.types import ObjectInfo, Shard
from tests.conftest import fresh_bucket

FILES = (
    "train/a-000.tar",
    "train/a-001.tar",
    "train/a-002.tar",
    "train/b/b-000.tar",
    "train/b/deep/c.tar",
    "train/b/notes.txt",
    "train/packed.tar.gz",
    "train/._a-000.tar",
    "train/.cache/old.tar",
    "dev/d[1].tar",
    "dev/d1.tar",
    "empty.tar",
)


STORES = Stores(StorageConfig(), RetryConfig(attempts_max=1))


@pytest.fixture(scope="module", params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A place in each kind of store that holds `FILES`, each with its name as content; `empty.tar` is empty."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "local":
            place = str(tmp_path_factory.mktemp("shards"))
        else:
            place = fresh_bucket(request.getfixturevalue("moto_server"), monkeypatch)
        for name in FILES:
            STORES(place).put(join(place, name), b"" if name == "empty.tar" else name.encode())
        yield place


def listed(base: str, *inputs: str) -> Listing:
    return list_shards([f"@{join(base, name[1:])}" if name[0] == "@" else join(base, name) for name in inputs], STORES)


def found(base: str, *inputs: str) -> list[str]:
    """The names that are found; nothing may be missing."""
    listing = listed(base, *inputs)
    assert listing.missing == ()
    return [shard.uri.removeprefix(base + "/") for shard in listing.shards]


TRAIN = ["train/a-000.tar", "train/a-001.tar", "train/a-002.tar", "train/b/b-000.tar", "train/b/deep/c.tar"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train/a-001.tar", ["train/a-001.tar"]),
        ("train/packed.tar.gz", ["train/packed.tar.gz"]),
        ("train/b/notes.txt", ["train/b/notes.txt"]),
        ("empty.tar", ["empty.tar"]),
        ("train/", TRAIN),
        ("train", TRAIN),
        ("train/*.tar", TRAIN[:3]),
        ("train/a-00?.tar", TRAIN[:3]),
        ("train/a-00[02].tar", [TRAIN[0], TRAIN[2]]),
        ("train/a-00[!02].tar", [TRAIN[1]]),
        ("train/*/*.tar", [TRAIN[3]]),
        ("train/**/*.tar", TRAIN),
        ("**/c.tar", [TRAIN[4]]),
        ("train/b*/", TRAIN[3:]),
        ("*/d*.tar", ["dev/d1.tar", "dev/d[1].tar"]),
        ("dev/d[1].tar", ["dev/d1.tar"]),
        ("train/._*.tar", ["train/._a-000.tar"]),
        ("train/a-{000..002}.tar", TRAIN[:3]),
        ("train/a-{002,000}.tar", [TRAIN[0], TRAIN[2]]),
        ("train/{a,b/b}-*0.tar", [TRAIN[0], TRAIN[3]]),
        ("{train,dev}/", ["dev/d1.tar", "dev/d[1].tar", *TRAIN]),
        ("{train,dev}", ["dev/d1.tar", "dev/d[1].tar", *TRAIN]),
    ],
)
def test_what_an_input_stands_for(base: str, given: str, expected: list[str]) -> None:
    assert found(base, given) == expected


def test_shards_carry_size_and_etag_as_stat_tells_them(base: str) -> None:
    for given in ("train/a-000.tar", "train/", "train/a-{000..001}.tar"):
        for shard in listed(base, given).shards:
            info = STORES(base).stat(shard.uri)
            assert (shard.size_bytes, shard.etag) == (info.size_bytes, info.etag)
            assert shard.size_bytes > 0


def test_several_inputs_give_each_shard_once_in_uri_order(base: str) -> None:
    inputs = ["train/b/", "train/a-00{2..0}.tar", "train/", "train/a-000.tar", "train/*.tar"]
    assert found(base, *inputs) == found(base, *reversed(inputs)) == TRAIN


def test_named_entries_that_are_not_there_are_missing_by_name(base: str) -> None:
    listing = listed(base, "train/a-{001..004}.tar", "no-folder/x.tar", "nothing")
    assert [shard.uri for shard in listing.shards] == [join(base, TRAIN[1]), join(base, TRAIN[2])]
    names = ["no-folder/x.tar", "nothing", "train/a-003.tar", "train/a-004.tar"]
    assert listing.missing == tuple(join(base, name) for name in names)


@pytest.mark.parametrize("given", ["train/*.wav", "nothing/", "train/b/deep/**/x-*.tar", "{train,nothing}/*.tar"])
def test_a_search_without_a_find_is_refused_by_name(base: str, given: str) -> None:
    with pytest.raises(RefusedError, match=r"matches nothing: no object .* was found below") as caught:
        listed(base, given)
    assert base in str(caught.value)


def test_a_list_file(base: str) -> None:
    lines = ["\ufeff# a comment", "", "a-000.tar  ", "b/b-000.tar", join(base, "dev/d[1].tar"), "a-009.tar", "b/deep/"]
    STORES(base).put(join(base, "train/list.txt"), "\r\n".join(lines).encode())
    listing = listed(base, "@train/list.txt")
    names = ["dev/d[1].tar", "train/a-000.tar", "train/b/b-000.tar", "train/b/deep/c.tar"]
    assert [shard.uri for shard in listing.shards] == [join(base, name) for name in names]
    assert listing.missing == (join(base, "train/a-009.tar"),)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, RefusedError, "is not there"),
        (b"# nothing\n", RefusedError, "is empty"),
        (b"pipe:cat x.tar\n", ConfigError, "run programs"),
        (b"http://host/x.tar\n", ConfigError, "is not known"),
        (b"\xff\xfe", ConfigError, "utf-8"),
    ],
)
def test_a_bad_list_file_is_refused(base: str, content: bytes | None, error: type[Exception], words: str) -> None:
    if content is None:
        STORES(base).delete(join(base, "list.txt"))
    else:
        STORES(base).put(join(base, "list.txt"), content)
    with pytest.raises(error, match=words) as caught:
        listed(base, "@list.txt")
    assert "list.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a-{1..2.tar", "Unbalanced"),
        ("a-{0..99999999999}.tar", "at most 10000000"),
        ("x{" + "{a,b}" * 40 + ",c}.tar", "at most 10000000"),  # braceexpand would hold all 2^40 at once
        ("x{" + "{a..z}" * 9 + ",c}.tar", "at most 10000000"),
        ("{0..999}" * 3 + ".tar", "at most 10000000"),
        ("{" + "0" * 4000 + "..9999999}.tar", "characters"),
        ("{" * 3000 + "a,b" + "}" * 3000, "nested more than 32 deep"),
        ("a\0b.tar", "NUL"),
        ("a**b/x.tar", "entire path component"),
        ("s3://buck*/x.tar", "a bucket's name cannot be a glob"),
        ("s3://key:secret@bucket/x.tar", "has credentials in it"),
        ("", "names nothing"),
        ("@", "names nothing"),
    ],
)
def test_an_input_that_cannot_be_understood_is_refused(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        list_shards([given], STORES)
    assert "input" in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "{http://u:secret@h/x,}",
        "s3:{//k:secret@b/x,}{",
        "{s3://k:secret@b/x,}.tar",
        "s3{://k:secret@,}*/x",
        "https://h/x?sig=secret",
    ],
)
def test_no_refusal_of_an_input_holds_a_secret(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list_shards([given], STORES)
    assert "secret" not in str(caught.value)


def test_a_glob_takes_no_time_on_a_name_made_for_it(tmp_path: Path) -> None:
    for letter in "ab":
        (tmp_path / (letter * 250 + ".tar")).write_bytes(b"x")
    before_s = time.process_time()
    with pytest.raises(RefusedError, match="matches nothing"):
        list_shards([f"{tmp_path}/{'*a' * 30}*c.tar"], STORES)
    assert time.process_time() - before_s < 10  # hours, when each star goes back behind the one before it
    assert len(list_shards([f"{tmp_path}/{'*a' * 30}*.tar"], STORES).shards) == 1


def test_a_list_of_too_many_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text("x.tar\n" * 10)
    assert len(list_shards([f"@{tmp_path}/list.txt"], STORES).missing) == 1
    monkeypatch.setattr(shards, "ENTRIES_MAX", 9)
    with pytest.raises(ConfigError, match="10 names or more"):
        list_shards([f"@{tmp_path}/list.txt"], STORES)


def test_a_missing_bucket(bucket: str) -> None:
    gone = bucket + "-gone"
    assert list_shards([f"{gone}/a.tar", f"{gone}/x-{{00..40}}.tar"], STORES).missing[:1] == (f"{gone}/a.tar",)
    for given in (f"{gone}/", gone, f"{gone}/*.tar"):
        with pytest.raises(RefusedError, match="NoSuchBucket"):
            list_shards([given], STORES)


def test_a_whole_bucket(bucket: str) -> None:
    STORES(bucket).put(f"{bucket}/a.tar", b"a")
    for given in (bucket, f"{bucket}/", f"{bucket}/*", f"{bucket}/**"):
        assert [shard.uri for shard in list_shards([given], STORES).shards] == [f"{bucket}/a.tar"]


def test_local_shards_have_one_id_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in [x]"  # the working folder's own brackets are no glob
    (folder / "sub").mkdir(parents=True)
    (folder / "a.tar").write_bytes(b"a")
    monkeypatch.chdir(folder)
    for given in ("a.tar", "./sub/../a.tar", (folder / "a.tar").as_uri(), "*.tar", "?.tar", ".", "./", "{a,}.tar"):
        shards_found = list_shards([given], STORES).shards
        assert [shard.uri for shard in shards_found] == [str(folder / "a.tar")], given


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "\udcff.tar").write_bytes(b"a")
    with pytest.raises(RefusedError, match="is not UTF-8; rename the file"):
        list_shards([str(tmp_path)], STORES)


def test_two_shards_of_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(Shard, "shard_id", "same-0123")
    with pytest.raises(RefusedError, match=r"a\.tar and .*b\.tar have one shard id"):
        list_shards([str(tmp_path)], STORES)


class CountingStore:
    """A store in memory that counts what it is asked; the other operations are not for listing."""

    def __init__(self, uris: list[str]) -> None:
        self.asked: Counter[str] = Counter()
        self._objects = {uri: ObjectInfo(uri, 1, "e") for uri in sorted(uris)}

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.asked["list"] += 1
        return (info for uri, info in self._objects.items() if uri.startswith(prefix.rstrip("/") + "/"))

    def stat(self, uri: str) -> ObjectInfo:
        self.asked["stat"] += 1
        return self._objects[uri]


@pytest.mark.parametrize(
    ("inputs", "asked"),
    [
        (["s3://b/in/{00000..19999}.tar"], {"list": 1}),
        (["s3://b/in/{00000..09999}.tar", "s3://b/in/{10000..19999}.tar"], {"list": 1}),
        (["s3://b/in/"], {"list": 1}),
        (["s3://b/in/{0,1}*.tar"], {"list": 1}),
        ([f"s3://b/in/{number:05}.tar" for number in range(shards._STATS_MAX)], {"stat": shards._STATS_MAX}),
    ],
)
def test_requests_do_not_grow_with_the_shards(inputs: list[str], asked: dict[str, int]) -> None:
    store = CountingStore([f"s3://b/in/{number:05}.tar" for number in range(20_000)])
    open_counting: Callable[[str], Store] = lambda _: store  # type: ignore[assignment, return-value]  # noqa: E731
    listing = list_shards(inputs, open_counting)
    assert len(listing.shards) == (shards._STATS_MAX if "stat" in asked else 20_000)
    assert listing.missing == ()
    assert store.asked == asked


def test_many_names_written_out_in_one_brace_are_as_long_as_each_of_them() -> None:
    names = [f"part-{number:040d}" for number in range(12_000)]
    assert _unbraced(f"s3://b/{{{','.join(names)}}}.tar") == [f"s3://b/{name}.tar" for name in names]
