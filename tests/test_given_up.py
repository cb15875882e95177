"""Compensations that a person has given up: what they were to undo stands."""

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.anew import cannot_be_left
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.journal import Entry, Intent
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import CallFailed, Failed, GiveUp, OutcomeUnknown
from onceflow.event import Event
from tests.tenant import KEY, NOW, Tenant
from tests.test_redrive import LETTER, names, sells
from tests.test_shared import resolve


def test_what_a_person_gave_up_to_undo_stands_and_is_undone_if_the_redrive_fails_too() -> None:
    tenant = Tenant(sells)
    tenant.event(sells)
    *_, undone = [tenant.answer(result) for result in (7, "mail-1", "charge-1", "no", GiveUp("too late"))]
    resolve(tenant, KEY, "fail")
    assert (tenant.outcome.code, tenant.started) == ("refused", [])
    key = tenant.event(sells, redrive=LETTER._replace(segments=tenant.ended[0].segments))
    assert names(tenant) == ["check"]
    tenant.answer("no")
    again = tenant.answer(GiveUp("too late"))
    assert (again.kind, again.call.key, again.undone) == ("undo", undone.call.key, "charge-1")
    resolve(tenant, key, "result")
    assert [ended.outcome.code for ended in tenant.ended] == ["refused"] * 2  # type: ignore[union-attr]


def test_a_redrive_that_is_undoing_what_it_has_kept_does_not_end_without_that() -> None:
    """Its replay does not come to the call any more: a later redrive would take the effect for one that stands."""
    tenant = Tenant(sells)
    tenant.event(sells)
    for result in (7, "mail-1", "charge-1", "no", GiveUp("too late")):
        tenant.answer(result)
    resolve(tenant, KEY, "fail")
    tenant.event(sells, redrive=LETTER._replace(segments=tenant.ended[0].segments))
    tenant.answer("no")
    tenant.commit()
    assert [call.kind for call in tenant.started] == ["undo"]

    @agent(sells.name, on="t")
    async def gives_up(run: Run, event: Event) -> None:
        raise Failed("refused")

    tenant.begin_anew()
    tenant.memory.agents = {sells.name: gives_up}
    parked = len(tenant.parked)
    tenant.resume()
    assert (len(tenant.parked), len(tenant.ended)) == (parked + 1, 1)


def test_a_replay_need_not_come_to_what_a_person_gave_up_to_undo() -> None:
    made = Entry("charge", 1, b"", b"", None, Intent("k", 1, NOW, NOW, undoable=True))
    given_up = Entry("charge", 1, b"", None, ("call-failed", "too late"))
    assert cannot_be_left({"0": made}, "0")
    assert not cannot_be_left({"0": made, "~0": given_up}, "0")


@pytest.mark.parametrize(("action", "kind"), [("fail", "unknown"), ("result", "failed")])
def test_an_agent_is_told_whether_a_call_of_which_nobody_knew_was_undone(action: str, kind: str) -> None:
    """If it was not, a redrive asks for a person."""

    @tool(effect="keyed", on_unknown="compensate", retry=RetryPolicy(attempts=1))
    async def hold(call: Call) -> str: ...  # type: ignore[empty-body]

    @hold.compensate
    async def release(call: Call, result: str | None) -> None: ...

    @agent("holds", on="t")
    async def holds(run: Run, event: Event) -> str:
        try:
            return await run.call(hold)
        except OutcomeUnknown as error:
            raise Failed("unknown") from error
        except CallFailed as error:
            raise Failed("failed") from error

    tenant = Tenant(holds)
    tenant.event(holds)
    first = tenant.answer(TimeoutError())
    tenant.answer(GiveUp("too late"))
    resolve(tenant, KEY, action)
    assert (tenant.outcome.code, tenant.started) == (kind, [])
    tenant.event(holds, redrive=LETTER._replace(segments=tenant.ended[0].segments))
    tenant.commit()
    if action == "fail":
        assert (len(tenant.parked), tenant.started) == (2, [])
    else:
        assert tenant.started[0].call.key != first.call.key
