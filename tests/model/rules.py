"""The rules of the protocol, by name. `ALL.without("fence")` is the protocol with one of them left out.

`NEEDED`: without it some schedule loses an event or completes one twice (or, without `claim`, holds a slot up).
`COSTS_ONLY`: the model finds no fault without it; it saves work, or makes verdicts repeatable.
"""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Rules:
    """True: the rule is kept. The comment says what happens where it is left out."""

    # Progress
    finished_is_committed: bool = True  # progress counts what was read
    skip_finished: bool = True  # what is finished above the lowest unfinished record is judged again
    topic_id: bool = True  # progress of a deleted topic is taken for that of the new one of its name
    # Transactions
    fence: bool = True  # a transaction without offsets
    static_membership: bool = True  # no `group.instance.id`: the broker accepts metadata of non-members
    pair_grants: bool = True  # content of lost grants is committed too, under current metadata
    pair_together: bool = True  # metadata is asked for when offsets are sent, not when content was taken
    flush_before_offsets: bool = True  # what is still in the client's queue goes out at commit
    ambiguous_is_fatal: bool = True  # a commit without an answer is taken for an abort
    answers_name_grant: bool = True  # a run of an earlier grant ends into the present grant of its slot
    # Grants
    wait_for_stable: bool = True  # reads what is stable now, not all up to the high watermark
    claim: bool = True  # no progress record names the owner: nobody can end his open transaction
    catch_up: bool = True  # the view is taken as it lies on disk
    # Dedup
    in_flight: bool = True  # the view alone is asked
    view_after_commit: bool = True  # a key is written to the view when it is seen
    view_before_told: bool = True  # a run leaves the table in flight before the view is written
    position_with_keys: bool = True  # position first, keys in a batch after it: a crash between
    keys_with_position: bool = True  # keys first, position in a batch after it: the view dropped between
    view_names_grant: bool = True  # a lost grant's commit, its position too, goes to a view dropped meanwhile
    tenant_in_key: bool = True  # keys are looked up without the tenant
    # Forwarding
    forward_home: bool = True  # an event runs in the slot that read it
    forward_before_finish: bool = True  # finished in one transaction, forwarded in the next
    finish_with_forward: bool = True  # forwarded in one transaction, finished in the next
    origin_time: bool = True  # a forwarded event has the time of its forwarding
    # Time
    no_later_than_broker: bool = True  # a producer's clock that runs ahead is believed
    no_earlier_than_view: bool = True  # an old event is compared with whatever the view still happens to hold
    view_outlives_inputs: bool = True  # view and completions are kept for the window alone

    def without(self, *names: str) -> "Rules":
        unknown = set(names) - set(NAMES)
        if unknown:
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
        return replace(self, **dict.fromkeys(names, False))


NAMES = tuple(field.name for field in fields(Rules))
ALL = Rules()
COSTS_ONLY = (
    "finish_with_forward",  # forwarded twice is a duplicate at home: its key and its time are the origin's
    "no_earlier_than_view",  # says the same whether a bucket is dropped yet or not, nothing else
)
NEEDED = tuple(name for name in NAMES if name not in COSTS_ONLY)
