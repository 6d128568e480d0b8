"""Calls a function of many items in processes on all cores, and gives the results in the order of the items."""

from __future__ import annotations

import functools
import gc
import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from cal_schemas.errors import ConfigError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_function: Callable[[], Callable[[Any], Any]]
"""Makes that of this process, where it is a worker, when it is first called."""


def in_order(
    make: Callable[..., Callable[[_Item], _Result]],
    given: tuple[Any, ...],
    items: Iterable[_Item],
    processes: int,
    preload: Sequence[str] = (),
) -> Iterator[_Result]:
    """Results of `make(*given)` for each item; every process makes its own function, once, and with one it is this one.

    Holds at most two items for each process. What a function raises is raised here, what one of them logs while it is
    made is logged here. `preload` are modules that the function needs and this process does not: they are imported
    once, in the process of which the others are copies. Raises ConfigError when a process is killed.
    """
    if processes <= 1:
        yield from map(make(*given), items)
        return
    # Copies of a process that has imported the function's module, and nothing that runs threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([make.__module__, *preload])
    waiting: deque[Future[_Result]] = deque()
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(make, given))
    try:
        for record in pool.submit(_make_aloud).result():
            logging.getLogger(record.name).handle(record)
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that encodes rows was killed from outside: where that was for lack of memory (dmesg tells), "
            f"run it on fewer cores than {processes}, as in taskset --cpu-list 0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Callable[..., Callable[[Any], Any]], given: tuple[Any, ...]) -> None:
    global _function
    gc.freeze()  # Else the first collection writes to all pages that this process shares with the one it is a copy of.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent ends the others.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable()  # What there is to say is said by the parent.
    if torch := sys.modules.get("torch"):  # Where it was preloaded.
        torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _function = functools.cache(lambda: make(*given))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _make_aloud() -> list[logging.LogRecord]:
    """What is logged while this process's function is made."""
    said: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    keeper = logging.handlers.QueueHandler(said)  # Makes records that can be sent.
    logging.getLogger().addHandler(keeper)
    logging.disable(logging.NOTSET)
    try:
        _function()
    finally:
        logging.disable()
        logging.getLogger().removeHandler(keeper)
    return [said.get() for _ in range(said.qsize())]


def _call(item: Any) -> Any:
    return _function()(item)
