"""S3 and what speaks its protocol as a store.

s3fs opens the connection (endpoint, profile, credentials, event loop); the requests are then made on its
client one by one, since s3fs's own calls retry inside, cache listings, and turn a store's error codes into
`OSError`s that no longer say which it was.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
from collections.abc import Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fsspec.asyn import sync
from s3fs import S3FileSystem

from pipeline.errors import (
    ConfigError,
    DataError,
    ObjectChangedError,
    ObjectMissingError,
    StoreUnavailableError,
    UnsafeStoreError,
    VoxmillError,
)
from pipeline.retry import Retry
from pipeline.settings import StorageConfig
from pipeline.storage_s3_errors import STORE_ERRORS, check_answer, translated
from pipeline.types import ObjectInfo, PartialObject

Answer = dict[str, Any]

PARTS_MAX = 10_000
"""Of one multipart upload: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (maybe empty) of `s3://bucket/key`. Raises `ConfigError` when there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ConfigError(f"{uri!r} is no s3://bucket/key")
    return bucket, key


def s3_options(storage: StorageConfig) -> dict[str, Any]:
    """What s3fs needs to reach the store; credentials are left to the environment, profile or role."""
    options: dict[str, Any] = {"anon": storage.anonymous, "use_listings_cache": False}
    if storage.endpoint_url is not None:
        options["endpoint_url"] = storage.endpoint_url
    if storage.profile is not None:
        options["profile"] = storage.profile
    return options


