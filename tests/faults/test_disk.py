"""Disks that are full or read-only, by file systems in memory that are mounted for the test."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clusters import wait_for
from tests.faults.matrix import row

FEW_TRIES = ("--set=running.infra_attempts_max=2", "--set=retry.attempts_max=2", "--set=running.shards_in_flight=1")

Mount = Callable[[Path, str], None]


def remounted(folder: Path, options: str) -> bool:
    """Whether a mount took these options; read-only is refused while a file is open for writing."""
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts file systems in memory; needs root."""
    with ExitStack() as mounted:

        def mount_one(folder: Path, options: str) -> None:
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount_one


@row("store", "disk full", "the output on a disk of 48 KiB; then it is larger", heavy=True)
def test_full_output(ground, mount):
    ground.put_clean(10)
    out = Path(ground.place.base, "out")
    mount(out, "size=48k")
    ended = ground.run(*FEW_TRIES)
    says = ["ENOSPC", "free some space", "the same command again does the rest"]
    objects = ground.check(ended, exit_code=1, may_miss=True, says=says)
    num_committed = sum(path.startswith("commits/") for path in objects)
    assert 0 < num_committed < 10
    assert not list(out.rglob(".tmp-*")), "what did not fit is gone"
    assert remounted(out, "size=10m")
    ended = ground.run(*FEW_TRIES)
    ground.check(ended)
    assert ended.report["num_committed_now"] == 10 - num_committed


@row("store", "temporary disk full", "TMPDIR, where token shards are gathered, of 4 KiB", heavy=True)
def test_full_spool(ground, mount, tmp_path):
    ground.put_clean()
    mount(tmp_path / "spool", "size=4k")
    ended = ground.run(*FEW_TRIES, TMPDIR=str(tmp_path / "spool"))
    names = sorted(ground.shards)
    objects = ground.check(ended, exit_code=1, failed=dict.fromkeys(names, "TMPDIR"), says=["No space left"])
    failures = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
    assert {failure["kind"] for failure in failures} == {"infra"}
    ground.check(ground.run())


@row(
    "store",
    "read-only output",
    "mounted so from the start, and from the second commit on; then writable again",
    heavy=True,
)
def test_read_only(ground, mount):
    ground.put_clean(10)
    out = Path(ground.place.base, "out")
    mount(out, "ro")
    ended = ground.run()
    assert (ended.exit_code, ended.report) == (2, {})
    assert "EROFS" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert remounted(out, "rw")
    running = ground.start(*FEW_TRIES, "--codec=calibrated:cost_s=0.3", "--set=running.denied_s_max=0.3")
    wait_for(lambda: sum(path.startswith("commits/") for path in ground.place.objects()) >= 2, "two commits")
    wait_for(lambda: remounted(out, "ro"), "read-only")
    ended = running.wait()
    ground.check(ended, exit_code=2, may_miss=True, says=["EROFS", "the same command again does the rest"])
    assert remounted(out, "rw")
    ground.check(ground.run())
