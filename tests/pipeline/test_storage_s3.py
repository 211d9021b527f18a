"""S3 against a server that answers by a script: which faults are tried again, how often, and what is said."""

from __future__ import annotations

import base64
import hashlib
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from pipeline.retry import Retry
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage_s3 import S3Store, split_s3_uri
from tests.servers import Answer, S3Server, ScriptedServer, free_port

URI = "s3://bucket/key"
ACCESS_KEY = "AKIA-VISIBLE"
SECRET_KEY = "SECRET-VISIBLE"
TRIES = 3
RESENT = 2  # aiohttp sends all but a POST a second time when the connection breaks before an answer
PART_BYTES = 5 << 20
CONTENT = b"0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = S3Server("http://127.0.0.1:1", ACCESS_KEY, SECRET_KEY).environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


def s3_store(endpoint: str | None = None, *, read_timeout_s: float = 30.0, **settings: object) -> S3Store:
    """A store that tries `TRIES` times without waiting in between."""
    storage = StorageConfig.model_validate(
        {"endpoint_url": endpoint, "read_timeout_s": read_timeout_s, "part_bytes": PART_BYTES, **settings}
    )
    return S3Store(storage, Retry(RetryConfig(attempts_max=TRIES), sleep=lambda _: None))


def failed(status: int, code: str) -> Answer:
    """A store's error, with words in it that no message may repeat."""
    body = f"<Error><Code>{code}</Code><Message>{ACCESS_KEY} {SECRET_KEY}</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


def ranged(body: bytes, total_bytes: int, **fault: int | bool) -> Answer:
    headers = {"Content-Range": f"bytes 0-9/{total_bytes}", "ETag": '"e"'}
    return Answer(206, body, headers, **fault)  # type: ignore[arg-type]


def head(size_bytes: int, etag: str, **headers: str) -> Answer:
    return Answer(200, b"", {"ETag": f'"{etag}"', **headers}, declared_bytes=size_bytes)


def answer_xml(text: str) -> Answer:
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="module")
def store(server: ScriptedServer) -> S3Store:
    """One store for all scripts, since opening its client takes longer than most of them."""
    return s3_store(server.endpoint)


