"""Tickets: report each alarm to a tracker that knows no idempotency keys, and whose answers cannot always be
read.

    onceflow run flows.tickets

An event `alarm.raised` carries `{"alarm": "disk-7"}`. The completion `report.completed` says `{"ticket":
…}`.

What goes wrong otherwise: the ticket is made, its answer is an error page, the caller tries again: two
tickets. Here the tool is `blind`: it is never called again by itself. When nobody knows whether it
happened, the tracker is asked for a ticket with this run's reference; only if there is none is one made. The
tracker is simulated, see `flows/outside.py`.
"""

from datetime import timedelta
from typing import Any

from flows.outside import do, find
from onceflow import Call, Event, NotDone, Run, agent, dataflow, tool


@tool(effect="blind", timeout=timedelta(seconds=2), on_unknown="reconcile")
async def create_ticket(call: Call, alarm: str) -> str:
    """Make a ticket, with the run's id as its reference: the same alarm may be raised again."""
    return await do("ticket", f"{alarm} ({call.run_id})")


@create_ticket.reconcile
async def find_ticket(call: Call) -> Any:
    """Look for the ticket by its reference."""
    return find("ticket", f"{call.arguments['alarm']} ({call.run_id})") or NotDone


@agent("report", on="alarm.raised")
async def report(run: Run, event: Event) -> dict[str, str]:
    """Report the alarm."""
    return {"ticket": await run.call(create_ticket, alarm=event.data["alarm"])}


flow = dataflow("tickets", agents=[report])
