"""What a failed S3 request means, by botocore's error code or exception class, never by its text; odd answers.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from pipeline.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectMissingError,
    RefusedError,
    StoreDeniedError,
    StoreUnavailableError,
    UnsafeStoreError,
    VoxmillError,
)

_TRANSPORT_ERRORS = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,  # half of an XML answer, or a proxy's HTML
    aiohttp.ClientError,
    OSError,
)
STORE_ERRORS: tuple[type[Exception], ...] = (boto.ClientError, boto.BotoCoreError, *_TRANSPORT_ERRORS, ValueError)
"""All that a request may raise and `translated` knows."""

_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.LoginError,
)
_DENIED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_UNAVAILABLE_CODES = {
    "BadDigest",  # this and the next two: the body was damaged on its way
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "OperationAborted",
    "ConditionalRequestConflict",
}
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


_FIELDS = {
    "list_objects_v2": ("IsTruncated",),
    "list_multipart_uploads": ("IsTruncated",),
    "create_multipart_upload": ("UploadId",),
    "upload_part": ("ETag",),
    "head_object": ("ContentLength",),
    "get_object": ("ContentLength",),
}
_ITEM_FIELDS = {"Contents": ("Key", "Size"), "Uploads": ("Key", "UploadId", "Initiated")}


def check_answer(operation: str, answer: Mapping[str, Any], place: str) -> None:
    """Raise `StoreUnavailableError` where an answer lacks what makes it one: a gateway's page is no empty listing."""
    lacking = [name for name in _FIELDS.get(operation, ()) if name not in answer]
    for items, names in _ITEM_FIELDS.items():
        lacking += [f"{items}.{name}" for item in answer.get(items, ()) for name in names if name not in item][:1]
    if lacking or any(item.get("Size", 0) < 0 for item in answer.get("Contents", ())):
        raise StoreUnavailableError(f"{place}: the answer is none of this operation's ({', '.join(lacking) or 'Size'})")


def translated(error: Exception, place: str) -> VoxmillError:
    """The error of our tree; `place` says the operation, the object and the endpoint.

    Left out are the store's own words, which can hold the access key and the string that was signed, and a
    proxy's address, which can hold its password.
    """
    if isinstance(error, boto.ClientError):
        return _of_answer(error, place)
    if isinstance(error, _CREDENTIAL_ERRORS):
        return StoreDeniedError(
            f"{place}: {type(error).__name__}; give credentials by the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), a profile of ~/.aws (storage.profile) or an instance role, or set "
            "storage.anonymous for a public bucket"
        )
    if isinstance(error, boto.ProxyConnectionError):
        return StoreUnavailableError(f"{place}: the proxy of the environment cannot be reached")
    if isinstance(error, _TRANSPORT_ERRORS):
        cause = getattr(error, "kwargs", {}).get("error", error)
        return StoreUnavailableError(f"{place}: {type(error).__name__} ({type(cause).__name__}: {cause})")
    if isinstance(error, ValueError):  # a number or a time in the answer that is none, in botocore's parser
        return StoreUnavailableError(f"{place}: {type(error).__name__}: the answer cannot be understood")
    return ConfigError(f"{place}: {type(error).__name__}: {error}; check the URI and the storage settings")


def _of_answer(error: boto.ClientError, place: str) -> VoxmillError:
    code = str(error.response.get("Error", {}).get("Code", "?"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind: type[VoxmillError]
    # HEAD answers have no body: a bare 400 is how they say that a token has expired.
    if code in _DENIED_CODES or code == "400" or status in (401, 403):
        kind, advice = (
            StoreDeniedError,
            (
                "check that the credentials are this store's and not expired, that they allow this operation here, "
                "and that the clock is right"
            ),
        )
    elif code in _UNAVAILABLE_CODES or status in (408, 409, 429):
        kind, advice = StoreUnavailableError, "the store asks to try again"
    elif status == 404:
        kind, advice = ObjectMissingError, "it is not there"
    elif status in (412, 416):
        kind, advice = ObjectChangedError, "the object is not the one that was listed"
    elif status == 501:
        kind, advice = UnsafeStoreError, "the store lacks this operation or a condition on it; choose another"
    elif status >= 500 or status == 200:  # 200: an error inside the answer that completes a multipart upload
        kind, advice = StoreUnavailableError, "the store is at fault"
    elif code in _REGION_CODES or status in (301, 307, 308):
        kind, advice = ConfigError, "set AWS_REGION to the bucket's region, and check the endpoint"
    else:
        kind, advice = RefusedError, "the store holds the request to be wrong: check the URI and the endpoint"
    return kind(f"{place}: {code} (HTTP {status}); {advice}")
