"""`voxmill gc` beside runs: what may still be committed is not touched, or can no longer be committed."""

from __future__ import annotations

import json
import os
import signal

from tests.clusters import Process, wait_for
from tests.faults.matrix import row
from tests.faults.saboteurs import noted, sabotage


@row(
    "people", "gc during a run", "while a shard is between its objects and its commit, with a day's grace and with none"
)
def test_gc_during_a_run(ground, tmp_path):
    ground.put_clean()
    notes = tmp_path / "notes"
    at = r"before put_if_absent out/commits/speech-001-\*\.json #1"
    running = ground.start(
        "--set=running.shards_in_flight=1",
        sabotage=sabotage("at_store_calls", notes, only=at, signal_name="SIGSTOP"),
    )
    wait_for(lambda: noted(notes) and Process.find(running.pid).is_stopped, "the run between objects and commit")
    before = ground.place.objects()

    gentle = ground.voxmill("gc", f"{ground.place.base}/out", "--json")
    assert gentle.exit_code == 0, gentle.stderr
    assert (len(gentle.report["kept"]), gentle.report["orphans"]) == (1, [])
    assert ground.place.objects() == before

    ruthless = ground.voxmill("gc", f"{ground.place.base}/out", "--grace-s=0", "--json")
    assert ruthless.exit_code == 0, ruthless.stderr
    (shard_id,) = ruthless.report["fenced"]
    assert ruthless.report["orphans"] == [path for path in before if path.startswith("tokens/speech-001-")] != []
    os.kill(running.pid, signal.SIGCONT)
    objects = ground.check(running.wait(), says=["AttemptFencedError"])
    (failure,) = (json.loads(content) for path, content in objects.items() if path.startswith("failures/"))
    assert (failure["shard_id"], failure["kind"], failure["final"]) == (shard_id, "infra", False)
    assert json.loads(objects[f"commits/{shard_id}.1.json"])["term"] == 1
