"""Writes whose outcome is not known, and stores whose guarantee is weaker: each commit counts once or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.corpus import CLIPS, tar_of
from tests.faults.exchanges import LoseReply, Refuse, Reset
from tests.faults.ground import Ground, Place
from tests.faults.invariants import commits
from tests.faults.matrix import row
from tests.faults.proxy import FaultProxy
from tests.faults.rules import any_of, first, is_put, tries
from tests.servers import rclone_server


def deletions(log):
    """Deletions in the output, that of the probe apart."""
    return [one for one in log if one.method == "DELETE" and not one.key.startswith("out/.probe-")]


def check_deleted_on_proof(log, objects) -> None:
    """Each deleted object was of an attempt that the commit of its shard is not of, and that commit was read before."""
    standing = commits(objects)
    for deletion in deletions(log):
        shard_id, attempt, _ = deletion.key.rsplit("/", 1)[1].split(".")
        (record,) = (record for record in standing.values() if record["shard_id"] == shard_id)
        assert record["attempt"] != attempt
        proofs = [
            one
            for one in log
            if (one.method, one.client_status) == ("GET", 200) and one.key.startswith(f"out/commits/{shard_id}.")
        ]
        assert any(proof.ended_s < deletion.started_s for proof in proofs), f"{deletion.key} was deleted without proof"


@row("store", "reply lost after a put", "the first two replies to each put of an object and of a commit")
def test_reply_lost(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = any_of(first(2, LoseReply(), is_put("tokens")), first(2, LoseReply(), is_put("commits")))
    ended = s3_ground.run()
    s3_ground.check(ended)
    assert ended.report["num_committed_now"] == 3
    for folder, statuses in (("tokens", [200, 200, 200]), ("commits", [200, 412, 412])):
        for exchanges in tries(one for one in proxy.log if is_put(folder)(one)).values():
            assert [exchange.store_status for exchange in exchanges] == statuses
    assert not deletions(proxy.log)
    s3_ground.note(f"{len(proxy.faults())} requests")


@row(
    "store",
    "outcome of a commit unknown",
    "no reply to any try of it, and none to reading it back: once it had landed, once not",
)
def test_unknown_outcome(s3_ground, proxy):
    s3_ground.put_clean()
    tried: set[str] = set()

    def rule(request):
        if not request.key.startswith("out/commits/"):
            return None
        if request.method == "PUT":
            tried.add(request.key)
        return read_back(request) if request.key in tried else None

    landed = any_of(
        first(8, LoseReply(), lambda r: r.method == "PUT" and "speech-000" in r.key),
        first(4, Refuse(), lambda r: r.method == "GET" and "speech-000" in r.key),
    )
    not_landed = any_of(
        first(8, Reset(), lambda r: r.method == "PUT" and "speech-001" in r.key),
        first(4, Refuse(), lambda r: r.method == "GET" and "speech-001" in r.key),
    )
    read_back = any_of(landed, not_landed)
    proxy.rule = rule
    objects = s3_ground.check(s3_ground.run("--set=retry.attempts_max=4"))
    failures = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
    assert [(one["kind"], one["error"], one["final"]) for one in failures] == 2 * [
        ("infra", "StoreUnavailableError", False)
    ]
    (removed,) = deletions(proxy.log)
    assert "speech-001" in removed.key, "of the try that had not landed, once another one had"
    check_deleted_on_proof(proxy.log, objects)
    unknown = {one["shard_id"][:10]: one["attempt"] for one in failures}
    assert commits(objects)["speech-000.tar"]["attempt"] == unknown["speech-000"]
    assert commits(objects)["speech-001.tar"]["attempt"] != unknown["speech-001"]


IN_PARTS = ("--carry=bin", f"--set=storage.part_bytes={5 << 20}")


def put_large(ground) -> dict:
    """Put a shard whose token shard takes two parts; returns its rows."""
    noise = np.random.default_rng(0)
    contents = {clip.stem: clip.read_bytes() for clip in CLIPS[:3]}
    members = [
        member
        for key, audio in contents.items()
        for member in ((f"{key}.flac", audio), (f"{key}.bin", noise.bytes(2 << 20)))
    ]
    ground.put({"large.tar": tar_of(members)})
    return {"large.tar": {key: ground.lab.clip_ids(audio) for key, audio in contents.items()}}


@row("store", "reply lost in an upload in parts", "the first to each part and to its end; then the upload is unknown")
def test_parts(s3_ground, proxy):
    rows = put_large(s3_ground)
    proxy.rule = any_of(
        first(1, LoseReply(), lambda r: r.key.startswith("out/tokens/") and "uploadId" in r.query),
        # moto answers a second completion like the first, as AWS does for a while; others know the upload no more.
        first(2, Refuse(404, "NoSuchUpload"), lambda r: r.method == "POST" and "uploadId" in r.query),
    )
    s3_ground.check(s3_ground.run(*IN_PARTS), rows=rows)
    assert [(one.method, one.fault) for one in proxy.faults()] == [
        ("PUT", "LoseReply"),
        ("PUT", "LoseReply"),
        ("POST", "LoseReply"),
        ("POST", "Refuse"),
    ]
    assert not deletions(proxy.log)
    assert not s3_ground.place.uploads()
    s3_ground.note("4 requests")


@row("store", "an upload in parts is dropped", "aborted, as gc does, when its second part comes")
def test_dropped_upload(s3_ground, proxy):
    rows = put_large(s3_ground)
    dropped = []

    def rule(request):
        if request.query.get("partNumber") == "2" and not dropped:
            s3_ground.place.drop_uploads()
            dropped.append(request.query["uploadId"])
        # moto breaks here, with HTTP 500.
        return Refuse(404, "NoSuchUpload") if request.query.get("uploadId") in dropped else None

    proxy.rule = rule
    objects = s3_ground.check(s3_ground.run(*IN_PARTS), rows=rows)
    (failure,) = (json.loads(content) for path, content in objects.items() if path.startswith("failures/"))
    assert (failure["kind"], failure["final"]) == ("infra", False), "no fault of the shard"
    assert [one.method for one in proxy.faults()] == ["PUT"]
    assert not s3_ground.place.uploads()


@pytest.fixture
def rclone_ground(faults_lab, tmp_path, request):
    """A ground on a store that checks signatures and ignores put-if-absent."""
    (tmp_path / "bucket").mkdir()
    with rclone_server(tmp_path) as server:
        yield Ground(faults_lab, Place("s3://bucket", server), server.environment())


@row("store", "put-if-absent is ignored", "a store (rclone) that lets the second put through", heavy=True)
def test_unsafe_store(rclone_ground):
    rclone_ground.put_clean(2)
    ended = rclone_ground.run()
    assert (ended.exit_code, ended.report) == (2, {})
    assert "--allow-unsafe-store" in ended.stderr
    assert not rclone_ground.place.objects(), "a refused run leaves nothing"
    with FaultProxy(rclone_ground.place.server) as proxy:
        ended = rclone_ground.run("--allow-unsafe-store", AWS_ENDPOINT_URL=proxy.endpoint)
        objects = rclone_ground.check(ended, says=["WARNING: unsafe store"])
        assert ended.report["unsafe_store"] is True
        assert json.loads(objects["status.json"])["unsafe_store"] is True
        secret = rclone_ground.place.server.secret_key
        assert not any(secret in repr(one) for one in proxy.log)
    told = rclone_ground.voxmill("status", "s3://bucket/out")
    assert "unsafe store" in told.stdout
