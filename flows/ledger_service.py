"""A simulated accounting service: what `flows/clearledger.py` asks over the network in real life.

It runs in the flow's own process and books nothing. Its answers follow from its arguments alone, so whoever
knows the rules below can say from outside what each invoice must come to. It can be slow or fail on demand:

    CLEARLEDGER_DELAY_S     how long each request takes, in seconds (default 0)
    CLEARLEDGER_FAIL_RATE   the share of requests that fail, 0 to 1: for all tenants ("0.1"), or tenant by
                            tenant ("acme=0.5,globex=1"); default 0
    CLEARLEDGER_SEED        which requests fail (default 0); the attempt counts too, so a retry may succeed

An invoice's *lot* is the first byte of BLAKE2b-128 over "tenant/invoice". It says what the books hold for it:

    lot         share   the supplier's open items near the amount
    0 - 199     78 %    one, of the same amount
    200 - 219    8 %    none
    220 - 237    7 %    two, both of the same amount
    238 - 255    7 %    one, 3 % higher than invoiced (by 0.01 at least)
"""

import asyncio
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from hashlib import blake2b
from types import MappingProxyType

import msgspec

from onceflow.errors import ConfigError

CENT = Decimal("0.01")
ACCOUNTS = ("4400 raw materials", "4600 freight", "4900 services", "4960 software")


class OpenItem(msgspec.Struct, frozen=True):
    """An order or delivery in the books that no invoice has been matched with."""

    document: str
    amount: Decimal
    currency: str


class Posting(msgspec.Struct, frozen=True):
    """What to book: an amount from the supplier's account to an account of expenses."""

    debit: str
    credit: str
    amount: Decimal
    currency: str
    document: str


class Unavailable(Exception):  # noqa: N818 (reads as what it says)
    """The service failed; the same request may succeed later."""


class Refused(Exception):  # noqa: N818
    """The service will never answer this request."""


class LedgerService(msgspec.Struct, frozen=True):
    """The service under the conditions that it is asked to simulate."""

    delay_s: float = 0.0
    fail_rate: float = 0.0
    fail_rates: Mapping[str, float] = MappingProxyType({})  # by tenant; those not named have `fail_rate`
    seed: str = "0"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "LedgerService":
        """The service that CLEARLEDGER_* asks for. Raises ConfigError."""
        delay_s = _number("CLEARLEDGER_DELAY_S", environment.get("CLEARLEDGER_DELAY_S", "0"), most=3600)
        fail_rate, fail_rates = 0.0, {}
        for part in filter(None, environment.get("CLEARLEDGER_FAIL_RATE", "").split(",")):
            tenant, named, rate = part.rpartition("=")
            share = _number("CLEARLEDGER_FAIL_RATE", rate, most=1)
            if named:
                fail_rates[tenant.strip()] = share
            else:
                fail_rate = share
        return cls(delay_s, fail_rate, fail_rates, environment.get("CLEARLEDGER_SEED", "0"))

    async def open_items(
        self, tenant: str, invoice: str, amount: Decimal, currency: str, *, attempt: int
    ) -> list[OpenItem]:
        """The supplier's open items near an invoice's amount."""
        await self._serve(tenant, "open-items", invoice, attempt)
        if not re.fullmatch("[A-Z]{3}", currency):
            raise Refused(f"{currency!r} is no currency: send its ISO 4217 code, as EUR")
        lot = digest(tenant, invoice)[0]
        if 200 <= lot < 220:
            return []
        if lot >= 238:
            amount += max(CENT, (amount * Decimal("0.03")).quantize(CENT, ROUND_HALF_EVEN))
        count = 2 if 220 <= lot < 238 else 1
        stem = digest(tenant, invoice).hex()[2:10]
        return [OpenItem(f"PO-{stem}-{number}", amount, currency) for number in range(1, count + 1)]

    async def matching(
        self, tenant: str, invoice: str, amount: Decimal, items: list[OpenItem], *, attempt: int
    ) -> list[OpenItem]:
        """Those of the items that the invoice can be for: the same amount, to the cent."""
        await self._serve(tenant, "matching", invoice, attempt)
        return [item for item in items if item.amount == amount]

    async def draft(
        self, tenant: str, invoice: str, supplier: str, item: OpenItem, *, attempt: int
    ) -> Posting:
        """The posting that closes an item; it isn't booked."""
        await self._serve(tenant, "draft", invoice, attempt)
        debit = ACCOUNTS[digest(tenant, supplier)[0] % len(ACCOUNTS)]
        return Posting(debit, f"1600 payable to {supplier}", item.amount, item.currency, item.document)

    async def _serve(self, tenant: str, operation: str, invoice: str, attempt: int) -> None:
        """Take the time that a request takes, and fail as often as it should."""
        if self.delay_s > 0:
            await asyncio.sleep(self.delay_s)
        drawn = int.from_bytes(digest(self.seed, tenant, operation, invoice, str(attempt))[:4], "big")
        if drawn < self.fail_rates.get(tenant, self.fail_rate) * 2**32:
            raise Unavailable(f"{operation} of {invoice}: the accounting service does not answer")


def digest(*parts: str) -> bytes:
    """BLAKE2b-128 over the parts, joined by slashes."""
    return blake2b("/".join(parts).encode(), digest_size=16).digest()


def _number(name: str, text: str, *, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise ConfigError(
            f"{name}: {text.strip()!r} is no number from 0 to {most:g}; correct it, or unset {name}"
        )
    return number
