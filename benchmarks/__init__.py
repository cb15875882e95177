"""What onceflow can do, measured from outside: `python -m benchmarks --help`; the method is in README.md beside this.

Read `load` (what goes in), `raw` and `raw_steps` (the baselines), `watch` and `throughput` (how a rate is measured),
then the benchmarks: `core`, `topics`, `latency`, `recovery`, `growth`, `memory`. Each returns a `report.Report`;
`report` makes the table of them, and `plots` the figures. `incident` and `peers` look at effects: `outside` notes
them, `counts` says what was done twice.
"""
