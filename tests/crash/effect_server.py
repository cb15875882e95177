"""A target of effects over HTTP, as targets are at their worst; and its log, which alone says what was done.

POST /ORDER/BEHAVIOUR/TIMES does the order and answers with an id: once per `Idempotency-Key` if there is one, else each
time. The first TIMES requests for an order are dealt with as the behaviour says:

    late      done; no answer within the caller's patience
    broken    done; the answer is 500
    drip      done; the answer comes byte by byte, for longer than the caller's patience
    reset     done; the connection breaks in the middle of the answer
    garbage   done; the answer is HTML
    huge      done; the answer has 100 MB
    busy      not done; 429 with `Retry-After`
"""

import itertools
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

PATIENCE_S = 4.0  # of the callers
RETRY_AFTER_S = 1
HUGE = 100 << 20
_PIECE = b"x" * (1 << 20)


class Request(NamedTuple):
    """A request as it came: `answer` of what was done, by this request or by an earlier one of its key."""

    order: str
    key: str
    at: float
    done: bool  # by this request
    answer: str


class EffectServer:
    """The target; `log` holds all requests, in order."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_words: object) -> None:
                """Nothing: the log is `EffectServer.log`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def of(self, order: str) -> list[Request]:
        """The requests for one order."""
        with self._lock:
            return [request for request in self.log if request.order == order]

    def close(self) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Do what is asked, and behave."""
        _, order, behaviour, times = handler.path.split("/")
        key = handler.headers.get("Idempotency-Key", "")
        handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        with self._lock:
            earlier = [request for request in self.log if request.order == order]
            if len(earlier) >= int(times):
                behaviour = "well"
            known = next((r.answer for r in earlier if r.answer and key and r.key == key), "")
            answer = "" if behaviour == "busy" else known or f"id-{next(self._numbers)}"
            self.log.append(Request(order, key, time.monotonic(), bool(answer) and not known, answer))
        with suppress(OSError):  # the caller has gone: that is what some of these behaviours are for
            getattr(self, f"_{behaviour}")(handler, json.dumps({"id": answer}).encode())

    def _well(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 200, len(body))
        handler.wfile.write(body)

    def _late(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._closed.wait(1.5 * PATIENCE_S)

    def _broken(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 500, 0)

    def _drip(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 200, len(body))
        for byte in body:
            handler.wfile.write(bytes([byte]))
            self._closed.wait(1.5 * PATIENCE_S / len(body))

    def _reset(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 200, len(body))
        handler.wfile.write(body[: len(body) // 2])
        handler.close_connection = True

    def _garbage(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._well(handler, b"<html>it went well, we think</html>")

    def _huge(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 200, HUGE)
        for _ in range(HUGE // len(_PIECE)):
            handler.wfile.write(_PIECE)

    def _busy(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._begin(handler, 429, 0, {"Retry-After": str(RETRY_AFTER_S)})

    def _begin(
        self, handler: BaseHTTPRequestHandler, status: int, length: int, headers: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