class S3Store:
    """Objects of S3. Implements `pipeline.storage.Store`; ETags stand without their quotes.

    The policy is the only one that tries again, but for aiohttp: when a connection breaks before an answer it
    sends all requests but POST once more (RFC 9112, 9.3.1). So a put-if-absent may find its own object.
    """

    def __init__(self, storage: StorageConfig, retry: Retry) -> None:
        self._retry = retry
        self._part_bytes = storage.part_bytes
        self._request_s_max = storage.request_s_max
        self._endpoint = "its endpoint"  # until a client has checked that its URL holds no credential
        # Instances are not shared, since s3fs keys its cache without the environment's credentials.
        self._fs = S3FileSystem(
            **s3_options(storage),
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": storage.connect_timeout_s,
                "read_timeout": storage.read_timeout_s,
                "max_pool_connections": storage.connections_max,
                "retries": {"mode": "standard", "total_max_attempts": 1},
                # Uploads carry a SHA-256 of our own; botocore's default, a trailing CRC, is refused by
                # many stores that are not AWS.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a folder in key order, page by page; keys that end in `/` are left out."""
        names = {"ContinuationToken": "NextContinuationToken"}
        bucket, _ = split_s3_uri(prefix)
        for page in self._pages("list_objects_v2", prefix, names):
            for item in page.get("Contents", ()):
                # The mark that consoles leave for an empty folder is no object that a path can name.
                if not item["Key"].endswith("/"):
                    uri = f"s3://{bucket}/{item['Key']}"
                    yield ObjectInfo(uri, int(item["Size"]), _etag(item, uri), _time(item))

    def stat(self, uri: str) -> ObjectInfo:
        """One object's size and ETag."""
        return _info(uri, self._retried("head_object", uri, _object(uri)))

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        """A small object whole, checked against an ETag that is an MD5.

        Raises `DataError` when it is larger than `bytes_max`.
        """
        return self._retry.call(lambda: self._read_once(uri, bytes_max))

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> bytes:
        """Exactly the bytes [start, end). Raises `ObjectChangedError` on another ETag or a shorter object."""
        if not 0 <= start <= end:
            raise ValueError(f"range [{start}, {end}) is not within 0 <= start <= end")
        if start == end:
            return b""  # HTTP has no empty range
        request = {**_object(uri), "Range": f"bytes={start}-{end - 1}"}
        if etag is not None:
            request["IfMatch"] = f'"{etag}"'
        return self._retry.call(lambda: self._fetch_range(uri, request, start, end))

    def md5(self, uri: str, *, etag: str) -> str | None:
        """The ETag where it is the content's MD5: not so of an upload in parts, or under some encryptions."""
        head = self._retried("head_object", uri, {**_object(uri), "IfMatch": f'"{etag}"'})
        return etag if _has_md5(head, _info(uri, head)) else None

    def put(self, uri: str, data: bytes) -> ObjectInfo:
        """Write an object whole and at once, over any older one.

        Raises `StoreUnavailableError` when size or checksum differ from the data's.
        """
        return self._retry.call(lambda: self._put_once(uri, data))

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        """Write a local file, in one request up to `part_bytes`, above it in parts of that size.

        The store checks the SHA-256 of every request's body. Raises `StoreUnavailableError` when the size, or
        an ETag that is an MD5, differs from the file's. Memory holds one part.
        """
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            if size_bytes > self._part_bytes:
                return self._put_parts(uri, file, size_bytes)
            return self.put(uri, file.read())

    def put_if_absent(self, uri: str, data: bytes) -> ObjectInfo | None:
        """Write an object unless there is one: None when there is.

        Raises `UnsafeStoreError` when the store says that it knows no such condition (HTTP 501).
        """
        is_whole = None
        try:
            info, is_whole = self._put_on_condition(uri, data, {"IfNoneMatch": "*"})
            if not is_whole:
                # It is ours, but damaged on its way to a store that does not compare the SHA-256: so put it again,
                # on the condition that nobody has put another record over it.
                info, is_whole = self._put_on_condition(uri, data, {"IfMatch": f'"{info.etag}"'})
        except ObjectChangedError:  # HTTP 412: the condition does not hold
            return None
        except ObjectMissingError as error:
            if is_whole is False:  # damaged, then removed by somebody: nothing of ours stands
                raise StoreUnavailableError(f"{error}: it was removed while it was written") from error
            raise
        if not is_whole:
            raise StoreUnavailableError(f"{uri}: was damaged on its way twice; the store holds the ETag {info.etag}")
        return info

    def delete(self, uri: str) -> None:
        """Delete an object; no error when there is none."""
        try:
            self._retried("delete_object", uri, _object(uri))
        except ObjectMissingError:  # AWS says nothing here, other stores do
            return

    def list_partial(self, prefix: str) -> Iterator[PartialObject]:
        """Multipart uploads below a folder that were neither completed nor aborted; the store bills their parts."""
        names = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        bucket, _ = split_s3_uri(prefix)
        for page in self._pages("list_multipart_uploads", prefix, names):
            for item in page.get("Uploads", ()):
                uri = f"s3://{bucket}/{item['Key']}"
                yield PartialObject(uri, item["Initiated"].timestamp(), item["UploadId"])

    def drop_partial(self, partial: PartialObject) -> None:
        """Abort the upload."""
        try:
            self._retried(
                "abort_multipart_upload", partial.uri, {**_object(partial.uri), "UploadId": partial.upload_id}
            )
        except ObjectMissingError:  # it ended meanwhile, one way or the other
            return

    def _pages(self, operation: str, prefix: str, names: Mapping[str, str]) -> Iterator[Answer]:
        """The pages of a listing below a folder; `names`: a field of the next request and where the page has it."""
        bucket, key = split_s3_uri(prefix)
        request: Answer = {"Bucket": bucket, "Prefix": key.rstrip("/") + "/" if key else ""}
        while True:
            page = self._retried(operation, prefix, request)
            yield page
            if not page.get("IsTruncated"):
                return
            following = request | {name: page[field] for name, field in names.items() if field in page}
            if following == request:
                raise StoreUnavailableError(f"{operation} of {prefix} at {self._endpoint}: the pages do not go on")
            request = following

    def _read_once(self, uri: str, bytes_max: int) -> bytes:
        answer, data = self._fetch(uri, _object(uri), bytes_max)
        if data is None:
            raise DataError(f"{uri} has {answer['ContentLength']} bytes; at most {bytes_max} are read whole")
        info = _info(uri, answer)
        if _has_md5(answer, info) and info.etag != _md5(data):
            raise StoreUnavailableError(f"{uri}: was damaged on its way: MD5 {_md5(data)}, in the store {info.etag}")
        return data

    def _fetch_range(self, uri: str, request: Answer, start: int, end: int) -> bytes:
        answer, data = self._fetch(uri, request, end - start)
        wanted, found = _bare(request.get("IfMatch", "")), _bare(answer.get("ETag", ""))
        if wanted and found not in ("", wanted):  # by a store that ignores If-Match
            raise ObjectChangedError(f"{uri} changed: its ETag was {wanted} and is {found}")
        # An answer that is not of a range is the whole object: right when that is what was asked for.
        given = str(answer.get("ContentRange", f"bytes 0-{answer['ContentLength'] - 1}/{end}"))
        numbers = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", given)
        if numbers and int(numbers[3]) < end:
            raise ObjectChangedError(f"{uri} has {numbers[3]} bytes; up to {end} were asked for")
        if not numbers or (int(numbers[1]), int(numbers[2])) != (start, end - 1):
            raise StoreUnavailableError(
                f"{uri}: bytes {start}-{end - 1} were asked for, {given!r} offered by {self._endpoint}"
            )
        if data is None or len(data) != end - start:
            raise StoreUnavailableError(
                f"{uri}: {end - start} bytes were asked for, {answer['ContentLength']} offered by {self._endpoint}"
            )
        return data

    def _put_on_condition(self, uri: str, data: bytes, condition: Answer) -> tuple[ObjectInfo, bool]:
        """What was written, and whether it is what was sent as far as its ETag tells."""
        answer = self._retried("put_object", uri, {**_object(uri), **_body(data), **condition})
        info = ObjectInfo(uri, len(data), _etag(answer, uri))
        return info, not _has_md5(answer, info) or info.etag == _md5(data)

    def _put_once(self, uri: str, data: bytes) -> ObjectInfo:
        self._ask("put_object", uri, {**_object(uri), **_body(data)})
        head = self._head_written(uri)
        info = _info(uri, head)
        md5 = _md5(data)
        if info.size_bytes != len(data) or (_has_md5(head, info) and info.etag != md5):
            raise StoreUnavailableError(
                f"{uri}: {len(data)} bytes of MD5 {md5} were written, the store holds {info.size_bytes} bytes "
                f"of ETag {info.etag}"
            )
        return info

    def _put_parts(self, uri: str, file: BinaryIO, size_bytes: int) -> ObjectInfo:
        created = self._retried("create_multipart_upload", uri, {**_object(uri), "ChecksumAlgorithm": "SHA256"})
        upload = {**_object(uri), "UploadId": created["UploadId"]}
        try:
            parts, etags = self._upload_parts(uri, upload, file, size_bytes)
            request = {**upload, "MultipartUpload": {"Parts": parts}}
            return self._retry.call(lambda: self._complete_once(uri, request, size_bytes, etags))
        except ObjectMissingError as error:  # no fault of what is being written
            raise StoreUnavailableError(f"{error}: the upload was dropped; it is to be begun anew") from error
        except BaseException:  # Ctrl-C too: a store keeps, and bills, the parts of an upload without an end
            self._abort(uri, upload)
            raise

    def _upload_parts(
        self, uri: str, upload: Answer, file: BinaryIO, size_bytes: int
    ) -> tuple[Sequence[Answer], Set[str]]:
        """The parts as sent, and the ETags that the whole may get: its MD5, or what S3 makes of the parts'."""
        part_bytes = max(self._part_bytes, math.ceil(size_bytes / PARTS_MAX))
        whole_md5 = hashlib.md5(usedforsecurity=False)
        parts = []
        for number in range(1, math.ceil(size_bytes / part_bytes) + 1):
            body = _body(file.read(part_bytes))
            whole_md5.update(body["Body"])
            answer = self._retried("upload_part", uri, {**upload, **body, "PartNumber": number})
            parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": body["ChecksumSHA256"]})
        return parts, {whole_md5.hexdigest(), _multipart_etag(parts)}

    def _complete_once(self, uri: str, request: Answer, size_bytes: int, etags: Set[str]) -> ObjectInfo:
        try:
            etag = _etag(self._ask("complete_multipart_upload", uri, request), uri)
        except ObjectMissingError:
            # The upload is gone: an earlier try completed it and its answer was lost, or the store dropped
            # it. What the store holds now decides.
            etag = ""
        info = _info(uri, self._head_written(uri))
        if info.size_bytes != size_bytes or info.etag not in etags | {etag}:
            raise StoreUnavailableError(
                f"{uri}: {size_bytes} bytes were written, with the ETag {etag or sorted(etags)}; the store holds "
                f"{info.size_bytes} bytes of ETag {info.etag}"
            )
        return info

    def _abort(self, uri: str, upload: Answer) -> None:
        with suppress(VoxmillError):  # the first error is the one to tell
            self._ask("abort_multipart_upload", uri, upload)

    def _head_written(self, uri: str) -> Answer:
        try:
            return self._ask("head_object", uri, _object(uri))
        except ObjectMissingError as error:
            raise StoreUnavailableError(f"{uri} is not there right after it was written") from error

    def _retried(self, operation: str, uri: str, request: Answer) -> Answer:
        return self._retry.call(lambda: self._ask(operation, uri, request))

    def _ask(self, operation: str, uri: str, request: Answer) -> Answer:
        """The answer to one request, made once."""
        with self._translated(operation, uri):
            answer: Answer = sync(self._fs.loop, self._within_limit, self._request(operation, request))
            return answer

    def _fetch(self, uri: str, request: Answer, bytes_max: int) -> tuple[Answer, bytes | None]:
        """An object's answer and body; no body, and none read, when it is longer than `bytes_max`."""
        with self._translated("get_object", uri):
            fetched: tuple[Answer, bytes | None] = sync(
                self._fs.loop, self._within_limit, self._request_body(request, bytes_max)
            )
            return fetched

    @contextmanager
    def _translated(self, operation: str, uri: str) -> Iterator[None]:
        try:
            yield
        except STORE_ERRORS as error:
            # `from None`: a traceback would show what `translated` leaves out.
            raise translated(error, f"{operation} of {uri} at {self._endpoint}") from None

    async def _within_limit(self, request: Coroutine[Any, Any, Any]) -> Any:
        """The request's result, or `TimeoutError`: aiohttp waits without end for leave to send a body."""
        return await asyncio.wait_for(request, self._request_s_max)

    async def _request_body(self, request: Answer, bytes_max: int) -> tuple[Answer, bytes | None]:
        answer = await self._request("get_object", request)
        async with answer["Body"] as body:
            return answer, await body.read() if answer["ContentLength"] <= bytes_max else None

    async def _request(self, operation: str, request: Answer) -> Answer:
        client = await self._client()
        answer: Answer = await getattr(client, operation)(**request)
        place = f"s3://{request['Bucket']}/{request.get('Key', request.get('Prefix', ''))}"
        check_answer(operation, answer, f"{operation} of {place} at {self._endpoint}")
        return answer

    async def _client(self) -> Any:  # botocore makes its clients' classes at run time
        try:
            client = await self._fs.set_session()
        except ValueError:
            raise ConfigError(
                "the S3 endpoint is not a valid URL; check storage.endpoint_url and AWS_ENDPOINT_URL"
            ) from None  # botocore's message shows the URL, which may hold a password
        endpoint = client.meta.endpoint_url
        if "@" in urlsplit(endpoint).netloc:
            raise ConfigError(
                "the S3 endpoint has credentials in its URL; give them by the environment or storage.profile"
            )
        self._endpoint = endpoint
        return client


def _object(uri: str) -> Answer:
    bucket, key = split_s3_uri(uri)
    if not key:
        raise ObjectMissingError(f"{uri} names a bucket, not an object; give s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


def _body(data: bytes) -> Answer:
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return {"Body": data, "ChecksumSHA256": digest}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _info(uri: str, head: Answer) -> ObjectInfo:
    return ObjectInfo(uri, int(head["ContentLength"]), _etag(head, uri), _time(head))


def _time(answer: Answer) -> float | None:
    modified = answer.get("LastModified")
    return modified.timestamp() if modified is not None else None


def _etag(answer: Answer, uri: str) -> str:
    etag = _bare(str(answer.get("ETag", "")))
    if not etag:
        raise UnsafeStoreError(
            f"the store gives no ETag for {uri}, so a changed object could not be told from the one that was "
            "listed; choose a store that gives them"
        )
    return etag


def _bare(etag: str) -> str:
    """Without its quotes and the mark of a weak one, which gateways put there when they pack an answer."""
    return etag.removeprefix("W/").strip('"')


def _has_md5(head: Answer, info: ObjectInfo) -> bool:
    """Whether the ETag is the content's MD5: not so under a key of KMS or the client's, or in S3 Express.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    return (
        re.fullmatch(r"[0-9a-f]{32}", info.etag) is not None
        and head.get("ServerSideEncryption") in (None, "AES256")
        and "SSECustomerAlgorithm" not in head
        and not split_s3_uri(info.uri)[0].endswith(("--x-s3", "--xa-s3"))
    )


def _multipart_etag(parts: Sequence[Answer]) -> str:
    """The ETag that S3 gives the whole: the MD5 over the parts' binary MD5s, and their number."""
    joined = b"".join(part["ETag"].strip('"').encode() for part in parts)
    if not re.fullmatch(rb"([0-9a-f]{32})+", joined):
        return "unknown"
    return f"{hashlib.md5(bytes.fromhex(joined.decode()), usedforsecurity=False).hexdigest()}-{len(parts)}"
