"""Tools that do what no tool should: each call still has its answer, and the calls of other tenants theirs."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.test_executor import Asked


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.executor.close()


# --- What asyncio itself does to the task of a call ---


async def fails_in_a_group() -> None:
    """CPython before 3.13 leaves the task with a cancel request that nobody takes back."""

    async def breaks() -> None:
        raise ConnectionError("503")

    async with asyncio.TaskGroup() as group:
        group.create_task(breaks())
        group.create_task(asyncio.Event().wait())


def test_a_failed_task_of_a_task_group_is_the_answer(asked: Asked) -> None:
    asked.call(fails_in_a_group)
    error = asked.answer().error
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error.exceptions[0], ConnectionError)


def test_after_a_task_group_that_failed_the_time_out_is_one(asked: Asked) -> None:
    async def goes_on() -> None:
        with suppress(ExceptionGroup):
            await fails_in_a_group()
        await asyncio.Event().wait()

    asked.call(goes_on, timeout_s=0.05)
    assert str(asked.answer().error) == "no answer within 0.05 s"
