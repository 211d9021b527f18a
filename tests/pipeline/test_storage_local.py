"""Local files as a store: what only a file system can do wrong."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import (
    DataError,
    ObjectChangedError,
    ObjectMissingError,
    RefusedError,
    StoreDeniedError,
    StoreUnavailableError,
    UnsafeStoreError,
    VoxmillError,
)
from pipeline.retry import Retry
from pipeline.settings import RetryConfig
from pipeline.storage import probe_put_if_absent
from pipeline.storage_local import LocalStore

TRIES = 3


def local_store() -> LocalStore:
    """A store that tries `TRIES` times without waiting in between."""
    return LocalStore(Retry(RetryConfig(attempts_max=TRIES), sleep=lambda _: None))


@pytest.fixture
def store() -> LocalStore:
    return local_store()


def failing(call: Callable[..., object], number: int, times: int) -> Callable[..., object]:
    """`call`, but for its first `times` uses, which fail with the error of that number."""
    left = [number] * times

    def fail(*args: object, **kwargs: object) -> object:
        if left:
            raise OSError(left.pop(), os.strerror(number))
        return call(*args, **kwargs)

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_etag_is_modification_time_and_size(store: LocalStore, tmp_path: Path) -> None:
    info = store.put(str(tmp_path / "a"), b"0123456789")
    assert info.etag == f"{(tmp_path / 'a').stat().st_mtime_ns:x}-a"


def test_a_rewrite_of_the_same_size_is_seen_by_its_time(store: LocalStore, tmp_path: Path) -> None:
    path = tmp_path / "a"
    info = store.put(str(path), b"0123456789")
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(0, 1))
    with pytest.raises(ObjectChangedError, match=rf"its ETag was {info.etag} and is 1-a"):
        store.read_range(str(path), 0, 10, etag=info.etag)


@pytest.mark.parametrize("times", [1, TRIES - 1])
def test_a_passing_fault_of_the_disk_is_tried_again(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO, times))
    store.put(str(tmp_path / "a"), b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, (StoreUnavailableError, r"ENOSPC.*free some space.*after 3 tries")),
        (errno.EDQUOT, (StoreUnavailableError, r"EDQUOT.*free some space")),
        (errno.EIO, (StoreUnavailableError, r"EIO.*after 3 tries")),
        (errno.EACCES, (StoreDeniedError, r"EACCES.*give this user the right")),
        (errno.EROFS, (StoreDeniedError, r"EROFS.*choose another place")),
    ],
)
@pytest.mark.parametrize("operation", ["put", "put_if_absent", "put_file"])
def test_a_write_that_fails_leaves_the_old_object_and_no_rest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    number: int,
    expected: tuple[type[VoxmillError], str],
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, TRIES))
    error, words = expected
    with pytest.raises(error, match=words) as caught:
        getattr(local_store(), operation)(str(tmp_path / "a"), tmp_path / "a" if operation == "put_file" else b"new")
    assert str(tmp_path / "a") in str(caught.value)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_copy_tried_again_begins_at_the_beginning(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(b"0123456789")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO, 1))
    store.put_file(str(tmp_path / "a"), tmp_path / "source")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_copy_that_falls_short_is_told(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"0123456789")
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, target, _: target.write(source.read(4)))
    with pytest.raises(StoreUnavailableError, match="has 4 bytes after writing 10"):
        store.put_file(str(tmp_path / "a"), tmp_path / "source")


def test_an_unwritable_output_is_told_by_the_probe(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EROFS, 1))
    with pytest.raises(StoreDeniedError, match=r"cannot write .*\.probe-.*EROFS.*choose another place"):
        probe_put_if_absent(store, str(tmp_path))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_links_is_refused(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(os.link, number, 1))
    with pytest.raises(UnsafeStoreError, match=r"makes no hard links.*choose an output on another file system"):
        probe_put_if_absent(store, str(tmp_path))
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreDeniedError, match="a file stands where a folder must"):
        store.put(str(tmp_path / "file" / "a"), b"a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreDeniedError, match="or the reverse"):
        store.put(str(tmp_path / "folder"), b"a")
    with pytest.raises(ObjectMissingError):
        store.stat(str(tmp_path / "file" / "a"))
    assert list(store.list(str(tmp_path / "file"))) == []


def test_a_name_too_long_is_refused_with_the_remedy(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="shorten the shard's name"):
        store.put(str(tmp_path / ("a" * 256)), b"a")
    assert names(tmp_path) == []


def test_files_being_written_are_not_listed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    info = store.put(str(tmp_path / ".hidden"), b"")
    assert list(store.list(str(tmp_path))) == [info]


def test_list_follows_links_and_ends_in_a_ring_of_them(store: LocalStore, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"a")
    (place / "inner").mkdir(parents=True)
    (place / "linked").symlink_to(tmp_path / "elsewhere")
    (place / "link.tar").symlink_to(tmp_path / "elsewhere" / "a")
    (place / "inner" / "ring").symlink_to(place)
    (place / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(place / "fifo")
    assert [info.uri for info in store.list(str(place))] == [str(place / "link.tar"), str(place / "linked" / "a")]


def test_a_link_to_itself_is_passed_over_as_one_to_nothing(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    (tmp_path / "b.tar").symlink_to("b.tar")
    (tmp_path / "c.tar").symlink_to("gone.tar")
    assert [info.uri for info in store.list(str(tmp_path))] == [str(tmp_path / "a.tar")]


def test_what_has_no_size_is_read_to_its_bound_alone(store: LocalStore) -> None:
    with pytest.raises(DataError, match="more than 1000 bytes"):
        store.read("/dev/zero", bytes_max=1000)


def test_a_folder_that_may_not_be_read(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", failing(os.scandir, errno.EACCES, 1))
    with pytest.raises(StoreDeniedError, match=rf"cannot list {tmp_path}.*EACCES"):
        list(store.list(str(tmp_path)))


def test_a_write_that_ends_while_partial_ones_are_listed_is_none(tmp_path, monkeypatch):
    (tmp_path / ".tmp-gone").touch()
    walk = os.walk(tmp_path)
    monkeypatch.setattr(os, "walk", lambda _: [(tmp_path / ".tmp-gone").unlink() or found for found in walk])
    assert list(LocalStore(Retry(RetryConfig())).list_partial(str(tmp_path))) == []


@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
def test_a_hidden_file_that_is_removed_while_it_is_written_is_written_anew(tmp_path, monkeypatch, operation):
    store = LocalStore(Retry(RetryConfig(attempts_max=2, backoff_s=0.001)))
    fsync, removed = os.fsync, []

    def fsync_and_remove(descriptor: int) -> None:
        fsync(descriptor)
        if not removed:
            removed.extend(store.list_partial(str(tmp_path)))
            store.drop_partial(removed[0])

    monkeypatch.setattr(os, "fsync", fsync_and_remove)
    assert getattr(store, operation)(str(tmp_path / "a"), b"data") is not None
    assert (len(removed), (tmp_path / "a").read_bytes()) == (1, b"data")
    assert list(store.list_partial(str(tmp_path))) == []
