"""A network between the clients and a broker, in which single Kafka requests or answers are late or get lost.

The broker advertises this proxy's address, so all clients come through it. Bytes pass as they are. Of each request
the proxy reads the header (size, api key, api version, correlation id, client id): that says what it is and whose. A
test asks for the next such request, or its answer, to be held, and with it whatever follows on its connection, as in
a network that stalls. Then it is passed on, however late, even if the client is long dead; or it is lost, and the
connection with it.
"""

import socket
import struct
import threading
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

HEADER = struct.Struct(">ihhih")  # size, api key, api version, correlation id, length of the client id


class Api(IntEnum):
    """The keys of the requests that make a transaction, in their order."""

    ADD_PARTITIONS_TO_TXN = 24
    PRODUCE = 0
    ADD_OFFSETS_TO_TXN = 25
    TXN_OFFSET_COMMIT = 28
    END_TXN = 26


class Hold:
    """One request of a client, or the answer to it, held from when it comes until `pass_on` or `lose`."""

    def __init__(self, client: str, api: Api, *, answer: bool) -> None:
        self.client, self.api, self.answer = client, api, answer
        self.taken = False
        self._came = threading.Event()
        self.caught = self._came.is_set  # whether it has come
        self._decided = threading.Event()
        self._lost = False

    def __str__(self) -> str:
        return f"{'the answer to ' if self.answer else ''}{self.client}'s {self.api.name}"

    def pass_on(self) -> None:
        """Let it go on its way."""
        self._decided.set()

    def lose(self) -> None:
        """Throw it away, and cut its connection."""
        self._lost = True
        self._decided.set()

    def outcome(self) -> bool:
        """For the connection: wait here; whether to send it on."""
        self._came.set()
        self._decided.wait()
        return not self._lost


class Proxy:
    """Listens from the start; the file `broker_port` must be there when the first client comes."""

    def __init__(self, broker_port: Path) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.settings = {"advertised.listeners": f"PLAINTEXT://{self.address}"}  # of the broker
        self._broker_port = broker_port
        self._lock = threading.Lock()  # so that one request is held once
        self._holds: list[Hold] = []
        self._sockets: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._accepting.start()

    def hold(self, client: str, api: Api, *, answer: bool) -> Hold:
        """Hold the next such request of the client, or the answer to it."""
        hold = Hold(client, api, answer=answer)
        self._holds.append(hold)
        return hold

    def close(self) -> None:
        """End all connections."""
        _shut(self._listener)  # ends its `accept`, which closing it would not
        self._accepting.join()
        for hold in self._holds:
            hold.lose()
        _shut(*self._sockets)
        for end in (self._listener, *self._sockets):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", int(self._broker_port.read_text())))
                except OSError:  # it is away, and so are we
                    client.close()
                    continue
                self._sockets += (client, broker)
                held: dict[int, Hold] = {}  # answers to hold, by correlation id
                for pump in (self._requests, self._answers):
                    threading.Thread(target=pump, args=(client, broker, held), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket, held: dict[int, Hold]) -> None:
        while frame := _frame(client):
            _, api, _, correlation, length = HEADER.unpack_from(frame)
            name = frame[HEADER.size : HEADER.size + max(0, length)].decode()
            hold = self._match(api, name)
            if hold is not None and hold.answer:
                held[correlation] = hold
            elif hold is not None and not hold.outcome():
                break
            with suppress(OSError):  # the broker is gone: the other thread sees to it
                broker.sendall(frame)
        _shut(client, broker)

    def _answers(self, client: socket.socket, broker: socket.socket, held: dict[int, Hold]) -> None:
        while frame := _frame(broker):
            hold = held.pop(int.from_bytes(frame[4:8], "big"), None)
            if hold is not None and not hold.outcome():
                break
            with suppress(OSError):  # a dead client's request may still be on its way: go on
                client.sendall(frame)
        _shut(client, broker)

    def _match(self, api: int, client: str) -> Hold | None:
        with self._lock:
            for hold in self._holds:
                if not hold.taken and (hold.api, hold.client) == (api, client):
                    hold.taken = True
                    return hold
        return None


def _frame(end: socket.socket) -> bytes:
    """The next request or answer, its size included; b"" at the end."""
    try:
        head = end.recv(4, socket.MSG_WAITALL)
        body = end.recv(size := int.from_bytes(head, "big"), socket.MSG_WAITALL) if len(head) == 4 else b""
    except OSError:  # reset, or shut by the other thread
        return b""
    return head + body if body and len(body) == size else b""


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # it is shut already
            end.shutdown(socket.SHUT_RDWR)