GOOD_RANGE = ranged(CONTENT, 10)
FAULTS = {
    "reset": Answer(reset=True),
    "half the body": ranged(CONTENT[:5], 10, declared_bytes=10),
    "fewer bytes than asked for": ranged(CONTENT[:5], 10),
    "the range ignored": Answer(200, CONTENT * 2, {"ETag": '"e"'}),
    "503 SlowDown": failed(503, "SlowDown"),
    "500 InternalError": failed(500, "InternalError"),
    "429": failed(429, "TooManyRequests"),
    "400 RequestTimeout": failed(400, "RequestTimeout"),
    "502 of a proxy": Answer(502, b"<html>Bad gateway</html>"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_tried_again(server: ScriptedServer, store: S3Store, fault: Answer) -> None:
    server.play(fault, fault, GOOD_RANGE)
    assert store.read_range(URI, 0, 10, etag="e") == CONTENT
    assert [request.method for request in server.requests] == ["GET"] * 3
    assert {request.headers["range"] for request in server.requests} == {"bytes=0-9"}
    assert {request.headers["if-match"] for request in server.requests} == {'"e"'}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lasting_fault_ends_after_the_policys_tries(server: ScriptedServer, store: S3Store, fault: Answer) -> None:
    num_requests = TRIES * (RESENT if fault.reset else 1)
    server.play(*[fault] * num_requests)
    with pytest.raises(StoreUnavailableError, match=f"bucket/key.*gave up after {TRIES} tries"):
        store.read_range(URI, 0, 10, etag="e")
    assert len(server.requests) == num_requests


def test_a_silent_server_is_a_fault_once_the_timeout_is_over() -> None:
    with ScriptedServer(Answer(stall=True), GOOD_RANGE) as server:
        assert s3_store(server.endpoint, read_timeout_s=0.3).read_range(URI, 0, 10, etag=None) == CONTENT
    assert len(server.requests) == 2


def test_a_server_that_never_lets_a_body_be_sent_is_a_fault_once_the_limit_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:  # accepts connections, says nothing
        store = s3_store(f"http://127.0.0.1:{silent.getsockname()[1]}", request_s_max=0.3)
        with pytest.raises(StoreUnavailableError, match=f"put_object of {URI}.*Timeout.*after {TRIES} tries"):
            store.put_if_absent(URI, b"record")


def test_nobody_at_the_endpoint() -> None:
    with pytest.raises(StoreUnavailableError, match=f"head_object of {URI} at http.*after {TRIES} tries"):
        s3_store(f"http://127.0.0.1:{free_port()}").stat(URI)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failed(403, "AccessDenied"), StoreDeniedError),
        (failed(403, "SignatureDoesNotMatch"), StoreDeniedError),
        (failed(403, "InvalidAccessKeyId"), StoreDeniedError),
        (failed(403, "RequestTimeTooSkewed"), StoreDeniedError),
        (failed(400, "ExpiredToken"), StoreDeniedError),
        (failed(401, "Unauthorized"), StoreDeniedError),
        (failed(404, "NoSuchKey"), ObjectMissingError),
        (failed(404, "NoSuchBucket"), ObjectMissingError),
        (failed(412, "PreconditionFailed"), ObjectChangedError),
        (failed(416, "InvalidRange"), ObjectChangedError),
        (failed(501, "NotImplemented"), UnsafeStoreError),
        (failed(400, "AuthorizationHeaderMalformed"), ConfigError),
        (failed(400, "KeyTooLongError"), RefusedError),
        (ranged(CONTENT[:4], 4), ObjectChangedError),
    ],
)
def test_what_trying_again_cannot_mend_is_raised_at_once(
    server: ScriptedServer, store: S3Store, answer: Answer, error: type[Exception]
) -> None:
    server.play(answer)
    with pytest.raises(error) as caught:
        store.read_range(URI, 0, 10, etag="e")
    assert type(caught.value) is error
    assert len(server.requests) == 1
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert URI in shown
    assert ACCESS_KEY not in shown
    assert SECRET_KEY not in shown


def test_a_bare_400_to_head_is_taken_for_an_expired_token(server: ScriptedServer, store: S3Store) -> None:
    server.play(Answer(400))
    with pytest.raises(StoreDeniedError, match="not expired"):
        store.stat(URI)


def test_a_store_without_etags_is_refused(server: ScriptedServer, store: S3Store) -> None:
    server.play(Answer(200))
    with pytest.raises(UnsafeStoreError, match="gives no ETag"):
        store.stat(URI)


def test_an_object_above_the_bound_is_not_read(server: ScriptedServer, store: S3Store) -> None:
    # The body is never sent: only a client that does not wait for it ends here, and without a second try.
    server.play(Answer(200, b"", {"ETag": '"e"'}, declared_bytes=1 << 40))
    with pytest.raises(DataError, match=f"{1 << 40} bytes; at most 10"):
        store.read(URI, bytes_max=10)
    assert len(server.requests) == 1


def test_a_list_page_cut_in_the_middle_is_fetched_again(server: ScriptedServer, store: S3Store) -> None:
    item = b"<Contents><Key>key</Key><Size>3</Size><ETag>&quot;e&quot;</ETag></Contents>"
    page = b"<ListBucketResult>" + item + b"<IsTruncated>false</IsTruncated></ListBucketResult>"
    server.play(Answer(200, page[:60]), Answer(200, page[:60], declared_bytes=len(page)), Answer(200, page))
    (found,) = store.list("s3://bucket")
    assert (found.uri, found.size_bytes, found.etag) == (URI, 3, "e")
    assert len(server.requests) == 3


