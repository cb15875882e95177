"""The baseline of `steps`: `python -m benchmarks.raw_steps SERVERS TOPIC OUTPUT LEDGER GROUP CALLS TOTAL`.

One process, confluent-kafka, msgspec and asyncio alone, on three threads as a cell has them: agents go on, calls are
tasks of an event loop, a committer makes the transactions. Each call's intent is committed before it is sent, its
result with the next one; at the end the completion goes out and the run's record is deleted. There are no tenants,
nothing is deduplicated, limited, timed out or tried again, nothing is kept on disk, and what is on record is never
read: the least that durable calls can take, no alternative.
"""

import asyncio
import gc
import sys
from collections import defaultdict, deque
from collections.abc import Coroutine, Generator, Iterable
from contextvars import Context
from threading import Condition, Event, Thread
from typing import Any

import msgspec
import xxhash
from confluent_kafka import Message, Producer, TopicPartition

from benchmarks.raw import clients

IN_FLIGHT = 8_192
FULL = 2_000  # records that are committed at once
COMMIT_EVERY_S = 0.05  # the others wait so long

_decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
_packed, _unpacked = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class _Call:
    """What an agent awaits: it goes on with the result."""

    def __init__(self, argument: Any) -> None:
        self.argument = argument

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.argument)


async def _agent(data: Any, calls: int) -> dict[str, Any]:
    """So many calls, each with what the one before has returned."""
    found = data["invoice"]
    for _ in range(calls):
        found = await _Call(found)
    return {"told": found}


async def _tool(key: str, argument: Any) -> str:
    return key[:8]


class _Run(msgspec.Struct, eq=False):
    key: bytes
    value: bytes
    partition: int
    offset: int
    agent: Coroutine[Any, Any, Any]
    place: int = 0


class _Record(msgspec.Struct, eq=False):
    """What is to be committed: an intent and its call, or a run's end."""

    run: _Run
    value: bytes | None  # None: the run has ended
    argument: Any = None
    completion: bytes = b""


class _Raw:
    def __init__(self, servers: str, topic: str, output: str, ledger: str, group: str, calls: int) -> None:
        self._topic, self._output, self._ledger, self._calls = topic, output, ledger, calls
        self._consumer, self._producer = clients(servers, group)
        self._pending: list[_Record] = []
        self._changed, self._woken = Condition(), Event()
        self._answers: deque[tuple[_Run, bytes]] = deque()
        self._done_to: dict[int, int] = {}
        self._loop = asyncio.new_event_loop()

    def run(self, total: int) -> None:
        """Until so many runs have ended."""
        partitions = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic].partitions
        self._consumer.assign([TopicPartition(self._topic, partition, 0) for partition in partitions])
        Thread(target=self._loop.run_forever, daemon=True).start()
        committer = Thread(target=self._commit, args=(total,))
        committer.start()
        in_flight = ended = 0
        while ended < total:
            records = []
            if in_flight < IN_FLIGHT:
                begun = [self._begun(message) for message in self._consumer.consume(1_000, 0)]
                in_flight += len(begun)
                records += begun
            while self._answers:
                run, answer = self._answers.popleft()
                records.append(self._goes_on(run, answer))
            ends = sum([record.value is None for record in records])
            ended, in_flight = ended + ends, in_flight - ends
            if records:
                with self._changed:
                    self._pending += records
                    self._changed.notify()
            elif self._woken.wait(0.004):
                self._woken.clear()
        committer.join()

    # --- the worker's thread ---

    def _begun(self, message: Message) -> _Record:
        value = message.value() or b""
        agent = _agent(_decode(value)["data"], self._calls)
        key = xxhash.xxh3_128_digest(value)
        run = _Run(key, value, message.partition() or 0, message.offset() or 0, agent)
        return self._asked(run, agent.send(None), value)

    def _goes_on(self, run: _Run, answer: bytes) -> _Record:
        try:
            argument = run.agent.send(_unpacked(answer))
        except StopIteration as end:
            return _Record(run, None, None, _encode({"run": run.key.hex(), "data": end.value}))
        return self._asked(run, argument, answer)

    def _asked(self, run: _Run, argument: Any, before: bytes) -> _Record:
        """The intent of the next call, with what came `before`: the event, or the last result."""
        run.place += 1
        arguments = _packed(argument)
        intent = ("tool", run.place, xxhash.xxh3_128_digest(arguments), run.key)
        return _Record(run, _packed((before, intent)), argument)

    # --- the committer's, and the loop's ---

    def _commit(self, total: int) -> None:
        while total:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                self._changed.wait_for(lambda: len(self._pending) >= FULL, COMMIT_EVERY_S)
                records, self._pending = self._pending, []
            self._producer.begin_transaction()
            _produce(self._producer, self._ledger, [(each.run, each.value) for each in records])
            ended = [each for each in records if each.value is None]
            _produce(self._producer, self._output, [(each.run, each.completion) for each in ended])
            self._producer.flush()
            for each in records:
                run = each.run
                self._done_to[run.partition] = max(self._done_to.get(run.partition, 0), run.offset + 1)
            self._producer.send_offsets_to_transaction(
                [TopicPartition(self._topic, *at) for at in self._done_to.items()],
                self._consumer.consumer_group_metadata(),
            )
            self._producer.commit_transaction()
            total -= len(ended)
            calls = [each for each in records if each.value is not None]
            self._loop.call_soon_threadsafe(self._start, calls)

    def _start(self, records: Iterable[_Record]) -> None:
        for record in records:
            asyncio.Task(self._call(record.run, record.argument), loop=self._loop, context=Context())

    async def _call(self, run: _Run, argument: Any) -> None:
        result = await _tool(f"{run.key.hex()}/{run.place}", argument)
        self._answers.append((run, _packed(result)))
        self._woken.set()


def _produce(producer: Producer, topic: str, records: Iterable[tuple[_Run, bytes | None]]) -> None:
    """In batches of one partition: without headers, that is the least."""
    by_partition = defaultdict(list)
    for run, value in records:
        by_partition[run.partition].append({"key": run.key, "value": value})
    for partition, batch in by_partition.items():
        producer.produce_batch(topic, batch, partition=partition)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)  # as in a cell
    servers, topic, output, ledger, group, calls, total = sys.argv[1:]
    _Raw(servers, topic, output, ledger, group, int(calls)).run(int(total))
