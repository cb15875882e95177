"""What every benchmark is given: a Kafka, a directory for logs and state, and a screen."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.kafka import Kafka
from benchmarks.load import Advance, Load, Numbers, produce
from benchmarks.report import screen
from onceflow import devkafka

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.percentage:3.0f} %"),
    TimeRemainingColumn(),
)


class Bench:
    """One benchmark's surroundings."""

    def __init__(self, kafka: Kafka, directory: Path, console: Console) -> None:
        self.kafka, self.directory = kafka, directory
        self._console = console

    def say(self, line: str) -> None:
        """A line of what was found."""
        self._console.print(line, soft_wrap=True)

    @contextlib.contextmanager
    def advancing(self, what: str, total: int) -> Iterator[Advance]:
        """A bar for something that takes long; a line, where there is no terminal."""
        if not self._console.is_terminal:
            self.say(f"  {what} …")
            yield lambda _: None
            return
        with Progress(*COLUMNS, console=self._console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda count: progress.advance(task, count)

    def topic(self, name: str, partitions: int) -> str:
        """A new topic; its name."""
        topic = f"{self.kafka.prefix}{name}"
        self.kafka.create([topic], partitions)
        return topic

    def produce(
        self,
        load: Load,
        numbers: Numbers,
        topics: Sequence[str],
        topic_of: Callable[[bytes], str] | None = None,
    ) -> int:
        """Fill empty topics (one, unless `topic_of` says which); return how many distinct events they hold now."""
        with self.advancing(f"producing {numbers.count:,} events", numbers.count) as advance:
            choose = topic_of or (lambda _tenant: topics[0])
            after = produce(self.kafka.servers, load, numbers, choose, advance)
        self.kafka.must_hold(topics, numbers.count)
        return after - numbers.first


@contextlib.contextmanager
def scratch(console: Console) -> Iterator[Path]:
    """A directory for logs and state; if the benchmark fails, it stays."""
    directory = Path(tempfile.mkdtemp(prefix="onceflow-bench-"))
    done = False
    try:
        yield directory
        done = True
    finally:
        if done:
            shutil.rmtree(directory)
        else:
            console.print(f"logs are in {directory}")


@contextlib.contextmanager
def bench(
    servers: str | None, flows: Sequence[str], broker: Mapping[str, str] = devkafka.NO_SETTINGS
) -> Iterator[Bench]:
    """Surroundings on this Kafka, or one that is started; its topics of these flows and our own are deleted at the end.

    `broker`: settings of the one that is started.
    """
    console = screen()
    kafka: Kafka | None = None
    with scratch(console) as directory:
        home = directory / "kafka"
        try:
            if servers is None:
                say = partial(console.print, soft_wrap=True)
                started = devkafka.start(home, settings=broker, progress=say)
                kafka = Kafka(started.bootstrap_servers, started.pid)
            else:
                kafka = Kafka(servers, None)
                for flow in flows:
                    kafka.refuse_flow(flow)
            yield Bench(kafka, directory, console)
        finally:
            if servers is None:
                devkafka.stop(home)
                shutil.rmtree(home / "data", ignore_errors=True)
            elif kafka is not None:
                for prefix in (kafka.prefix, *(f"{flow}." for flow in flows)):
                    kafka.delete(prefix)
