"""moto's S3 server, one request at a time: its own threads check a condition and write in two steps.

`python -m tests.moto PORT` serves on 127.0.0.1.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

ORDER_HEADER = "x-store-order"
"""Of each answer: the how-manieth request was done; what histories are judged by."""


class OneAtATime:
    """A WSGI application whose requests are received side by side, since a client may stall, and done one by one."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._num_done = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("wsgi.input_terminated"):  # else it comes in chunks, and ends by itself
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with self._lock:
            self._num_done += 1
            order = (ORDER_HEADER, str(self._num_done))

            def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
                return start_response(status, [*headers, order], *more)

            return list(self._application(environ, start))


if __name__ == "__main__":
    served = OneAtATime(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), served, threaded=True)
