"""Crashes as ordinary test inputs: real cells on a real Kafka, killed, frozen and ended under load.

Read `checker` first (what must come out; it shares no code with the product), then `load` (what goes in), `cells`
(cells as processes), `scene` (one test's flow, load and cells) and the tests. Every test prints its seed, what it did
and when, and where the cells' logs are; pytest shows that when it fails, and keeps the directory.

`points` are named places at which a cell kills itself; `sweep` goes through all of them, and `soak` does faults of all
kinds at random: `python -m tests.crash.sweep`, `python -m tests.crash.soak`. The tests take a short piece of each.
"""
