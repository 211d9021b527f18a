"""Fixtures for all tests: object stores that live as long as the test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests import servers

# Read by Ray when it is imported: a Ray of these tests listens on loopback alone, and reports to nobody.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--heavy", action="store_true", help="the heavy rows of the fault matrix too, and its table")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Heavy rows run by `make faults` alone."""
    if not config.getoption("--heavy"):
        heavy = [item for item in items if item.get_closest_marker("heavy")]
        items[:] = [item for item in items if not item.get_closest_marker("heavy")]
        config.hook.pytest_deselected(items=heavy)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.S3Server]:
    """One moto server for the whole test run; take `bucket` for a place of your own on it."""
    with servers.moto_server() as server:
        yield server


@pytest.fixture
def bucket(moto_server: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI (`s3://name`) of a fresh bucket, with the environment set for it."""
    return fresh_bucket(moto_server, monkeypatch)


def fresh_bucket(server: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket on a moto server; `monkeypatch` says how long the environment is set for it."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    name = f"bucket-{uuid4().hex}"
    servers.make_bucket(server, name)
    return f"s3://{name}"
