"""Whatever happens between any two steps: what a run says it did was done once, and nothing else stands.

The long run, `python -m tests.runs --schedules 50000 --jobs 2`, says the same of many more.
"""

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from onceflow.agents import anew, asking, calls, deciding, in_flight, keys, machine, shared
from onceflow.agents.calls import Next
from onceflow.agents.journal import CALL_FAILED, Entry
from onceflow.agents.lane import Lane
from onceflow.agents.machine import Machine
from onceflow.agents.order import Lines
from onceflow.agents.tool import Tool
from onceflow.state.ledger import Change
from tests.left_out import forget_segments, replace
from tests.runs import explore
from tests.runs.explore import Schedule, played
from tests.runs.world import Cell

pytestmark = pytest.mark.schedules

BLOCK = 800
TRIED = 4_000  # schedules in which a rule left out must be seen


@pytest.mark.parametrize("block", range(4))
def test_whatever_happens_what_is_said_was_done_and_nothing_else_stands(block: int) -> None:
    """Two blocks of seeds are always the same, two are others each day; a failure names its seed."""
    today = int(time.time() // 86_400)
    first = BLOCK * (block if block < 2 else 4 * today + block)
    for seed in range(first, first + BLOCK):
        complaint, _ = played(seed)
        assert not complaint, complaint


Patch = Callable[[pytest.MonkeyPatch], None]


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    """A call is sent before its intent is committed."""
    write = Machine._write

    def hasty(self: Machine, *, lasting: bool = False) -> None:
        held, self._held = self._held, []
        write(self, lasting=lasting)
        self._effects += held

    replace(patch, Machine, "_write", hasty)


def another_key_each_time(patch: pytest.MonkeyPatch) -> None:
    """The key is made of the attempt."""
    numbers = itertools.count()
    intend = Machine._intend

    def numbered(self: Machine, waiting: Any) -> None:
        call = msgspec.structs.replace(waiting.started.call, key=f"{next(numbers)}")
        waiting.started = msgspec.structs.replace(waiting.started, call=call)
        intend(self, waiting)

    replace(patch, Machine, "_intend", numbered)


def the_run_in_a_tenants_key(patch: pytest.MonkeyPatch) -> None:
    """Calls of scope `tenant` are told apart by run and place."""
    digest = Machine._digest
    replace(
        patch,
        Machine,
        "_digest",
        lambda self, place: digest(self, place)[:8] + f"{self.root}{place}".encode()[-8:],
    )


def retries_used_up_taken_for_failure(patch: pytest.MonkeyPatch) -> None:
    judged = calls.judged

    def hopeful(waiting: Any, answer: Any) -> Any:
        outcome = judged(waiting, answer)
        if outcome is not Next.UNKNOWN:
            return outcome
        started = waiting.started
        known = started.run.journal.get(started.place) or Entry(started.tool.name, 1, b"")
        return msgspec.structs.replace(known, error=(CALL_FAILED, "no answer"))

    replace(patch, machine, "judged", hopeful)


def an_intent_without_outcome_taken_for_not_sent(patch: pytest.MonkeyPatch) -> None:
    def resume(self: Machine, waiting: Any, intent: Any, retry: Any) -> bool:
        self._intend(waiting)
        return False

    replace(patch, Machine, "_resume", resume)


def undone_while_it_may_be_on_its_way(patch: pytest.MonkeyPatch) -> None:
    intend = Machine._intend

    def at_once(self: Machine, waiting: Any) -> None:
        if waiting.started.kind == "undo":
            waiting.started = msgspec.structs.replace(waiting.started, delay_s=0.0)
        intend(self, waiting)

    replace(patch, Machine, "_intend", at_once)


def an_undone_call_begun_anew_by_a_replay(patch: pytest.MonkeyPatch) -> None:
    """Its `on_unknown` had decided to undo it; after a crash it is sent again."""
    replace(
        patch,
        Machine,
        "_undo_unknown",
        lambda self, started, over_s: self._intend(self._waiting[started.place]),
    )


def an_undone_effect_kept_by_a_redrive(patch: pytest.MonkeyPatch) -> None:
    stands = anew.stands

    def hopeful(journal: Any, place: str) -> bool:
        return stands(journal, place) or journal[place].result is not None

    replace(patch, anew, "stands", hopeful)


def a_redrive_asks_the_model_again(patch: pytest.MonkeyPatch) -> None:
    """What an effect that stands was based on is read anew."""
    kept = anew.redriven
    patch.setattr(
        "onceflow.agents.deciding.redriven",
        lambda journal: {p: e for p, e in kept(journal).items() if e.intent},
    )


def made_again_with_the_key_that_was_undone(patch: pytest.MonkeyPatch) -> None:
    replace(patch, asking, "later_key", lambda key, undone: key)


def made_again_by_a_tenant_with_the_key_that_was_undone(patch: pytest.MonkeyPatch) -> None:
    replace(patch, keys, "call_key", lambda digest, undone: shared.call_key(digest, 0))


def an_undo_not_on_record(patch: pytest.MonkeyPatch) -> None:
    """That something was undone is forgotten with the process."""
    record = Machine.record

    def forgetful(self: Machine, place: str, entry: Entry) -> None:
        record(self, place, entry)
        if place.startswith("~") and self._news:
            self._news.pop(place, None)

    replace(patch, Machine, "record", forgetful)


def a_failing_run_forgets_its_calls(patch: pytest.MonkeyPatch) -> None:
    """A run that fails, and whose process dies, does not ask what became of the calls under way."""
    replace(patch, Machine, "_give_up", lambda self, place: False)


def a_person_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    """A redrive makes a call again that may have happened."""
    replace(patch, anew, "_kept", lambda journal, place: msgspec.structs.replace(journal[place], error=None))


def a_signal_taken_is_kept_for_the_next_wait(patch: pytest.MonkeyPatch) -> None:
    taken = Lane._taken

    def generous(self: Lane, source: Any, offset: int, size: int, key: bytes, kept: Any) -> Any:
        noted = taken(self, source, offset, size, key, kept)
        change = (key, msgspec.msgpack.encode(kept))
        self._memory.put(change)
        return noted._replace(changes=(change,))

    replace(patch, Lane, "_taken", generous)


def attempts_forgotten_by_a_long_wait(patch: pytest.MonkeyPatch) -> None:
    """What a call left open is forgotten while it waits to be tried again."""
    postpone = Machine._postpone

    def careless(self: Machine, waiting: Any, delay_s: float) -> None:
        waiting.unknown = False
        postpone(self, waiting, delay_s)

    replace(patch, Machine, "_postpone", careless)


def a_tenants_result_is_nobodys(patch: pytest.MonkeyPatch) -> None:
    """A run that fails undoes what another run has taken too."""
    left = shared.left
    replace(
        patch,
        keys,
        "left",
        lambda known, by: left(msgspec.structs.replace(known, takers=by[:1], kept=False), by),
    )


def the_first_segment_ends_the_record_too_early(patch: pytest.MonkeyPatch) -> None:
    """A run that failed is forgotten when its dead letter is written."""
    forget_segments(patch)


def results_of_another_version(patch: pytest.MonkeyPatch) -> None:
    """The result that stays is another one than the target gave."""
    encode = Tool.encode_result
    numbers = itertools.count()

    def changed(self: Tool[Any, Any], value: Any) -> bytes:
        is_answer = isinstance(value, str) and "#" in value
        return encode(self, f"{value.split('#')[0]}#{next(numbers)}x" if is_answer else value)

    replace(patch, Tool, "encode_result", changed)


def the_first_call_without_a_barrier(patch: pytest.MonkeyPatch) -> None:
    """Only later calls wait until the run is in the ledger."""
    write = Machine._write

    def hasty(self: Machine, *, lasting: bool = False) -> None:
        held, first = self._held, not self.segments
        if first:
            self._held = []
        write(self, lasting=lasting)
        if first:
            self._effects += held

    replace(patch, Machine, "_write", hasty)


def the_view_is_written_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """What was decided is in the view that a process leaves, whether or not it is committed."""
    put = Cell.put

    def at_once(self: Cell, change: Change) -> None:
        put(self, change)
        self.log.write([change])

    replace(patch, Cell, "put", at_once)


def the_ledger_is_read_before_it_is_settled(patch: pytest.MonkeyPatch) -> None:
    """A process begins with what is committed when it looks; a transaction of its predecessor's is committed later."""
    settle = Cell.settle
    open_: list[Cell] = []

    def later(self: Cell, draw: Any) -> None:
        open_.append(self)

    def make(self: Schedule, old: Cell) -> Cell:
        cell = Cell(self.log, self.now_ms, self.snapshot)
        for each in open_:
            settle(each, self.random)
        open_.clear()
        return cell

    replace(patch, Cell, "settle", later)
    replace(patch, Schedule, "_successor", make)


def a_snapshot_is_preferred_to_the_ledger(patch: pytest.MonkeyPatch) -> None:
    restored, begin = deciding.restored, Lane._begin
    kept: dict[bytes, Any] = {}

    def all_of_it(snapshot: bytes) -> Any:
        kept.clear()
        kept.update(restored(snapshot))
        return dict(kept)

    def from_the_snapshot(self: Lane, arrived: Any, news: Any = in_flight.NOTHING) -> None:
        journal = kept.pop(arrived.key, None)
        if arrived.saved is not None and journal is not None:
            arrived.saved.journal = dict(journal.entries)
        begin(self, arrived, news)

    replace(patch, deciding, "restored", all_of_it)
    replace(patch, Lane, "_begin", from_the_snapshot)
    patch.setattr(explore, "EFFECTS", ["planned"])  # only what is thought anew comes out otherwise


def an_answer_of_an_earlier_grant_is_taken(patch: pytest.MonkeyPatch) -> None:
    """Runs of a slot that was lost, and came back, go on as if nothing had been."""
    replace(patch, Lane, "_drop", lambda self, grant: setattr(grant, "live", True))


def a_copy_of_a_run_that_waits_is_judged_before_it_is_known(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Cell, "know", lambda self, key: None)


def taken_back_though_it_was_sent(patch: pytest.MonkeyPatch) -> None:
    """A slot moves: what its calls are about to do counts as not done."""
    take_back = Machine.take_back

    def rash(self: Machine, now_ms: int) -> Any:
        for waiting in self._waiting.values():
            waiting.started.call.not_sent()
        return take_back(self, now_ms)

    replace(patch, Machine, "take_back", rash)


def sent_though_it_was_taken_back(patch: pytest.MonkeyPatch) -> None:
    """A slot moves: the calls that wait for their turn are made all the same."""
    replace(patch, Machine, "leave", lambda self: None)


def undone_with_a_key_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    is_forgotten = Machine._is_forgotten

    def of_calls(self: Machine, started: Any, delay_s: float = 0.0) -> bool:
        return started.kind != "undo" and is_forgotten(self, started, delay_s)

    replace(patch, Machine, "_is_forgotten", of_calls)


def a_line_has_no_order(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Lines, "enter", lambda self, key, line, arrived, turn=0: True)


RULES: list[Patch] = [
    no_barrier,
    another_key_each_time,
    the_run_in_a_tenants_key,
    retries_used_up_taken_for_failure,
    an_intent_without_outcome_taken_for_not_sent,
    undone_while_it_may_be_on_its_way,
    an_undone_call_begun_anew_by_a_replay,
    an_undone_effect_kept_by_a_redrive,
    a_redrive_asks_the_model_again,
    made_again_with_the_key_that_was_undone,
    made_again_by_a_tenant_with_the_key_that_was_undone,
    an_undo_not_on_record,
    a_failing_run_forgets_its_calls,
    a_person_is_not_asked,
    a_signal_taken_is_kept_for_the_next_wait,
    attempts_forgotten_by_a_long_wait,
    a_tenants_result_is_nobodys,
    the_first_segment_ends_the_record_too_early,
    results_of_another_version,
    the_first_call_without_a_barrier,
    the_view_is_written_before_the_commit,
    the_ledger_is_read_before_it_is_settled,
    a_snapshot_is_preferred_to_the_ledger,
    an_answer_of_an_earlier_grant_is_taken,
    a_copy_of_a_run_that_waits_is_judged_before_it_is_known,
    taken_back_though_it_was_sent,
    sent_though_it_was_taken_back,
    undone_with_a_key_that_is_forgotten,
    a_line_has_no_order,
]


@pytest.mark.parametrize("without", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_left_out_is_seen(monkeypatch: pytest.MonkeyPatch, without: Patch) -> None:
    without(monkeypatch)
    complaints = (played(seed)[0] for seed in range(TRIED))
    assert any(re.match(r"seed \d+: Wrong: ", complaint) for complaint in complaints)
