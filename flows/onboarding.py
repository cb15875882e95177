"""Onboarding: many events tell of a new customer; each customer gets one welcome e-mail.

    onceflow run flows.onboarding

Events `customer.created`, `customer.verified` and `customer.invited` carry `{"customer": "ann"}`. Each
completion `welcome.completed` says `{"mail": …}`: the same one for all events of a customer.

What goes wrong otherwise: fourteen events and a few retries, and the customer gets fourteen e-mails. Here
the call belongs to the tenant and the customer, not to one run: one run makes it, the others get its
result, for 24 hours. The mail service is simulated, see `flows/outside.py`.
"""

from flows.outside import do
from onceflow import Call, Event, RetryPolicy, Run, agent, dataflow, tool

RETRY = RetryPolicy(attempts=8, first=0.05, longest=2)


@tool(effect="keyed", scope="tenant", key_fields=("customer",), free_fields=("text",), retry=RETRY)
async def send_welcome(call: Call, customer: str, text: str) -> str:
    """Send the e-mail; its text may differ, as a model writes it."""
    return await do("welcome", f"{call.tenant}/{customer}", call.key)


@agent("welcome", on=["customer.created", "customer.verified", "customer.invited"])
async def welcome(run: Run, event: Event) -> dict[str, str]:
    """Welcome the customer, unless another event has led to it already."""
    customer = event.data["customer"]
    return {
        "mail": await run.call(send_welcome, customer=customer, text=f"Welcome, {customer}! ({event.type})")
    }


flow = dataflow("onboarding", agents=[welcome])
