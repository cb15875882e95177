"""The same shared call at two places of one run, while something keeps the run from going on."""

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed
from onceflow.agents.happenings import Due
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import RetryLater
from onceflow.event import Event
from tests.tenant import Tenant
from tests.test_shared import resolve


@tool(effect="keyed", scope="tenant", key_fields=("customer",), retry=RetryPolicy(attempts=2))
async def invite(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@invite.compensate
async def cancel(call: Call, result: str | None) -> None: ...


@tool(effect="blind")
async def ring(call: Call) -> str: ...  # type: ignore[empty-body]


def test_a_run_is_parked_though_it_waits_for_its_own_call_of_that_key() -> None:
    """The call is made again when the run goes on: it would wait for itself."""

    @agent("invites", on="t")
    async def invites(run: Run, event: Event) -> list[str]:
        return await run.gather(run.call(invite, "ann"), run.call(invite, "ann"), run.call(ring))

    tenant = Tenant(invites)
    key = tenant.event(invites)
    assert tenant.answer(TimeoutError()).tool is ring
    tenant.answer(RetryLater(after=60))
    assert len(tenant.parked) == 1
    resolve(tenant, key, "result")
    tenant.now += 60_000
    tenant.take(Due(key))
    tenant.answer("i-1")
    assert tenant.outcome == Completed(["i-1", "i-1", "seen"])


def test_what_was_asked_for_twice_is_asked_for_anew_at_both_places() -> None:
    """A person speaks of one of the two; the key that the other was made with is undone meanwhile."""

    @agent("invites", on="t")
    async def invites(run: Run, event: Event) -> list[str]:
        return await run.gather(run.call(invite, "ann"), run.call(invite, "ann"))

    @agent("invites-once", on="u")
    async def invites_once(run: Run, event: Event) -> str:
        return await run.call(invite, "ann")

    tenant = Tenant(invites, invites_once)
    first, second = tenant.event(invites), tenant.event(invites_once, 2)
    tenant.answer(TimeoutError())
    former = tenant.answer(TimeoutError())
    resolve(tenant, second, "cancel")
    assert tenant.answer(None).kind == "undo"
    resolve(tenant, first, "again")
    made = tenant.answer("i-1")
    assert made.call.key != former.call.key
    assert (tenant.started, tenant.ended[-1].outcome) == ([], Completed(["i-1"] * 2))
