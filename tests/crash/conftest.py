"""A scene per test; every test of this directory that has one bears the marker `crash`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Kafka
from tests.crash.scene import Scene


@pytest.fixture
def scene(kafka: Kafka, flow_name: str, tmp_path: Path) -> Iterator[Scene]:
    """A flow of this test's own, its topics made."""
    scene = Scene(flow_name, kafka.bootstrap_servers, tmp_path)
    try:
        scene.prepare()
        yield scene
    finally:
        scene.close()
