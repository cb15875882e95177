"""What a cell answers over HTTP to those who watch it: /metrics, /healthz and /readyz.

/healthz asks whether the process should be left alone, /readyz whether it does its work now; each says 200
`ok` or 503 with the reason. The server has threads of its own and never touches the dataflow's: it asks the
two functions it was given, so these must be quick and need no lock that the worker holds for long.
"""

import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from onceflow.errors import ConfigError

_log = logging.getLogger(__name__)

Probe = Callable[[], str | None]
"""None: all is well; otherwise the reason why not."""


class Server:
    """Serves until it is closed."""

    def __init__(self, listener: "_Listener") -> None:
        self._listener = listener
        self._thread = threading.Thread(
            target=listener.serve_forever, args=(0.1,), name="onceflow-http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on, also if any free one was asked for."""
        return self._listener.server_port

    def close(self) -> None:
        """Stop answering and give the port back."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


def serve(port: int, host: str, registry: CollectorRegistry, ready: Probe, alive: Probe) -> Server:
    """Serve on this port; 0 takes any free one (whether to serve at all is the caller's to decide)."""
    try:
        listener = _Listener(port, host)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        remedy = "give each cell of a machine its own port, or 0 for none" if in_use else "set another one"
        raise ConfigError(
            f"cannot listen on {host}:{port} (http_host, http_port): {error.strerror}: {remedy}"
        ) from error
    listener.set_app(_application(registry, {"/readyz": ready, "/healthz": alive}))
    return Server(listener)


def _application(registry: CollectorRegistry, probes: dict[str, Probe]) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", "only GET"
        elif path == "/metrics":
            return metrics(environ, start_response)
        elif path in probes:
            reason = _ask(path, probes[path])
            status, body = ("503 Service Unavailable", reason) if reason else ("200 OK", "ok")
        else:
            status, body = "404 Not Found", "try /metrics, /healthz or /readyz"
        content = f"{body}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(content)))]
        start_response(status, headers)
        return [b"" if method == "HEAD" else content]

    return answer


def _ask(path: str, probe: Probe) -> str | None:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 (a probe that fails is an answer: not well)
        _log.warning("the check behind %s failed", path, exc_info=True)
        return f"the check failed: {error!r}"


class _Quiet(WSGIRequestHandler):
    timeout = 10  # a client that says nothing does not keep its thread

    def log_message(self, *_: object) -> None:
        """Probes come every few seconds; a line for each would hide the others."""


class _Listener(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, port: int, host: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Quiet)

    def server_bind(self) -> None:
        # The standard one asks the DNS for this machine's name, which can take seconds and is of no use here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, *_: object) -> None:
        _log.debug("a client went away", exc_info=True)
