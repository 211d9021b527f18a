"""Runs commands in forked children: real processes that begin where everything is imported, so a run costs its work.

One JSON request a line on stdin; the child's pid is answered at once, its end stands in a file of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa

import jobs.cli
import jobs.run
import pipeline.storage_s3
import pipeline.worker  # noqa: F401 (all imported for the children)


def run(request: dict[str, Any]) -> None:
    """In the child: the command, with its streams, its environment and whoever sabotages it."""
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # looked for anew, by TMPDIR
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["sabotage"]:
        module, function, arguments = request["sabotage"]
        getattr(importlib.import_module(module), function)(**arguments)
    sys.argv = ["voxmill", *request["command"]]
    jobs.cli.entry()


def keep(request: dict[str, Any]) -> None:
    """In the child's parent: wait for its end and write it down."""
    os.setsid()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            run(request)
        except SystemExit as leaving:
            os._exit(leaving.code if isinstance(leaving.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    sys.stdout.write(json.dumps({"pid": child}) + "\n")
    sys.stdout.flush()
    _, status, used = os.wait4(child, 0)
    end = {"exit_code": os.waitstatus_to_exitcode(status), "rss_bytes_max": used.ru_maxrss * 1024}
    path = Path(request["ended"])
    part = path.with_suffix(".part")
    part.write_text(json.dumps(end))
    part.rename(path)
    os._exit(0)


def main() -> None:
    """Fork for each request."""
    pa.array([0])  # pyarrow imports pandas at its first array: half a second for each child otherwise
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            keep(request)


if __name__ == "__main__":
    main()
