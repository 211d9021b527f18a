"""Local disks and mounted file systems as a store.

Objects appear whole: they are written under a hidden name beside their place, flushed to the disk and then
renamed (put) or hard-linked (put-if-absent) to their name, each one step of the file system.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pipeline.errors import (
    ConfigError,
    DataError,
    ObjectChangedError,
    ObjectMissingError,
    RefusedError,
    StoreDeniedError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from pipeline.pages import PAGES
from pipeline.retry import Retry
from pipeline.types import Content, ObjectInfo, PartialObject

T = TypeVar("T")

TEMPORARY_PREFIX = ".tmp-"
"""Of files that are being written; never listed."""

_COPY_BYTES = 1 << 20
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def local_path(uri: str) -> Path:
    """The absolute path of a plain path or `file://` URI (percent-decoded, RFC 8089).

    A relative path is taken from the working folder, and links are not resolved. Raises `ConfigError`
    for a `file://` URI that names another host.
    """
    if not uri.startswith("file://"):
        return Path(os.path.abspath(uri))  # noqa: PTH100 - Path.absolute() keeps `..`, resolve() follows links
    parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{uri!r} names the host {parts.netloc!r}; a file URI is file:///absolute/path")
    return local_path(unquote(parts.path))


class LocalStore:
    """Files as objects; the ETag is `<mtime ns>-<size>` in hex. Implements `pipeline.storage.Store`.

    Every URI given back is a plain absolute path. A name that begins with `.tmp-` is no object.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every file below a folder in name order; links are followed, a folder inside itself once."""
        yield from self._walk(local_path(prefix), ())

    def _walk(self, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[ObjectInfo]:
        identity, entries = self._retry.call(lambda: _scan(folder))
        if identity in above:
            return
        base = str(folder).rstrip("/")
        for name, size_bytes, mtime_ns in entries:
            if name.endswith("/"):
                yield from self._walk(folder / name, (*above, identity))
            else:
                yield _object_info(f"{base}/{name}", size_bytes, mtime_ns)

    def stat(self, uri: str) -> ObjectInfo:
        """One file's size and ETag. Raises `ObjectMissingError` for a folder too."""
        return self._retry.call(lambda: _stat(local_path(uri)))

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        """A small file whole. Raises `DataError` when it is larger than `bytes_max`."""

        def read_once() -> bytes:
            with _opened(local_path(uri)) as (file, info):
                if info.size_bytes > bytes_max:
                    raise DataError(f"{info.uri} has {info.size_bytes} bytes; at most {bytes_max} are read whole")
                data = file.read(bytes_max + 1)
                if len(data) > bytes_max:  # a pipe or device has no size, and a file may grow
                    raise DataError(f"{info.uri} has more than {bytes_max} bytes; at most these are read whole")
                return data

        return self._retry.call(read_once)

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> Content:
        """Exactly the bytes [start, end). Raises `ObjectChangedError` on another ETag or a shorter file."""
        if not 0 <= start <= end:
            raise ValueError(f"range [{start}, {end}) is not within 0 <= start <= end")

        def read_once() -> Content:
            with _opened(local_path(uri)) as (file, info):
                if etag is not None and info.etag != etag:
                    raise ObjectChangedError(f"{info.uri} changed: its ETag was {etag} and is {info.etag}")
                file.seek(start)
                content = PAGES.take(end - start).data
                if file.readinto(content) < end - start:
                    raise ObjectChangedError(f"{info.uri} has {info.size_bytes} bytes; up to {end} were asked for")
                return content.toreadonly()

        return self._retry.call(read_once)

    def md5(self, uri: str, *, etag: str) -> str | None:  # noqa: ARG002 - the protocol's
        """None: file systems keep no checksum that they would tell."""
        return None

    def put(self, uri: str, data: bytes) -> ObjectInfo:
        """Write a file whole and at once, over any older one."""
        return self._put(local_path(uri), lambda file: file.write(data))

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        """Copy a local file, whole and at once.

        Raises `StoreUnavailableError` when the copy's size differs from the file's.
        """
        with path.open("rb") as source:

            def copy(file: BinaryIO) -> None:
                source.seek(0)
                shutil.copyfileobj(source, file, _COPY_BYTES)

            info = self._put(local_path(uri), copy)
            size_bytes = os.fstat(source.fileno()).st_size
        if info.size_bytes != size_bytes:
            raise StoreUnavailableError(f"{info.uri} has {info.size_bytes} bytes after writing {size_bytes}")
        return info

    def put_if_absent(self, uri: str, data: bytes) -> ObjectInfo | None:
        """Write a file unless there is one: None when there is.

        Raises `UnsafeStoreError` on a file system without hard links: creating the name first (O_EXCL) and
        filling it after would show readers half an object, and leave it there if we died in between.
        """
        return self._retry.call(lambda: _link_once(local_path(uri), data))

    def delete(self, uri: str) -> None:
        """Delete a file; no error when there is none."""

        def delete_once() -> None:
            path = local_path(uri)
            with _translated("delete", path):
                path.unlink(missing_ok=True)

        self._retry.call(delete_once)

    def list_partial(self, prefix: str) -> Iterator[PartialObject]:
        """The hidden files below a folder in which objects are written."""
        for folder, _, names in os.walk(local_path(prefix)):
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    path = Path(folder, name)
                    with _translated("list", path), suppress(FileNotFoundError):  # renamed or deleted just now
                        yield PartialObject(str(path), path.stat().st_mtime)

    def drop_partial(self, partial: PartialObject) -> None:
        """Delete the hidden file."""
        self.delete(partial.uri)

    def _put(self, path: Path, fill: Callable[[BinaryIO], object]) -> ObjectInfo:
        def put_once() -> ObjectInfo:
            with _translated("write", path), _written_aside(path, fill) as temporary:
                temporary.replace(path)
                _flush_folder(path.parent)
            return _stat(path)

        return self._retry.call(put_once)


