"""Fixtures for all tests: object stores that live as long as the test run."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests import servers


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.S3Server]:
    """One moto server for the whole test run; take `bucket` for a place of your own on it."""
    with servers.moto_server() as server:
        yield server


@pytest.fixture
def bucket(moto_server: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI (`s3://name`) of a fresh bucket, with the environment set for it."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    name = f"bucket-{uuid4().hex}"
    servers.make_bucket(moto_server, name)
    return f"s3://{name}"
