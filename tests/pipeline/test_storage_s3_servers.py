"""S3 against real servers: moto for what is S3's alone, rclone for signatures and as the store to refuse."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ObjectMissingError, RefusedError, StoreDeniedError, UnsafeStoreError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Store, join, open_store, probe_put_if_absent
from tests.servers import S3Server, rclone_server

PART_BYTES = 5 << 20
CONTENT = b"0123456789"
WRONG_SECRET = "SECRET-VISIBLE"


def s3_store(server: S3Server) -> Store:
    storage = StorageConfig(endpoint_url=server.endpoint, part_bytes=PART_BYTES)
    return open_store("s3://bucket", storage, RetryConfig(attempts_max=1))


@pytest.fixture
def two_parts(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(PART_BYTES + 1))
    return path


@pytest.fixture
def moto(moto_server: S3Server, bucket: str) -> Store:
    return s3_store(moto_server)


def test_a_list_of_several_pages(moto: Store, bucket: str) -> None:
    uris = [join(bucket, "many", f"{number:04}.tar") for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda uri: moto.put_if_absent(uri, b"x"), uris))
    assert list(moto.list(join(bucket, "many"))) == written
    assert next(moto.list(bucket)) == written[0]


def test_a_folder_mark_is_no_object(moto: Store, bucket: str) -> None:
    moto.put(f"{bucket}/folder/", b"")
    assert list(moto.list(bucket)) == []


def test_a_key_beside_a_folder_of_its_name(moto: Store, bucket: str) -> None:
    moto.put(f"{bucket}/a", b"1")
    moto.put(f"{bucket}/a/b", b"2")
    assert [info.uri for info in moto.list(f"{bucket}/a")] == [f"{bucket}/a/b"]


def test_moto_holds_an_upload_in_parts_under_the_etag_of_its_parts(moto: Store, bucket: str, two_parts: Path) -> None:
    info = moto.put_file(f"{bucket}/big", two_parts)
    halves = [hashlib.md5(bytes(PART_BYTES)).digest(), hashlib.md5(bytes(1)).digest()]
    assert info.etag == hashlib.md5(b"".join(halves)).hexdigest() + "-2"


def test_a_missing_bucket(moto: Store, bucket: str) -> None:
    with pytest.raises(ObjectMissingError, match="NoSuchBucket"):
        list(moto.list("s3://no-such-bucket-here/a"))
    with pytest.raises(RefusedError, match="create the bucket first"):
        probe_put_if_absent(moto, "s3://no-such-bucket-here/output")


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone_server(folder) as server:
        yield server


@pytest.fixture
def rclone_keys(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone.environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("rclone_keys")
def test_the_right_keys_write_and_read_on_rclone(rclone: S3Server, two_parts: Path) -> None:
    store = s3_store(rclone)
    small = store.put("s3://bucket/folder/small", CONTENT)
    big = store.put_file("s3://bucket/folder/big", two_parts)
    assert list(store.list("s3://bucket/folder")) == [big, small]
    assert store.read_range(big.uri, PART_BYTES - 1, PART_BYTES + 1, etag=big.etag) == bytes(2)
    store.delete(small.uri)
    store.delete(small.uri)
    with pytest.raises(ObjectMissingError):
        store.stat(small.uri)


@pytest.mark.usefixtures("rclone_keys")
def test_a_wrong_secret_is_denied_without_being_told(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    with pytest.raises(
        StoreDeniedError, match=rf"put_object of s3://bucket/\.probe.* at {rclone.endpoint}: .*403"
    ) as caught:
        probe_put_if_absent(s3_store(rclone), "s3://bucket")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for secret in (rclone.access_key, rclone.secret_key, WRONG_SECRET):
        assert secret not in shown


@pytest.mark.usefixtures("rclone_keys")
def test_a_store_that_ignores_the_condition_is_refused(rclone: S3Server) -> None:
    store = s3_store(rclone)
    with pytest.raises(UnsafeStoreError, match=r"s3://bucket/output .*--allow-unsafe-store"):
        probe_put_if_absent(store, "s3://bucket/output")
    assert list(store.list("s3://bucket/output")) == []
