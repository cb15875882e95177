"""Runs on random schedules: the real lanes and the real runs, in a world that is a model.

`world` has what is outside of a cell: the log with its commits, the targets of calls, a person who decides, and time.
`work` has the agent and its tools. `explore` takes random steps and looks after each what was done twice; at the end,
whether all that runs say they did stands, and nothing else does. `rules` leaves out a rule of the product at a time.

    python -m tests.runs --schedules 50000 --jobs 2
"""