ITEM = "<Contents><Key>key</Key><Size>3</Size><ETag>e</ETag></Contents>"


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html><body>Sign in to the network</body></html>",
        ITEM,
        f"<IsTruncated>false</IsTruncated>{ITEM.replace('<Size>3</Size>', '')}",
        f"<IsTruncated>false</IsTruncated>{ITEM.replace('<Key>key</Key>', '')}",
        f"<IsTruncated>false</IsTruncated>{ITEM.replace('3', '-3')}",
        f"<IsTruncated>false</IsTruncated>{ITEM.replace('3', 'three')}",
        f"<IsTruncated>false</IsTruncated>{ITEM.replace('<ETag>', '<LastModified>yesterday</LastModified><ETag>')}",
    ],
)
def test_a_page_that_is_no_listing_is_none_of_an_empty_folder(
    server: ScriptedServer, store: S3Store, page: str
) -> None:
    odd = answer_xml(page if page.startswith("<html>") else f"<ListBucketResult>{page}</ListBucketResult>")
    server.play(*[odd] * TRIES)
    with pytest.raises(StoreUnavailableError, match=f"gave up after {TRIES} tries"):
        list(store.list("s3://bucket"))
    assert len(server.requests) == TRIES


@pytest.mark.parametrize("token", ["", "<NextContinuationToken>t</NextContinuationToken>"])
def test_pages_that_do_not_go_on_are_no_endless_listing(server: ScriptedServer, store: S3Store, token: str) -> None:
    page = answer_xml(f"<ListBucketResult><IsTruncated>true</IsTruncated>{token}{ITEM}</ListBucketResult>")
    server.play(*[page] * 10)
    with pytest.raises(StoreUnavailableError, match="do not go on"):
        list(store.list("s3://bucket"))
    assert len(server.requests) == (2 if token else 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(206, CONTENT, {"ETag": '"e"', "Content-Range": "bytes 90-99/100"}), StoreUnavailableError),
        (Answer(206, CONTENT, {"ETag": '"e"', "Content-Range": "bytes */*"}), StoreUnavailableError),
        (Answer(200, CONTENT, {"ETag": '"e"'}), StoreUnavailableError),
        (Answer(206, CONTENT, {"ETag": '"f"', "Content-Range": "bytes 5-14/100"}), ObjectChangedError),
        (Answer(206, CONTENT, {"ETag": '"e"', "Content-Range": "bytes 5-9/10"}), ObjectChangedError),
    ],
)
def test_bytes_of_another_range_or_version_are_never_taken(
    server: ScriptedServer, store: S3Store, answer: Answer, error: type[Exception]
) -> None:
    server.play(*[answer] * TRIES)
    with pytest.raises(error):
        store.read_range(URI, 5, 15, etag="e")
    assert len(server.requests) == (TRIES if error is StoreUnavailableError else 1)


def test_a_body_of_untold_length_is_not_read(server: ScriptedServer, store: S3Store) -> None:
    chunked = Answer(200, b"5\r\nhello\r\n0\r\n\r\n", {"ETag": '"e"', "Transfer-Encoding": "chunked"})
    server.play(*[chunked] * TRIES)
    with pytest.raises(StoreUnavailableError, match="ContentLength"):
        store.read(URI, bytes_max=10)
    assert len(server.requests) == TRIES


def test_a_weak_etag_is_the_one_that_was_listed(server: ScriptedServer, store: S3Store) -> None:
    server.play(Answer(206, CONTENT, {"ETag": 'W/"e"', "Content-Range": "bytes 5-14/100"}))
    assert store.read_range(URI, 5, 15, etag="e") == CONTENT


