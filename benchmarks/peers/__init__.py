"""Other systems that run durable steps, beside onceflow: `python -m benchmarks peers`.

Read `compare` (what is measured, in which order), then `dbos_app` and `restate_app`: the same jobs as those of
`benchmarks.step_flow`, `effect_flow` and `crash_flow`, in the peers' words. A Python of their own runs them, which
`install` makes: no peer is among the project's dependencies. `crash` says what is counted after a kill.
"""
