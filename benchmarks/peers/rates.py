"""How fast each system does runs of so many steps: one measurement, and what a table shows of it."""

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """One measurement. CPU is that of the worker and of what it relies on (Kafka, PostgreSQL, Restate's server)."""

    side: str
    calls: int  # of a run
    round: int
    setting: str
    runs_per_s: float
    cpu_ms_per_run: float

    @classmethod
    def of(
        cls, side: str, calls: int, number: int, setting: str, runs: int, took_s: float, cpu_s: float
    ) -> "Rate":
        """From what was counted."""
        return cls(side, calls, number, setting, runs / took_s, cpu_s / runs * 1000)


HEAD = ("system", "steps of a run", "round", "with", "runs/s", "steps/s", "CPU ms/run")


def rows(rates: Iterable[Rate]) -> list[Sequence[str]]:
    """As a table's rows, under HEAD."""
    return [
        (
            rate.side,
            str(rate.calls),
            str(rate.round),
            rate.setting,
            f"{rate.runs_per_s:,.0f}",
            f"{rate.runs_per_s * rate.calls:,.0f}",
            f"{rate.cpu_ms_per_run:.2f}",
        )
        for rate in rates
    ]


def best(rates: Iterable[Rate], side: str, calls: int) -> dict[int, Rate]:
    """By round, the setting with which a system was fastest."""
    found: dict[int, Rate] = {}
    for rate in rates:
        if (rate.side, rate.calls) == (side, calls):
            known = found.get(rate.round)
            if known is None or rate.runs_per_s > known.runs_per_s:
                found[rate.round] = rate
    return found


def middle(rates: Iterable[Rate], side: str, calls: int) -> float:
    """Runs per second: the median of the rounds, each with its best setting."""
    return median(rate.runs_per_s for rate in best(rates, side, calls).values())


def times_as_fast(rates: Sequence[Rate], side: str, than: str, calls: int) -> list[float]:
    """One system's rate over another's, round by round, each with its best setting."""
    below = best(rates, than, calls)
    return [rate.runs_per_s / below[number].runs_per_s for number, rate in best(rates, side, calls).items()]
