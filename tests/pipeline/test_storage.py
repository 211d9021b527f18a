"""What every store must do: the same tests on local files and on S3 (moto)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError, ObjectChangedError, ObjectMissingError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import (
    Store,
    Stores,
    is_remote,
    join,
    normal_uri,
    open_store,
    probe_put_if_absent,
    store_options,
)

PART_BYTES = 5 << 20


@pytest.fixture(params=["local", "file-uri", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place in each kind of store."""
    if request.param == "s3":
        return join(request.getfixturevalue("bucket"), "place")
    return str(tmp_path) if request.param == "local" else tmp_path.as_uri()


@pytest.fixture(scope="module")
def stores() -> Stores:
    """Shared by the tests, since opening a client of S3 takes longer than most of them."""
    return Stores(StorageConfig(part_bytes=PART_BYTES), RetryConfig(attempts_max=1))


@pytest.fixture
def store(base: str, stores: Stores) -> Store:
    return stores(base)


def test_put_then_everything_says_the_same(store: Store, base: str) -> None:
    uri = join(base, "a", "b c+%é.bin")
    put = store.put(uri, b"0123456789")
    assert put.size_bytes == 10
    assert put.etag
    assert '"' not in put.etag
    assert store.stat(uri) == put
    assert list(store.list(base)) == [put]
    assert store.read(put.uri, bytes_max=10) == b"0123456789"
    assert put.uri == normal_uri(put.uri)


def test_put_replaces_and_changes_the_etag(store: Store, base: str) -> None:
    uri = join(base, "a")
    first = store.put(uri, b"old")
    second = store.put(uri, b"newer")
    assert first.etag != second.etag
    assert store.read(uri, bytes_max=5) == b"newer"


def test_put_of_nothing(store: Store, base: str) -> None:
    uri = join(base, "empty")
    assert store.put(uri, b"").size_bytes == 0
    assert store.read(uri, bytes_max=0) == b""
    assert [info.size_bytes for info in store.list(base)] == [0]
    assert store.read_range(uri, 0, 0, etag=store.stat(uri).etag) == b""


def test_read_refuses_an_object_above_the_bound(store: Store, base: str) -> None:
    uri = join(base, "a")
    store.put(uri, b"12345")
    with pytest.raises(DataError, match="5 bytes; at most 4"):
        store.read(uri, bytes_max=4)


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(0, 10, b"0123456789"), (3, 7, b"3456"), (9, 10, b"9"), (4, 4, b"")]
)
def test_read_range_is_exact(store: Store, base: str, start: int, end: int, expected: bytes) -> None:
    info = store.put(join(base, "a"), b"0123456789")
    assert store.read_range(info.uri, start, end, etag=info.etag) == expected
    assert store.read_range(info.uri, start, end, etag=None) == expected


def test_read_range_refuses_another_version_of_the_object(store: Store, base: str) -> None:
    uri = join(base, "a")
    old = store.put(uri, b"0123456789")
    store.put(uri, b"9876543210!")
    with pytest.raises(ObjectChangedError):
        store.read_range(uri, 0, 10, etag=old.etag)


@pytest.mark.parametrize(("start", "end"), [(5, 11), (10, 12), (20, 30)])
def test_read_range_past_the_end_says_that_the_object_changed(store: Store, base: str, start: int, end: int) -> None:
    info = store.put(join(base, "a"), b"0123456789")
    with pytest.raises(ObjectChangedError):
        store.read_range(info.uri, start, end, etag=info.etag)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 2)])
def test_read_range_refuses_what_is_no_range(store: Store, base: str, start: int, end: int) -> None:
    info = store.put(join(base, "a"), b"0123456789")
    with pytest.raises(ValueError, match="is not within"):
        store.read_range(info.uri, start, end, etag=None)


def test_what_is_not_there(store: Store, base: str) -> None:
    uri = join(base, "nothing")
    with pytest.raises(ObjectMissingError):
        store.stat(uri)
    with pytest.raises(ObjectMissingError):
        store.read(uri, bytes_max=10)
    with pytest.raises(ObjectMissingError):
        store.read_range(uri, 0, 1, etag=None)
    assert list(store.list(uri)) == []
    store.delete(uri)


def test_a_folder_is_no_object(store: Store, base: str) -> None:
    store.put(join(base, "folder", "a"), b"a")
    with pytest.raises(ObjectMissingError):
        store.stat(join(base, "folder"))
    with pytest.raises(ObjectMissingError):
        store.read(join(base, "folder"), bytes_max=10)


def test_delete(store: Store, base: str) -> None:
    uri = join(base, "a")
    store.put(uri, b"a")
    store.delete(uri)
    assert list(store.list(base)) == []


