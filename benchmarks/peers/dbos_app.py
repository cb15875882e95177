"""DBOS under measurement, run by the peers' Python: `python -m benchmarks.peers.dbos_app rate|crash …`.

    rate URL SERVER CALLS THREADS SECONDS   workflows of so many steps for so long; prints what it found as JSON
    crash URL RUNS                          starts so many workflows, of which a kill interrupts this process
    recover URL                             goes on with them, as DBOS does at each start

A workflow is called by threads, each waiting for its result: that was faster than starting them in the background, or
by asyncio; two processes were no faster than one. For many that are open at once, DBOS has asyncio.
"""

import asyncio
import json
import sys
import threading
import time
import uuid

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks import outside
from benchmarks.process import family_cpu_s

WARM_UP_S = 2


@DBOS.step()
def count(number: int) -> int:
    """One step, done at once."""
    return number + 1


@DBOS.workflow()
def steps(number: int, calls: int) -> int:
    """So many steps, each of which needs the one before."""
    for _ in range(calls):
        number = count(number)
    return number


@DBOS.step()
async def book(run: int, effect: int) -> int:
    """An effect outside."""
    outside.note("effect", run, effect, "-")
    return effect


@DBOS.step()
async def wait(service: int) -> int:
    """A step that takes long."""
    await outside.answer_of(service)
    return service


@DBOS.workflow()
async def effects(run: int) -> None:
    """The job of `benchmarks.crash_flow`."""
    for effect in range(outside.EFFECTS):
        await book(run, effect)
        if effect < outside.EFFECTS - 1:
            await wait(effect)


def rate(server: int, calls: int, threads: int, seconds: float) -> None:
    """Call workflows on so many threads, each with an id of its own; print how many, and the CPU they took."""
    done, stopping = [0] * threads, threading.Event()

    def call(thread: int) -> None:
        while not stopping.is_set():
            with SetWorkflowID(uuid.uuid4().hex):
                steps(done[thread], calls)
            done[thread] += 1

    callers = [threading.Thread(target=call, args=(thread,)) for thread in range(threads)]
    for caller in callers:
        caller.start()
    time.sleep(WARM_UP_S)
    runs, began_at, cpu_s = sum(done), time.monotonic(), time.process_time() + family_cpu_s(server)
    time.sleep(seconds)
    runs, took_s = sum(done) - runs, time.monotonic() - began_at
    cpu_s = time.process_time() + family_cpu_s(server) - cpu_s
    stopping.set()
    for caller in callers:
        caller.join()
    print(json.dumps({"runs": runs, "seconds": took_s, "cpu_s": cpu_s}))


async def crash(runs: int) -> None:
    """Start the workflows, and wait for a kill."""
    for run in range(runs):
        with SetWorkflowID(f"run-{run}"):
            await DBOS.start_workflow_async(effects, run)
    await asyncio.Event().wait()


def main(command: str, url: str, *words: str) -> None:
    """See above."""
    threads = int(words[2]) if command == "rate" else 0
    settings = DBOSConfig(name="bench", system_database_url=url, log_level="WARNING")
    DBOS(config={**settings, "sys_db_pool_size": max(20, threads + 4)})  # 20 unless said; one for each thread
    DBOS.launch()
    if command == "rate":
        rate(int(words[0]), int(words[1]), threads, float(words[3]))
        DBOS.destroy()
    elif command == "crash":
        asyncio.run(crash(int(words[0])))
    else:
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
