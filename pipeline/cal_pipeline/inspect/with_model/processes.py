"""Calls a function of many items in processes on all cores, and gives the results in the order of the items."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_function: Callable[[Any], Any]
"""Of this process, where it is a worker."""


def in_order(
    make: Callable[..., Callable[[_Item], _Result]], given: tuple[Any, ...], items: Iterable[_Item], processes: int
) -> Iterator[_Result]:
    """Results of `make(*given)` for each item; every process makes its own function, once, and with one it is this one.

    Holds at most three items for each process. What a function raises is raised here.
    """
    if processes <= 1:
        yield from map(make(*given), items)
        return
    # Processes that are copied from one which has imported the function's module, and nothing that runs threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([make.__module__])
    waiting: deque[Future[_Result]] = deque()
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(make, given))
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 3 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Callable[..., Callable[[Any], Any]], given: tuple[Any, ...]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent ends the others.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable()  # What there is to say is said by the parent.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _function = make(*given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
