"""The driver is killed right after each of its calls to the store, one after the other; running again completes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpus import committed_hashes, put_shards, speech_shards, tokens_of
from tests.jobs.test_run import FAST

ROOT = Path(__file__).parents[2]
SIGKILLED = -9


class Killable:
    """A process that runs jobs in children of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, inputs: list[str], kill_after: int | None = None) -> tuple[int, dict, list[str]]:
        """(exit code, report, log of calls) of one run in `folder`/out."""
        report, log = folder / "report.json", folder / "log.txt"
        report.unlink(missing_ok=True)
        config = {"input": inputs, "output": f"{folder}/out", "codec": "calibrated:", "executor": "inline", **FAST}
        request = {"config": config, "kill_after": kill_after, "report": str(report), "log": str(log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        found = json.loads(report.read_text()) if report.exists() else {}
        return answer["exit"], found, log.read_text().splitlines()


@contextmanager
def killable() -> Iterator[Killable]:
    command = [sys.executable, "-m", "tests.jobs.killable"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Killable(process)
        finally:
            process.stdin.close()
            process.wait(30)


def attempts(folder: Path) -> dict[str, str]:
    """Attempt by shard of the commits that stand."""
    return {path.stem: json.loads(path.read_text())["attempt"] for path in (folder / "out" / "commits").glob("*.json")}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_after_any_call_to_the_store_the_same_command_completes(tmp_path):
    shards = dict(list(speech_shards(5).items())[:2])
    inputs = put_shards(str(tmp_path / "in"), shards)
    whole = tmp_path / "whole"
    whole.mkdir()
    with killable() as first, killable() as second:
        exit_code, report, calls = first.run(whole, inputs)
        assert (exit_code, report["num_committed_now"]) == (0, 2)
        wanted, tokens = committed_hashes(str(whole / "out")), tokens_of(str(whole / "out"))
        assert len(calls) > 20

        def kill_and_resume(runner: Killable, kill_after: int) -> None:
            folder = tmp_path / f"killed-{kill_after}"
            folder.mkdir()
            exit_code, report, seen = runner.run(folder, inputs, kill_after)
            assert (exit_code, report) == (SIGKILLED, {}), f"not killed after call {kill_after}"
            assert len(seen) == kill_after
            before = attempts(folder)
            exit_code, report, _ = runner.run(folder, inputs)
            assert (exit_code, report["state"]) == (0, "complete"), f"killed after {seen[-1]}"
            assert report["num_committed_now"] == 2 - len(before), "only what was not committed is done again"
            assert attempts(folder).items() >= before.items(), "what was committed stands"
            assert committed_hashes(str(folder / "out")) == wanted, f"killed after {seen[-1]}"
            assert tokens_of(str(folder / "out")) == tokens, "a plain glob sees each sample once"

        def half(runner: Killable, points: range) -> None:
            for point in points:
                kill_and_resume(runner, point)

        with ThreadPoolExecutor(2) as pool:
            halves = [
                pool.submit(half, first, range(1, len(calls), 2)),
                pool.submit(half, second, range(2, len(calls), 2)),
            ]
            for one in halves:
                one.result()
