"""Imports torch, transformers and what needs them in three quarters of the time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports(*, freeze: bool = True) -> Iterator[None]:
    """While entered nothing is collected, and what is there by the end never is: modules stay as long as the process.

    freeze: False in a process of somebody else's, whose objects are to be collected as ever.

    Else collections look through the 430,000 objects that torch and transformers are made of: a thousand times, in part
    or all, while they are imported, and again at the process's end. Does nothing where torch is imported already: to
    the objects of such a process more may have happened than to those of a program that starts.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()  # What is garbage by now would stay too.
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        gc.enable()
