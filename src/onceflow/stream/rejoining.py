"""A cell that lost its session, and does not find back to a Kafka that answers, is better started anew."""

from collections.abc import Callable

from onceflow.errors import Fault

REJOIN_S = 10.0  # a member that lost its session is back in its group within seconds


class Rejoining:
    """Asks now and then. `kafka_answers` is asked only while the session is lost."""

    def __init__(self, kafka_answers: Callable[[], bool]) -> None:
        self._kafka_answers = kafka_answers
        self._answering_since: float | None = None

    def check(self, lost_at: float | None, now: float) -> None:
        """Raise a Fault if it is time for that. `lost_at`: since when the session is lost; None: it isn't."""
        if lost_at is None or now - lost_at < REJOIN_S or not self._kafka_answers():
            self._answering_since = None
        elif self._answering_since is None:
            self._answering_since = now
        elif now - self._answering_since > REJOIN_S:
            raise Fault(
                "Kafka answers again, but this cell's client does not find back to its group; a restart heals it"
            )
