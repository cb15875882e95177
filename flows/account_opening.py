"""Account opening: an identity check outside answers after minutes, by a signal; or never.

    onceflow run flows.account_opening

An event `account.requested` carries `{"account": "ann-1"}`. The check is asked for, and the run waits for
the signal `identity.checked` whose subject is the account; its `data.status` is `passed` or `refused` in
the end. By hand:

    onceflow signals send identity.checked ann-1 --tenant acme --status passed --flow account-opening

Now and then (POLL_S) the check itself is asked; after WAIT_S a person gets a ticket, and the completion
`open-account.completed` says `{"account": …, "status": "escalated", "ticket": …}`, otherwise `"status":
"open"`. A refused account ends as failed, its check withdrawn. A run that waits holds no thread, and
survives any restart. The services are simulated, see `flows/outside.py`.

In markets whose check answers at once (the event's `market`), nobody waits; the file flags.toml says which
they are, and may be changed at any time:

    [check-at-once]
    SE = true
"""

import os
from typing import Any

from flows.outside import do
from onceflow import Call, Event, Failed, RetryPolicy, Run, Signal, agent, dataflow, tool

POLL_S = float(os.environ.get("ACCOUNT_POLL_S", "1800"))
WAIT_S = float(os.environ.get("ACCOUNT_WAIT_S", "43200"))
RETRY = RetryPolicy(attempts=8, first=0.05, longest=2)


@tool(effect="keyed", retry=RETRY)
async def request_check(call: Call, account: str) -> str:
    """Ask for the check."""
    return await do("check", account, call.key)


@request_check.compensate
async def withdraw_check(call: Call, result: str | None) -> None:
    """Withdraw it."""
    await do("withdraw", call.arguments["account"], call.key)


@tool(effect="read", retry=RETRY)
async def ask_check(account: str) -> str | None:
    """What the check says when it is asked; the simulated one answers by signals only."""
    return None


@tool(effect="read", retry=RETRY)
async def check_at_once(account: str) -> str:
    """What the check of some markets says at once."""
    return "passed"


@tool(effect="keyed", retry=RETRY)
async def escalate(call: Call, account: str) -> str:
    """Make a ticket for a person."""
    return await do("ticket", account, call.key)


@tool(effect="keyed", retry=RETRY)
async def open_account(call: Call, account: str) -> str:
    """Open it."""
    return await do("open", account, call.key)


@agent("open-account", on="account.requested")
async def open_checked_account(run: Run, event: Event) -> dict[str, Any]:
    """Ask for the check, wait for what it says, and act on it."""
    account = event.data["account"]
    if run.flag("check-at-once", event.data.get("market")):
        if await run.call(check_at_once, account=account) != "passed":
            raise Failed("refused", f"the identity check refused {account}")
        await run.call(open_account, account=account)
        return {"account": account, "status": "open"}
    await run.call(request_check, account=account)
    answer = await run.wait_for(
        "identity.checked",
        account,
        until=("passed", "refused"),
        poll=ask_check,
        every=POLL_S,
        timeout=WAIT_S,
        on_timeout=escalate,
    )
    if not isinstance(answer, Signal):
        return {"account": account, "status": "escalated", "ticket": answer}
    if answer.status == "refused":
        raise Failed("refused", f"the identity check refused {account}")
    await run.call(open_account, account=account)
    return {"account": account, "status": "open"}


flow = dataflow("account-opening", agents=[open_checked_account])
