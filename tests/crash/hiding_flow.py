"""The flow `steps` in a cell that is not shown a topic for a while, as by a broker that lags behind the others.

CRASH_HIDDEN: a file; while it is there, the topic that it names is not listed.
"""

import os
from pathlib import Path

from onceflow.stream.cluster import Cluster
from tests.crash import steps_flow

HIDDEN = Path(os.environ["CRASH_HIDDEN"])

_topic_names = Cluster.topic_names


def _listed(cluster: Cluster) -> dict[str, int]:
    hidden = HIDDEN.read_text() if HIDDEN.exists() else ""
    return {name: partitions for name, partitions in _topic_names(cluster).items() if name != hidden}


Cluster.topic_names = _listed  # type: ignore[method-assign]
flow = steps_flow.flow
