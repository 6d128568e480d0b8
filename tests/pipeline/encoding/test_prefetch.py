from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from cal_pipeline.encoding.prefetch import one_ahead


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Generator[int, None, None]:
        for number in range(3):
            made.append(number)
            if number == 1:
                third.set()
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert third.wait(10), "the second item was not made while the first was in use"
    assert list(ahead) == [1, 2]
    assert made == [0, 1, 2]


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Generator[int, None, None]:
        yield 0
        raise OSError("the disk is gone")

    ahead = one_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_leaving_early_closes_the_items() -> None:
    closed = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    ahead = one_ahead(items())
    next(ahead)
    ahead.close()
    assert closed == [True]
