"""A short soak; `make soak` takes two hours of it."""

from pathlib import Path

import pytest

from tests.conftest import PrivateKafka
from tests.crash.scene import Scene
from tests.crash.soak import FAULTS, Soak

pytestmark = pytest.mark.crash

SEED, COUNT = 4, 8
ALSO = pytest.mark.soak


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "flow", ["mixed", pytest.param("effects", marks=ALSO), pytest.param("echo", marks=ALSO)]
)
def test_random_faults_lose_and_double_nothing(
    private_kafka: PrivateKafka, flow_name: str, tmp_path: Path, flow: str
) -> None:
    scene = Scene(flow_name, private_kafka.start(), tmp_path)
    try:
        scene.prepare()
        soak = Soak(scene, private_kafka, flow, SEED)
        soak.run(lambda done: done < COUNT)
    finally:
        scene.close()
    assert soak.counts.total() == COUNT
    assert soak.counts.keys() <= FAULTS.keys()
