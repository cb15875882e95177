"""ClearLedger: what an invoice comes to, and what a failing accounting service does to it."""

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from flows import clearledger
from flows.ledger_service import LedgerService, digest
from onceflow.errors import ConfigError
from tests.flows.driver import Driven, drive

# One invoice of tenant acme for each thing that the books may hold for it.
MATCHED, UNMATCHED, AMBIGUOUS, DIFFERS = "INV-1", "INV-0", "INV-30", "INV-15"
STEPS = ["find_candidates", "match", "propose_posting"]


def reconciled(invoice: str, tenant: str = "acme", **more: Any) -> Driven:
    data = {"invoice": invoice, "supplier": "Aalto Oy", "amount": "100.00", "currency": "EUR", **more}
    return drive(clearledger.reconcile, data, tenant=tenant)


@pytest.mark.parametrize(
    ("invoice", "status", "steps", "also"),
    [
        (MATCHED, "matched", 3, {"posting"}),
        (UNMATCHED, "unmatched", 1, set()),
        (AMBIGUOUS, "ambiguous", 2, {"documents"}),
        (DIFFERS, "amount-differs", 2, {"documents", "difference"}),
    ],
)
def test_the_books_decide_what_an_invoice_comes_to(
    invoice: str, status: str, steps: int, also: set[str]
) -> None:
    run = reconciled(invoice)
    assert run.value["status"] == status
    assert run.value.keys() == {"status", "invoice", "supplier"} | also
    assert run.attempts == [(step, 1, 0.0) for step in STEPS[:steps]]


def test_a_posting_is_proposed_for_the_open_item_that_fits() -> None:
    posting = reconciled(MATCHED, supplier="Aalto Oy", amount=119.5, currency="CHF").value["posting"]
    assert (posting["amount"], posting["currency"], posting["credit"]) == (
        "119.5",
        "CHF",
        "1600 payable to Aalto Oy",
    )
    assert reconciled(DIFFERS).value["difference"] == "3.00"
    assert len(reconciled(AMBIGUOUS).value["documents"]) == 2


def test_the_same_invoice_comes_to_the_same_for_ever_and_shares_are_as_documented() -> None:
    """An outside checker may recompute the status from tenant and invoice alone."""

    def status(tenant: str, invoice: str) -> str:
        lot = digest(tenant, invoice)[0]
        return ("matched", "unmatched", "ambiguous", "amount-differs")[
            (lot >= 200) + (lot >= 220) + (lot >= 238)
        ]

    names = [(f"t-{number % 7}", f"INV-{number}") for number in range(400)]
    found = [reconciled(invoice, tenant).value["status"] for tenant, invoice in names]
    assert found == [status(*each) for each in names]
    assert min(Counter(found).values()) > 10


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"invoice": "INV-1", "amount": "much"}, "invalid-data"),
        ({"invoice": "INV-1", "amount": "NaN"}, "invalid-data"),
        ({"invoice": "INV-1", "amount": "1e999"}, "invalid-data"),
        ({"amount": "1.00"}, "invalid-data"),
        ([], "invalid-data"),
    ],
)
def test_what_is_no_invoice_fails_without_asking_the_service(data: Any, code: str) -> None:
    run = drive(clearledger.reconcile, data)
    assert (run.failed.code, run.attempts) == (code, [])


def test_a_request_that_fails_is_retried_and_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = reconciled(MATCHED)
    monkeypatch.setattr(clearledger, "service", LedgerService(fail_rate=0.5, seed="3"))
    run = reconciled(MATCHED)
    assert run.value == undisturbed.value
    assert len(run.attempts) > len(STEPS)
    retried = [delay_s for _, attempt, delay_s in run.attempts if attempt > 1]
    assert all(0 <= delay_s <= 5 for delay_s in retried)


def test_a_service_that_is_down_for_one_tenant_fails_its_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        clearledger, "service", LedgerService.from_environment({"CLEARLEDGER_FAIL_RATE": "globex=1"})
    )
    down = reconciled(MATCHED, tenant="globex")
    assert down.failed.code == "agent-failed"
    assert "does not answer (attempt 5, the last)" in down.failed.message
    assert [attempt for _, attempt, _ in down.attempts] == [1, 2, 3, 4, 5]
    assert reconciled(MATCHED, tenant="acme").value["status"] == "matched"


def test_a_request_that_the_service_refuses_is_not_retried() -> None:
    run = reconciled(MATCHED, currency="Taler")
    assert run.failed.code == "agent-failed"
    assert "find_candidates: GiveUp: 'Taler' is no currency" in run.failed.message
    assert run.attempts == [("find_candidates", 1, 0.0)]


def test_the_environment_says_how_the_service_behaves() -> None:
    def service(**environment: str) -> LedgerService:
        return LedgerService.from_environment({f"CLEARLEDGER_{k}": v for k, v in environment.items()})

    assert service() == LedgerService()
    assert service(DELAY_S="0.2", FAIL_RATE="0.1, acme=1", SEED="7") == LedgerService(
        0.2, 0.1, {"acme": 1.0}, "7"
    )
    for wrong in ("often", "2", "-1", "nan", "acme="):
        with pytest.raises(ConfigError, match=r"CLEARLEDGER_FAIL_RATE.*correct it"):
            service(FAIL_RATE=wrong)


def test_amounts_are_exact() -> None:
    assert clearledger.reconcile.decode(b'{"invoice":"a","amount":0.1}').amount == Decimal("0.1")