def _link_once(path: Path, data: bytes) -> ObjectInfo | None:
    with _translated("write", path), _written_aside(path, lambda file: file.write(data)) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise UnsafeStoreError(
                f"the file system of {path.parent} makes no hard links ({error.strerror}), so it cannot write a "
                "file only if it is absent; choose an output on another file system or in object storage"
            ) from error
        _flush_folder(path.parent)
        return _info_of(str(path), temporary.stat())  # the same file under its other name


@contextmanager
def _written_aside(path: Path, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A flushed file of the wanted content under a hidden name in the folder of `path`; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    # Without this a name can vanish in a power cut though its content is on the disk.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, ObjectInfo]]:
    """The open file and its info, taken from the open file so that a rename in between cannot mix two."""
    with _translated("read", path), path.open("rb") as file:
        yield file, _info_of(str(path), os.fstat(file.fileno()))


def _stat(path: Path) -> ObjectInfo:
    with _translated("stat", path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ObjectMissingError(f"{path} is there, but it is no file")
    return _info_of(str(path), status)


Scanned = tuple[tuple[int, int], list[tuple[str, int, int]]]


def _scan(folder: Path) -> Scanned:
    """A folder's identity (device, inode), and its files and folders (`name/`) in the order of their objects' names.

    Each with its size and its time in ns: no more, since a million are held at once.
    """
    found = []
    with _translated("list", folder):
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                for entry in entries:
                    of_entry = _entry_status(entry)
                    if of_entry is not None:
                        # "a-b" comes before "a/b" among whole names though "a" comes before "a-b".
                        name = entry.name + ("/" if stat.S_ISDIR(of_entry.st_mode) else "")
                        found.append((name, of_entry.st_size, of_entry.st_mtime_ns))
        except (FileNotFoundError, NotADirectoryError):
            return (0, 0), []
    found.sort()
    return (status.st_dev, status.st_ino), found


def _entry_status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None for what is no object: a file being written, a link to nothing or itself, one deleted just now, a socket."""
    if entry.name.startswith(TEMPORARY_PREFIX):
        return None
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None


def _object_info(path: str, size_bytes: int, mtime_ns: int) -> ObjectInfo:
    return ObjectInfo(path, size_bytes, f"{mtime_ns:x}-{size_bytes:x}", mtime_ns / 1e9)


def _info_of(path: str, status: os.stat_result) -> ObjectInfo:
    return _object_info(path, status.st_size, status.st_mtime_ns)


@contextmanager
def _translated(operation: str, path: Path) -> Iterator[None]:
    """Errors of the operating system as ours, by their number."""
    try:
        yield
    except OSError as error:
        what = f"cannot {operation} {path}: {error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"
        if error.errno in _DENIED:
            raise StoreDeniedError(f"{what}; give this user the right to it, or choose another place") from error
        if error.errno in _MISSING and operation in ("read", "stat"):
            raise ObjectMissingError(what) from error
        if error.errno == errno.ENOENT:  # its folder is made first
            raise StoreUnavailableError(
                f"{what}; its folder or hidden file was removed while it was written"
            ) from error
        if error.errno in _IN_THE_WAY:
            raise StoreDeniedError(f"{what}; a file stands where a folder must, or the reverse") from error
        if error.errno == errno.ENAMETOOLONG:
            raise RefusedError(f"{what}; shorten the shard's name or the output's path") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreUnavailableError(f"{what}; free some space, then run again") from error
        raise StoreUnavailableError(what) from error
