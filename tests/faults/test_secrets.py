"""No credential in any object, message, record or log, whether a run goes well or fails."""

from __future__ import annotations

import base64
import io
import json
import re
import select
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow.parquet as pq
import pytest

from tests import servers
from tests.corpus import speech_shards
from tests.faults.ground import Ended, Place, command
from tests.faults.matrix import row
from tests.faults.saboteurs import noted, sabotage

ACCESS_KEY = "AKIDOFTHEMATRIX00001"
SECRET_KEY = "seCret/+of/the=matrix/that/nobody/may/tell"
SESSION_TOKEN = "toKen//of+the+matrix=="
USER, PASSWORD = "proxy-user-of-the-matrix", "pass word/of+the@matrix"
OWN = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": SESSION_TOKEN}
SECRETS = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, PASSWORD)
DAMAGED = speech_shards(5)["speech-000.tar"][:5000]


def check_untold(told: Mapping[str, bytes], secrets: Iterable[str] = SECRETS) -> None:
    """Raises `AssertionError` where a text holds a secret, as it is or as a URL or a header writes it."""
    for secret in secrets:
        headers = (f"{USER}:{secret}".encode(), secret.encode())
        forms = {secret, quote(secret), quote(secret, safe=""), *(base64.b64encode(one).decode() for one in headers)}
        for name, content in told.items():
            for form in forms:
                assert form.encode() not in content, f"{name} tells {form!r}"


