"""The protocol that makes events run once, as a small model, explored with crashes between any two steps.

What a cell does with Kafka (grants, transactions, progress, dedup, forwarding) is short to say and hard to get
right: what matters are the rare interleavings of crashes, zombies, slots that move and transactions that end
late. So it is a model first, in plain Python without sockets, threads or clocks: every step is a function call,
and the order of steps is a list of numbers. To be read in this order:

- `rules`     the rules of the protocol by name; each can be left out, to see that it is needed
- `kafka`     what Kafka does: logs, transactions, the group; also what it lets through (measured)
- `cell`      what a cell remembers, and its disk
- `worker`, `outbox`, `grants`    what a cell does: the protocol, a function for each step
- `world`     machines and producers; what disturbs them; calm
- `schedule`  a schedule, from the size of the world to the last action; how one is run
- `checker`   what must be true at the end; it knows only what was sent and what was committed
- `__main__`  `python -m tests.model --schedules 100000 --jobs 2`: the long run, the table of rules left out

A schedule is a seed, or bytes that Hypothesis draws and shrinks. `python -m tests.model --seed 4711` prints the
steps of one; `--without RULE` leaves a rule out. The branches for rules left out are mistakes, kept because they
are what an implementation would get wrong. The product does the same steps: whoever changes them there changes
them here, and looks at the table again.

Left out, since they have tests of their own: the ledger, calls, waits, signals, and the rate of anything.
"""