def test_an_upload_without_its_id_or_a_parts_etag_is_not_gone_on_with(
    server: ScriptedServer, store: S3Store, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PART_BYTES + 1))
    server.play(*[answer_xml("<InitiateMultipartUploadResult/>")] * TRIES)
    with pytest.raises(StoreUnavailableError, match="UploadId"):
        store.put_file(URI, path)
    begun = answer_xml("<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    server.play(begun, *[Answer(200)] * TRIES, Answer(204))
    with pytest.raises(StoreUnavailableError, match="ETag"):
        store.put_file(URI, path)
    assert server.requests[-1].method == "DELETE"


def test_a_small_put_is_one_put_with_its_checksum_and_one_head(
    server: ScriptedServer, store: S3Store, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT).hexdigest()
    server.play(Answer(200, b"", {"ETag": f'"{md5}"'}), head(10, md5))
    info = store.put_file(URI, path)
    assert (info.uri, info.size_bytes, info.etag) == (URI, 10, md5)
    assert [(request.method, request.body) for request in server.requests] == [("PUT", CONTENT), ("HEAD", b"")]
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert server.requests[0].headers["x-amz-checksum-sha256"] == digest


@pytest.mark.parametrize("holds", [head(9, hashlib.md5(CONTENT).hexdigest()), head(10, "0" * 32), Answer(404)])
def test_a_store_that_holds_something_else_than_was_put_is_a_fault(
    server: ScriptedServer, store: S3Store, holds: Answer
) -> None:
    server.play(*[Answer(200), holds] * TRIES)
    with pytest.raises(StoreUnavailableError):
        store.put(URI, CONTENT)
    assert [request.method for request in server.requests] == ["PUT", "HEAD"] * TRIES


@pytest.mark.parametrize(
    "holds",
    [head(10, "0" * 32, **{"x-amz-server-side-encryption": "aws:kms"}), head(10, "not-an-md5")],
)
def test_an_etag_that_is_no_md5_is_not_compared_as_one(server: ScriptedServer, store: S3Store, holds: Answer) -> None:
    server.play(Answer(200), holds)
    assert store.put(URI, CONTENT).size_bytes == 10


WRITTEN = Answer(200, b"", {"ETag": '"mine"'})
EXISTS = failed(412, "PreconditionFailed")


@pytest.mark.parametrize(
    ("answers", "etag"),
    [
        ([WRITTEN], "mine"),
        ([EXISTS], None),
        ([failed(409, "ConditionalRequestConflict"), WRITTEN], "mine"),
        ([Answer(reset=True), EXISTS], None),  # a lost reply: the caller reads back whose it is
        ([failed(503, "SlowDown"), failed(503, "SlowDown"), WRITTEN], "mine"),
    ],
)
def test_put_if_absent_by_what_the_store_answers(
    server: ScriptedServer, store: S3Store, answers: list[Answer], etag: str | None
) -> None:
    server.play(*answers)
    written = store.put_if_absent(URI, CONTENT)
    assert (written.etag if written else None) == etag
    assert len(server.requests) == len(answers)
    assert {request.headers["if-none-match"] for request in server.requests} == {"*"}


def test_put_if_absent_with_no_answer_has_no_known_outcome(server: ScriptedServer, store: S3Store) -> None:
    server.play(*[Answer(reset=True)] * RESENT * TRIES)
    with pytest.raises(StoreUnavailableError):
        store.put_if_absent(URI, CONTENT)
    assert len(server.requests) == RESENT * TRIES


CREATED = answer_xml("<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
PART_MD5S = ("1" * 32, "2" * 32)
PARTS = [Answer(200, b"", {"ETag": f'"{md5}"'}) for md5 in PART_MD5S]
WHOLE_ETAG = hashlib.md5(bytes.fromhex("".join(PART_MD5S))).hexdigest() + "-2"
COMPLETED = answer_xml(f"<CompleteMultipartUploadResult><ETag>{WHOLE_ETAG}</ETag></CompleteMultipartUploadResult>")
GONE = failed(404, "NoSuchUpload")
TWO_PARTS_BYTES = PART_BYTES + 1
WHOLE = head(TWO_PARTS_BYTES, WHOLE_ETAG)
WHOLE_BY_MD5 = head(TWO_PARTS_BYTES, hashlib.md5(bytes(TWO_PARTS_BYTES)).hexdigest())
OTHER = head(TWO_PARTS_BYTES, "an-older-object")


@pytest.fixture
def two_parts(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(TWO_PARTS_BYTES))
    return path


@pytest.mark.parametrize(
    "answers",
    [
        [CREATED, *PARTS, COMPLETED, WHOLE],
        [CREATED, *PARTS, COMPLETED, WHOLE_BY_MD5],  # as rclone has it
        [CREATED, PARTS[0], failed(503, "SlowDown"), PARTS[1], COMPLETED, WHOLE],
        [CREATED, *PARTS, failed(500, "InternalError"), COMPLETED, WHOLE],
        [CREATED, *PARTS, Answer(reset=True), GONE, WHOLE],  # completed, but the answer was lost
        [CREATED, *PARTS, COMPLETED, *[Answer(reset=True)] * RESENT, GONE, WHOLE],
    ],
)
def test_an_upload_in_parts_repeats_only_what_failed(
    server: ScriptedServer, store: S3Store, two_parts: Path, answers: list[Answer]
) -> None:
    server.play(*answers)
    info = store.put_file(URI, two_parts)
    assert info.size_bytes == TWO_PARTS_BYTES
    assert len(server.requests) == len(answers)
    parts = [request for request in server.requests if request.method == "PUT"]
    assert b"".join(part.body for part in {part.target: part for part in parts}.values()) == two_parts.read_bytes()
    assert all("x-amz-checksum-sha256" in part.headers for part in parts)


@pytest.mark.parametrize(
    "answers",
    [
        [CREATED, *[failed(503, "SlowDown")] * TRIES],
        [CREATED, *PARTS, *[failed(500, "InternalError")] * TRIES],
        [CREATED, *PARTS, COMPLETED, OTHER, *[GONE, OTHER] * (TRIES - 1)],
        [CREATED, *PARTS, *[GONE, OTHER] * TRIES],
        [CREATED, *PARTS, *[GONE, Answer(404)] * TRIES],
    ],
    ids=["part", "complete", "another object stands there", "dropped, another stands there", "nothing stands there"],
)
def test_an_upload_in_parts_that_fails_is_aborted(
    server: ScriptedServer, store: S3Store, two_parts: Path, answers: list[Answer]
) -> None:
    server.play(*answers, Answer(204))
    with pytest.raises(StoreUnavailableError, match=f"gave up after {TRIES} tries"):
        store.put_file(URI, two_parts)
    assert len(server.requests) == len(answers) + 1
    assert (server.requests[-1].method, server.requests[-1].target) == ("DELETE", "/bucket/key?uploadId=u")


def test_no_credentials_and_no_such_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreDeniedError, match=r"ProfileNotFound; give credentials"):
        s3_store(profile="no-such-profile").stat(URI)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreDeniedError, match=r"NoCredentialsError; give credentials.*storage\.anonymous"):
        s3_store().stat(URI)