def test_list_is_recursive_in_name_order_and_of_one_folder_alone(store: Store, base: str) -> None:
    names = ["in/a-b", "in/a", "in/a.d/x", "in/b/c/d", "in/b/c.e", "in/z", "in2/other", "in/Z"]
    for name in names:
        store.put(join(base, name), name.encode())
    root = normal_uri(base)
    expected = sorted(join(root, name) for name in names if name.startswith("in/"))
    assert [info.uri for info in store.list(join(base, "in"))] == expected
    assert [info.uri for info in store.list(join(base, "in") + "/")] == expected


@pytest.mark.parametrize("num_bytes", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 3])
def test_put_file_whole_or_in_parts(
    store: Store, base: str, tmp_path_factory: pytest.TempPathFactory, num_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("source") / "file"
    content = (b"0123456789abcdef" * (num_bytes // 16 + 1))[:num_bytes]
    path.write_bytes(content)
    info = store.put_file(join(base, "copy"), path)
    assert info.size_bytes == num_bytes
    assert store.stat(info.uri) == info
    assert store.read(info.uri, bytes_max=num_bytes) == content


def test_put_if_absent_lets_the_first_through_and_says_what_it_wrote(store: Store, base: str) -> None:
    uri = join(base, "once")
    written = store.put_if_absent(uri, b"first")
    assert written == store.stat(uri)
    assert store.put_if_absent(uri, b"second") is None
    assert store.read(uri, bytes_max=10) == b"first"


def test_put_if_absent_after_delete(store: Store, base: str) -> None:
    uri = join(base, "once")
    store.put_if_absent(uri, b"first")
    store.delete(uri)
    assert store.put_if_absent(uri, b"second") is not None


def test_sixteen_racers_on_one_key_have_one_winner(store: Store, base: str) -> None:
    racers = 16
    for key in range(5):
        uri = join(base, f"race-{key}")
        start = threading.Barrier(racers)

        def race(racer: int, uri: str = uri, start: threading.Barrier = start) -> bytes | None:
            start.wait()
            data = f"racer {racer}".encode()
            return data if store.put_if_absent(uri, data) else None

        with ThreadPoolExecutor(racers) as pool:
            winners = [data for data in pool.map(race, range(racers)) if data is not None]
        assert [store.read(uri, bytes_max=100)] == winners
    assert len(list(store.list(base))) == 5


def test_a_place_that_keeps_its_promise_passes_the_probe_and_is_left_clean(store: Store, base: str) -> None:
    probe_put_if_absent(store, base)
    assert list(store.list(base)) == []


def test_stores_opens_each_kind_once(base: str, stores: Stores) -> None:
    assert stores(base) is stores(join(base, "other"))


@pytest.mark.parametrize("uri", ["gs://bucket/key", "hf://owner/name", "http://host/file"])
def test_unknown_schemes_are_refused_with_what_is_allowed(uri: str) -> None:
    for refused in (is_remote, normal_uri, lambda uri: open_store(uri, StorageConfig(), RetryConfig())):
        with pytest.raises(ConfigError, match=r"allowed: a plain path.*s3"):
            refused(uri)


def test_normal_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normal_uri("a/../b.tar") == str(tmp_path / "b.tar")
    assert normal_uri("file:///x/a%20b.tar") == "/x/a b.tar"
    assert normal_uri("file://localhost/x/a?#b") == "/x/a?#b"
    assert normal_uri("s3://bucket/a/../b.tar") == "s3://bucket/a/../b.tar"
    with pytest.raises(ConfigError, match="names the host"):
        normal_uri("file://host/x")


def test_store_options_reach_the_same_store() -> None:
    storage = StorageConfig(endpoint_url="http://127.0.0.1:1", profile="p", anonymous=True)
    options = store_options("s3://bucket/key", storage)
    assert options == {"anon": True, "use_listings_cache": False, "endpoint_url": "http://127.0.0.1:1", "profile": "p"}
    assert store_options("/local", storage) == {}
    assert "endpoint_url" not in store_options("s3://bucket/key", StorageConfig())


def test_threads_that_ask_at_once_share_one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    all_ask = threading.Barrier(4)

    def open_slowly(uri: str, *_: object) -> object:
        opened.append(uri)
        threading.Event().wait(0.2)  # as long as s3fs takes to import, and the others come in
        return object()

    def ask(_: int) -> object:
        all_ask.wait()
        return stores("s3://bucket/a")

    monkeypatch.setattr("pipeline.storage.open_store", open_slowly)
    stores = Stores(StorageConfig(), RetryConfig())
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert len(opened) == 1
