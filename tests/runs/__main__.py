"""Many schedules at once: `python -m tests.runs --schedules 50000 --jobs 2`."""

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter

from tests.runs.explore import played


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.runs", description=__doc__)
    parser.add_argument("--schedules", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable()
    started_at, total = time.monotonic(), Counter[str]()
    wrong = 0
    with multiprocessing.Pool(arguments.jobs) as pool:
        seeds = range(arguments.seed, arguments.seed + arguments.schedules)
        for number, (complaint, done) in enumerate(pool.imap_unordered(played, seeds, 100), 1):
            total += done
            if complaint:
                wrong += 1
                if wrong <= 3:
                    print(complaint, flush=True)
            if number % 10_000 == 0:
                print(f"{number} schedules, {time.monotonic() - started_at:.0f} s", flush=True)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(total.items()))
    print(f"{arguments.schedules} schedules from seed {arguments.seed}: {wrong} wrong; {counts}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
