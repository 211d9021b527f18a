"""Fixtures of the fault matrix, and its table at the end of a test run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.faults.ground import Ground, Lab, Place, lab
from tests.faults.matrix import Row, Tally, table
from tests.faults.proxy import FaultProxy

TALLIES = pytest.StashKey[dict[Row, Tally]]()
GROUND = pytest.StashKey[Ground]()


@pytest.fixture(scope="session")
def faults_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """What all rows share."""
    with lab(tmp_path_factory.mktemp("faults")) as opened:
        yield opened


@pytest.fixture
def ground(faults_lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A ground on the local disk."""
    made = Ground(faults_lab, Place(str(tmp_path)))
    request.node.stash[GROUND] = made
    yield made
    faults_lab.end_all()


@pytest.fixture
def s3_ground(
    faults_lab: Lab, moto_server: servers.S3Server, bucket: str, request: pytest.FixtureRequest
) -> Iterator[Ground]:
    """A ground in a fresh bucket of a moto server."""
    made = Ground(faults_lab, Place(bucket, moto_server), moto_server.environment())
    request.node.stash[GROUND] = made
    yield made
    faults_lab.end_all()


@pytest.fixture
def proxy(moto_server: servers.S3Server, s3_ground: Ground) -> Iterator[FaultProxy]:
    """A proxy that the runs of `s3_ground` go through; its rule is the test's to set."""
    with FaultProxy(moto_server) as opened:
        s3_ground.environment["AWS_ENDPOINT_URL"] = opened.endpoint
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[Any]:
    report = yield
    marker = item.get_closest_marker("fault_row")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        tally = item.config.stash.setdefault(TALLIES, {}).setdefault(Row(*marker.args), Tally())
        tally.num_passed += report.passed
        tally.num_failed += report.failed
        tally.num_skipped += report.skipped
        made = item.stash.get(GROUND, None)
        if made is not None and report.when == "call":
            tally.retries += made.retries
            tally.num_redone += made.num_redone
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tallies = config.stash.get(TALLIES, {})
    if config.getoption("--heavy") and tallies:
        lines = list(table(tallies))
        terminalreporter.section("fault matrix")
        terminalreporter.write("\n".join(lines) + "\n")
        path = Path(config.rootpath) / "build" / "faults.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
