"""Test agents and tools without Kafka: in memory, with a clock that nobody waits for, and a crash at every point.

    from onceflow.testing import crash_everywhere, event, run_agent

    def test_a_disputed_invoice_is_refunded():
        due = event("invoice.due", {"invoice": "INV-1", "cents": 1900})
        outcome = run_agent(bill, due, results={charge: "ch_1", is_disputed: True})
        assert outcome.code == "disputed"
        assert [(call.tool, call.kind) for call in outcome.calls][-1] == ("charge", "undo")

    def test_no_crash_charges_twice():
        due = event("invoice.due", {"invoice": "INV-1", "cents": 1900})
        crash_everywhere(bill, due, results={charge: "ch_1", is_disputed: False, send_receipt: "r_1"})

The runs are the real ones, by the rules that hold in production: what a crash costs here, it costs there. A tool in
`results` is not called: its effect is done by a `Target`, which does each key once, and it returns what the script
says, a value, an exception, a function of the arguments, or a list of these. Other tools are called for real.
"""

from onceflow.testing.everywhere import Report, crash_everywhere
from onceflow.testing.kit import Outcome, event, run_agent, signal
from onceflow.testing.simulation import Called, Reply
from onceflow.testing.target import Effect, Target
from onceflow.testing.tool_check import check_tool

__all__ = [
    "Called",
    "Effect",
    "Outcome",
    "Reply",
    "Report",
    "Target",
    "check_tool",
    "crash_everywhere",
    "event",
    "run_agent",
    "signal",
]
