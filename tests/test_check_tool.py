"""`check_tool`: a tool is called twice, and after a lost answer, and its key must arrive."""

from typing import Any

import pytest

from onceflow import FROM_RUN, Call, Event, GiveUp, RetryLater, Run, agent, tool
from onceflow.testing import Target, check_tool, crash_everywhere, event, run_agent
from onceflow.testing.script import ScriptError

ORDER = event("order.placed", {"order": "A-1"})


def test_a_tool_that_passes_its_key_on_is_right(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def good(call: Call, order: str) -> Any:
        return onceflow_target.do("charge", order, call.key)

    check_tool(good, onceflow_target, order="A-1")


def test_tools_may_be_checked_one_after_another_with_one_target(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def good(call: Call, order: str) -> Any:
        return onceflow_target.do("charge", order, call.key)

    @tool(effect="keyed")
    async def good_too(call: Call, order: str) -> Any:
        return onceflow_target.do("ship", order, call.key)

    for each in (good, good, good_too):
        check_tool(each, onceflow_target, order="A-1")


def test_a_tool_that_sends_nothing_is_caught_and_the_next_one_is_not_blamed(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def idle(call: Call, order: str) -> Any: ...

    @tool(effect="keyed")
    async def good(call: Call, order: str) -> Any:
        return onceflow_target.do("charge", order, call.key)

    with pytest.raises(AssertionError, match="the target was given no request"):
        check_tool(idle, onceflow_target, order="A-1")
    assert onceflow_target.do("look", "A-1") == "look-1", "its answer is not lost"
    check_tool(good, onceflow_target, order="A-1")


def test_a_tool_with_a_key_of_its_own_is_told_which_the_target_was_given(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def own(call: Call, order: str) -> Any:
        return onceflow_target.do("charge", order, f"mine-{order}")

    for _ in range(2):
        with pytest.raises(AssertionError, match="the target was given key 'mine-A-1'"):
            check_tool(own, onceflow_target, order="A-1")


def test_a_tool_that_keeps_its_key_to_itself_is_caught_with_the_remedy(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def bad(call: Call, order: str) -> Any:
        return onceflow_target.do("charge", order)

    with pytest.raises(AssertionError, match=r"was given a request without a key.*call\.headers"):
        check_tool(bad, onceflow_target, order="A-1")


def test_a_tool_that_derives_a_key_for_each_of_its_requests_is_right(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def both(call: Call, order: str) -> Any:
        return [onceflow_target.do(what, order, f"{call.key}:{what}") for what in ("reserve", "notify")]

    check_tool(both, onceflow_target, order="A-1")
    check_tool(both, onceflow_target, order="A-1")


def test_a_tool_that_keeps_its_key_from_one_of_its_requests_is_caught(onceflow_target: Target) -> None:
    @tool(effect="keyed")
    async def half(call: Call, order: str) -> Any:
        return [onceflow_target.do("reserve", order, call.key), onceflow_target.do("notify", order)]

    with pytest.raises(
        AssertionError, match=r"with one key it had 3 effects, and once with another 2\.\n  1\. reserve"
    ):
        check_tool(half, onceflow_target, order="A-1")


def test_one_key_for_two_things_is_refused_because_the_second_would_not_be_done() -> None:
    target = Target()

    @tool(effect="keyed")
    async def both(call: Call, order: str) -> Any:
        return [target.do(what, order, call.key) for what in ("reserve", "notify")]

    @agent("does-both", on="order.placed")
    async def does_both(run: Run, event: Event) -> Any:
        return await run.call(both, order="A-1")

    message = "this key was used for reserve A-1, so notify A-1 would not be done: derive one per request"
    with pytest.raises(ScriptError, match=message):
        check_tool(both, target, order="A-1")
    for run in (run_agent, crash_everywhere):
        with pytest.raises(ScriptError, match=message):
            run(does_both, ORDER, target=target)
    with pytest.raises(ScriptError, match=message.replace("notify A-1", "reserve A-2")):
        target.do("reserve", "A-2", target.effects[-1].key)


def test_a_tool_is_called_as_a_run_calls_it_with_its_defaults_and_its_tenant(onceflow_target: Target) -> None:
    @tool(effect="keyed", tenant_arg="tenant")
    async def note(call: Call, text: str, tenant: str = FROM_RUN, language: str = "en") -> Any:
        assert call.arguments == {"text": text, "tenant": tenant, "language": language}
        return onceflow_target.do("note", f"{tenant} {text} {language}", call.key)

    check_tool(note, onceflow_target, text="hello")
    assert onceflow_target.effects[0].subject == "acme hello en"
    with pytest.raises(TypeError, match="tool note: missing a required argument: 'text'; it takes"):
        check_tool(note, onceflow_target)


@pytest.mark.parametrize("wrong", ["charge", len])
def test_it_takes_a_tool_and_a_target(onceflow_target: Target, wrong: Any) -> None:
    with pytest.raises(ScriptError, match=r"write check_tool\(charge, target, …\)"):
        check_tool(wrong, onceflow_target)


@pytest.mark.parametrize("says", [RetryLater, GiveUp])
def test_a_tool_that_takes_a_lost_answer_for_a_refusal_is_caught(
    onceflow_target: Target, says: type[Exception]
) -> None:
    """The run would go on as if there were no charge, and undo none."""

    @tool(effect="keyed")
    async def charges(call: Call, order: str) -> Any:
        try:
            return onceflow_target.do("charge", order, call.key)
        except TimeoutError as error:
            raise says("no answer") from error

    refusals = ["503"]

    @tool(effect="keyed")
    async def is_refused(call: Call, order: str) -> Any:
        if refusals:
            raise says(refusals.pop())
        return onceflow_target.do("charge", order, call.key)

    with pytest.raises(
        AssertionError, match=f"charges raises {says.__name__}, .*though only the answer was lost"
    ):
        check_tool(charges, onceflow_target, order="A-1")
    check_tool(is_refused, onceflow_target, order="A-2")
