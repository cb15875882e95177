"""`python -m tests.model`: many schedules with all rules, the table of rules left out; or one schedule's steps."""

import argparse
import sys
import time
from collections import Counter
from functools import partial
from multiprocessing import Pool
from multiprocessing.pool import Pool as Processes

from tests.model.rules import ALL, NAMES, NEEDED
from tests.model.schedule import Outcome, run_schedule

CHUNK = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000, help="with all rules")
    parser.add_argument(
        "--of", type=int, default=4_000, help="schedules with each rule left out; 0: no table"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="print the steps of this one schedule, nothing else")
    parser.add_argument("--without", action="append", default=[], metavar="RULE", choices=NAMES)
    given = parser.parse_args()
    if given.seed is not None:
        outcome = run_schedule(given.seed, ALL.without(*given.without), tracing=True)
        print(outcome.report(f"of seed {given.seed}"))
        return bool(outcome.faults)
    with Pool(given.jobs) as pool:
        faulty = run_all(pool, given.schedules, given.first, given.without)
        undetected = table(pool, given.of, given.first) if given.of and not given.without else 0
    return bool(faulty or undetected)


def run_all(pool: Processes, count: int, first: int, without: list[str]) -> int:
    """All the schedules; the faulty ones are printed, and how to see their steps."""
    began = shown = time.monotonic()
    totals: Counter[str] = Counter()
    faulty: list[tuple[int, Outcome]] = []
    run = partial(run_schedule, rules=ALL.without(*without))
    for done, outcome in enumerate(pool.imap(run, range(first, first + count), CHUNK), 1):
        totals["crashes"] += outcome.crashes
        totals["fenced"] += outcome.fenced
        totals["events"] += outcome.events
        if outcome.faults:
            faulty.append((first + done - 1, outcome))
            totals.update(kinds(outcome))
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            print(f"{done:,} of {count:,}, {len(faulty)} faulty", file=sys.stderr, flush=True)
    print(
        f"{'schedules':>10} {'events':>10} {'crashes':>9} {'fenced':>9} {'lost':>6} {'twice':>6} {'stuck':>6}"
    )
    figures = (totals[name] for name in ("lost", "twice", "stuck"))
    print(
        f"{count:>10,} {totals['events']:>10,} {totals['crashes']:>9,} {totals['fenced']:>9,} "
        f"{' '.join(f'{figure:>6,}' for figure in figures)}   in {time.monotonic() - began:.0f} s"
    )
    for seed, outcome in faulty[:10]:
        rules = "".join(f" --without {name}" for name in without)
        print(f"python -m tests.model --seed {seed}{rules}   # {outcome.faults[0]}")
    return len(faulty)


def table(pool: Processes, count: int, first: int) -> int:
    """For each rule left out, how many schedules are faulty; how many needed rules aren't shown to be."""
    print(f"\n{f'of {count:,} schedules each':<32} faulty   lost  twice  stuck   held   first seed")
    undetected = 0
    for name in NAMES:
        totals: Counter[str] = Counter()
        seeds = []
        run = partial(run_schedule, rules=ALL.without(name))
        for seed, outcome in enumerate(pool.imap(run, range(first, first + count), CHUNK), first):
            if outcome.faults:
                seeds.append(seed)
                totals.update(kinds(outcome))
        figures = " ".join(f"{totals[kind]:>6,}" for kind in ("lost", "twice", "stuck", "held"))
        first_seed = seeds[0] if seeds else "-"
        remark = "" if name in NEEDED else "   costs only"
        print(f"without {name:<24} {len(seeds):>6,} {figures}   {first_seed}{remark}", flush=True)
        undetected += name in NEEDED and not seeds
    return undetected


def kinds(outcome: Outcome) -> set[str]:
    return {fault.partition(":")[0] for fault in outcome.faults}


if __name__ == "__main__":
    sys.exit(main())