def test_anonymous_requests_are_not_signed() -> None:
    with ScriptedServer(GOOD_RANGE) as server:
        s3_store(server.endpoint, anonymous=True).read_range(URI, 0, 10, etag=None)
    assert "authorization" not in server.requests[0].headers


def test_the_endpoint_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(GOOD_RANGE) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        assert s3_store().read_range(URI, 0, 10, etag=None) == CONTENT


def test_two_configs_share_nothing() -> None:
    with ScriptedServer(GOOD_RANGE) as one, ScriptedServer(GOOD_RANGE) as other:
        for server in (one, other):
            s3_store(server.endpoint).read_range(URI, 0, 10, etag=None)
    assert (len(one.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("endpoint", "profile", "error"),
    [
        ("http://user:PW-VISIBLE@127.0.0.1:1", None, ConfigError),
        ("http://user:PW-VISIBLE@no host", None, ConfigError),
        ("http://user:PW-VISIBLE@127.0.0.1:1", "no-such-profile", StoreDeniedError),
    ],
)
def test_an_endpoint_with_a_password_is_refused_without_it(
    endpoint: str, profile: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error, match="endpoint") as caught:
        s3_store(endpoint, profile=profile).stat(URI)
    assert "PW-VISIBLE" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "/path"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="no s3://bucket/key"):
        split_s3_uri(uri)
