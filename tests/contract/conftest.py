"""Clients for the tests of Kafka's behaviour."""

from collections.abc import Iterator

import pytest

from tests.conftest import Kafka
from tests.contract.clients import Clients, clients_of


@pytest.fixture
def clients(kafka: Kafka) -> Iterator[Clients]:
    with clients_of(kafka.bootstrap_servers) as clients:
        yield clients
