"""What the peers need, outside of the project: a virtualenv and a server in the cache, and PostgreSQL's programs.

Made at the first use, below ONCEFLOW_CACHE (else ~/.cache/onceflow), and made anew when the versions here change. What
can't be made is said all at once, with the way to get it.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from onceflow.devkafka import cache_directory
from onceflow.errors import ConfigError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
RESTATE = "@restatedev/restate-server@1.7.12"
ACCOUNTS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
DEBIAN = Path("/usr/lib/postgresql")

Say = Callable[[str], None]


class Peers(NamedTuple):
    """Where their programs are."""

    python: Path
    restate: Path
    postgres: Path  # the directory of initdb and postgres
    account: str | None  # that PostgreSQL runs as; None: whoever runs this
    versions: list[str]


def peers(say: Say) -> Peers:
    """Find what must be there, and make the rest; a ConfigError says what is missing."""
    postgres, account = postgres_programs(os.environ.get("PATH", ""), DEBIAN), _account()
    missing = []
    if postgres is None:
        missing.append(
            "PostgreSQL's programs initdb and postgres: `apt-get install postgresql`, or put their directory into PATH"
        )
    if shutil.which("npm") is None:
        missing.append(
            "npm, which fetches Restate's server: `apt-get install npm`, or any Node.js from 18 on"
        )
    if account == "root":
        missing.append(
            f"an account that PostgreSQL may run as, it refuses root: one of {', '.join(ACCOUNTS)}"
        )
    if postgres is None or missing:
        raise ConfigError("\n".join(["this benchmark needs what this machine does not have:", *missing]))
    home = cache_directory(os.environ) / "peers"
    python, restate = home / "python", home / "restate"
    wanted = REQUIREMENTS.read_text()
    if _outdated(python, wanted):
        say(f"installing {', '.join(wanted.split())} into {python} (once)")
        _run([sys.executable, "-m", "venv", str(python)])
        _run([str(python / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *wanted.split()])
        _made(python, wanted)
    if _outdated(restate, RESTATE):
        say(f"installing {RESTATE} into {restate} (once, 230 MB)")
        # No scripts: those of its dependencies report the installation, and the server is a binary as it comes.
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(["npm", "install", "--prefix", str(restate), *options, RESTATE])
        _made(restate, RESTATE)
    servers = sorted(restate.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not servers:
        raise ConfigError(
            f"{RESTATE} has no server for this machine; Linux and macOS, x64 and arm64 have one"
        )
    version = _run([str(postgres / "postgres"), "--version"]).strip()
    return Peers(python / "bin/python", servers[0], postgres, account, [*wanted.split(), RESTATE, version])


def postgres_programs(path: str, debian: Path) -> Path | None:
    """The directory of initdb and postgres: in PATH, or where Debian keeps them, the newest."""
    versions = sorted(debian.glob("*/bin"), key=lambda found: float(found.parent.name), reverse=True)
    for directory in [*map(Path, path.split(os.pathsep)), *versions]:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    return None


def _account() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ACCOUNTS if name in known), "root")


def _outdated(directory: Path, wanted: str) -> bool:
    """Whether it must be made; what an interrupted installation left is deleted."""
    marker = directory / "made-of"
    if marker.exists() and marker.read_text() == wanted:
        return False
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return True


def _made(directory: Path, wanted: str) -> None:
    (directory / "made-of").write_text(wanted)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"`{' '.join(command)}` failed; it needs a network, and a registry that has these versions:\n{done.stderr}"
        )
    return done.stdout