def told_by(ended: Ended, objects: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """All that a run left: what it said and wrote, and the text in compressed tables."""
    told = {"stdout": ended.stdout.encode(), "stderr": ended.stderr.encode(), **(objects or {})}
    for path, content in (objects or {}).items():
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            told[f"rows of {path}"] = f"{table.to_pylist()} {table.schema.metadata}".encode()
    return told


@row("hostile", "credentials: the environment's", "keys and a token of their own; a run with a damaged shard and a bug")
def test_environment(s3_ground, tmp_path):
    s3_ground.put_clean(3)
    s3_ground.put({"damaged.tar": DAMAGED})
    ended = s3_ground.run(sabotage=sabotage("with_bug", tmp_path / "notes", shard="speech-001.tar"), **OWN)
    objects = s3_ground.check(
        ended, exit_code=1, failed={"damaged.tar": "TarError", "speech-001.tar": "RuntimeError"}, never=SECRETS
    )
    records = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
    assert sum("a bug met" in record["traceback"] for record in records) == len(noted(tmp_path / "notes")) == 3
    check_untold(told_by(ended, objects))
    again = s3_ground.run("--retry-failed", **OWN)
    objects = s3_ground.check(again, exit_code=1, failed={"damaged.tar": "TarError"})
    check_untold(told_by(again, objects))


class Relay:
    """An HTTP proxy that forwards all to one server, and drops the connection of a request that matches `dropped`."""

    def __init__(self, server: servers.S3Server) -> None:
        self._target = urlsplit(server.endpoint)
        self.dropped = re.compile(rb"GET \S+/in/speech-001\.tar HTTP")
        self.num_dropped = 0
        self.seen = b""

    def pump(self, client: socket.socket) -> None:
        with socket.create_connection((self._target.hostname, self._target.port)) as upstream:
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    content = ready.recv(1 << 16)
                    if ready is client:
                        self.seen += content[:4096]
                        if self.dropped.match(content):
                            self.num_dropped += 1
                            return
                    if not content:
                        return
                    (upstream if ready is client else client).sendall(content)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The proxy's URL, with a password."""
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                relay.pump(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


@row(
    "hostile",
    "credentials: a proxy's password",
    "through a proxy that drops one shard's requests; and one that is gone",
)
def test_proxy(s3_ground, moto_server):
    s3_ground.put_clean(3)
    relay = Relay(moto_server)
    with relay.serving() as proxy:
        through = {**OWN, "HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
        ended = s3_ground.run("--set=running.infra_attempts_max=2", **through)
    assert b"Proxy-Authorization" in relay.seen
    assert relay.num_dropped > 4
    objects = s3_ground.check(ended, exit_code=1, failed={"speech-001.tar": "StoreUnavailableError"}, never=SECRETS)
    check_untold(told_by(ended, objects))
    gone = s3_ground.run(**through)
    assert gone.exit_code == 1, gone.stderr
    assert "the proxy of the environment cannot be reached" in gone.stderr
    check_untold(told_by(gone))


@row("hostile", "credentials: a wrong secret", "a store that checks signatures; then the right one")
def test_wrong_secret(ground, tmp_path):
    served = tmp_path / "served"
    for name, content in speech_shards(2).items():
        (served / "speech" / "in").mkdir(parents=True, exist_ok=True)
        (served / "speech" / "in" / name).write_bytes(content)
    with servers.rclone_server(served) as server:
        run = command(Place("s3://speech", server), ["speech-000.tar"], "--executor=inline", "--allow-unsafe-store")
        wrong = server.environment() | {"AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        for arguments in (run, ["status", "s3://speech/out"], ["verify", "s3://speech/out"], ["gc", "s3://speech/out"]):
            ended = ground.lab.start(arguments, wrong).wait()
            assert ended.exit_code == 2, ended.stderr
            assert "StoreDeniedError" in ended.stderr
            check_untold(told_by(ended), [SECRET_KEY, server.access_key, server.secret_key])
        assert not (served / "speech" / "out").exists()
        right = ground.lab.start(run, server.environment()).wait()
        assert right.exit_code == 0, right.stderr
        objects = Place("s3://speech", server).objects()
    assert any(path.startswith("commits/") for path in objects)
    check_untold(told_by(right, objects), [server.access_key, server.secret_key])


@row("hostile", "credentials: in a URL", "as input, in a list, braces, output, codec, endpoint; a signed URL")
def test_credentials_in_urls(ground, tmp_path):
    ground.put_clean(2)
    place = f"s3://{ACCESS_KEY}:{quote(SECRET_KEY, safe='')}@bucket"
    listing = tmp_path / "list.txt"
    listing.write_text(f"in/speech-000.tar\n{place}/a.tar\n")
    signed = f"https://bucket.s3.amazonaws.com/a.tar?X-Amz-Credential={ACCESS_KEY}&X-Amz-Signature={PASSWORD}"
    good = f"--input={ground.place.base}/in/speech-000.tar"
    endpoint = f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9"
    cases: list[tuple[list[str], dict[str, str]]] = [
        ([f"--input={place}/a.tar"], {}),
        ([f"--input=@{listing}"], {}),
        ([f"--input=@{place}/list.txt"], {}),
        ([f"--input={place}/{{0..9}}.tar"], {}),
        ([f"--input={signed}"], {}),
        ([good, f"--output={place}/out"], {}),
        ([good, f"--codec={place}/codec"], {}),
        ([good, f"--codec={signed}"], {}),
        ([good, f"--set=storage.endpoint_url={endpoint}"], {}),
        (["--input=s3://bucket/a.tar"], {"AWS_ENDPOINT_URL": endpoint}),
    ]
    for flags, environment in cases:
        arguments = ["run", f"--output={ground.place.base}/out", "--codec=calibrated:", "--executor=inline", *flags]
        ended = ground.lab.start(arguments, environment).wait()
        assert ended.exit_code == 2, f"{flags}: {ended.stderr}"
        assert "Traceback" not in ended.stderr
        check_untold(told_by(ended))
    assert not ground.place.objects()


@row(
    "hostile", "credentials: Ray's logs", "a run on a Ray of its own with keys, a token and a damaged shard", heavy=True
)
def test_logs_of_ray(s3_ground, request: pytest.FixtureRequest):
    # Not below pytest's folder: Ray's sockets stand in it, and their paths are short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cleanup: Callable[[], None] = lambda: shutil.rmtree(folder, ignore_errors=True)  # noqa: E731
    request.addfinalizer(cleanup)
    s3_ground.put_clean(2)
    s3_ground.put({"damaged.tar": DAMAGED})
    ended = s3_ground.run("--executor=ray", "--replicas=1", limit_s=120, RAY_TMPDIR=str(folder), **OWN)
    objects = s3_ground.check(ended, exit_code=1, failed={"damaged.tar": "TarError"}, never=SECRETS)
    logs = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert any(path.endswith("raylet.out") for path in logs)
    check_untold(told_by(ended, objects) | logs)
