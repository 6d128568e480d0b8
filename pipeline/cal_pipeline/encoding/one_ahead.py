"""Working one item ahead: what comes next is made in a thread while the caller is busy with what it has."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def one_ahead(items: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
    """The same items in the same order, errors at their place; at most one is waiting.

    Leaving early waits for the one in the making and closes `items`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            following = pool.submit(next, items, None)
            while (item := following.result()) is not None:
                following = pool.submit(next, items, None)
                yield item
        finally:
            pool.shutdown(wait=True)
            items.close()
