"""Decides what becomes of a fault: one table, read by workers, by the driver and by the program's end.

The first line that fits an exception holds for it. What an unusable row becomes is no fault: its exception's `status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EACCES, EDQUOT, EIO, ENOSPC, EPERM, EROFS
from typing import Literal

import pyarrow as pa

from cal_schemas.errors import CalError, ConfigError, FormatError, ShardError, StoreError

EXIT_DONE, EXIT_SHARDS_FAILED, EXIT_STOPPED = 0, 1, 2
_RESUMES = "stopped: {error}. What is published is whole; the same command resumes"


class RunAbortedError(CalError):
    """The run stopped before its end, and trying further would not help."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Is one line of the table."""

    kind: type[BaseException] | str
    """The exception's class, or its dotted name where importing it would load torch or Ray."""
    errnos: tuple[int, ...] = ()
    """Of an OSError; empty for all others."""
    in_shard: Literal["retry", "stop", "end"] | None = None
    """What a worker says of the shard: try it again, stop the run; or its process ends, and a fresh one tries again."""
    at_start: Literal["retry", "refuse"] | None = None
    """What a worker says that cannot start: the machine is at fault, or what was asked for (nothing is left behind)."""
    in_driver: Literal["retry", "stop", "interrupt", "crash"] = "crash"
    """What the driver does where it happens to itself; a crash is a bug, with its traceback."""
    exit_code: int | None = EXIT_SHARDS_FAILED
    """Of the program after that; None is 128 + the signal. A shard that was tried again in vain ends it with 1."""
    worker_says: str = "{kind}: {error} ({where})"
    driver_says: str = "{error}"
    node_news_s: float = 0.0
    """How long the driver waits to learn whether a worker's node is lost too, which costs the shard no try."""

    def fits(self, error: BaseException) -> bool:
        """Returns whether this line is about that exception."""
        if self.errnos and getattr(error, "errno", None) not in self.errnos:
            return False
        if isinstance(self.kind, str):
            return self.kind in (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
        return isinstance(error, self.kind)


_STOP, _INTERRUPT = EXIT_STOPPED, None
_SHARD, _COLUMNS = "{shard}: {error}", "{shard} does not fit the output's columns: {error}"
# fmt: off
FAULTS = (
    Fault("ray.exceptions.ActorUnavailableError", (),     None,    None,     "retry", node_news_s=60.0),
    Fault("ray.exceptions.RayError", (),                  None,    None,     "retry", node_news_s=10.0),
    Fault("torch.AcceleratorError", (),                   "end",   "retry",  "crash"),
    Fault(ShardError, (),                                 "retry", "refuse", "stop", _STOP, "{error}"),
    Fault(StoreError, (EACCES,),                          "stop",  "refuse", "stop", _STOP, _SHARD),
    Fault(StoreError, (),                                 "retry", "refuse", "stop", _STOP, _SHARD),
    Fault(ConfigError, (),                                "stop",  "refuse", "stop", _STOP, "{error}"),
    Fault(FormatError, (),                                "stop",  "refuse", "stop", _STOP, "{error}"),
    Fault(RunAbortedError, (),                            None,    None,     "stop", _STOP, driver_says=_RESUMES),
    Fault(CalError, (),                                   "retry", "refuse", "stop", _STOP),
    Fault(OSError, (ENOSPC, EDQUOT, EROFS),               "stop",  "retry",  "stop", _STOP, _SHARD, _RESUMES),
    Fault(OSError, (EIO,),                                "retry", "retry",  "stop", _STOP, _SHARD, _RESUMES),
    Fault(OSError, (EACCES, EPERM),                       "stop",  "retry",  "crash", worker_says=_SHARD),
    Fault(OSError, (),                                    "retry", "retry",  "crash", worker_says=_SHARD),
    Fault(pa.ArrowInvalid, (),                            "stop",  "retry",  "crash", worker_says=_COLUMNS),
    Fault(pa.ArrowTypeError, (),                          "stop",  "retry",  "crash", worker_says=_COLUMNS),
    Fault(Exception, (),                                  "retry", "retry",  "crash"),
    Fault(KeyboardInterrupt, (),                          "end",   "retry",  "interrupt", _INTERRUPT),
    Fault(BaseException, (),                              "end",   "retry",  "crash"),
)
# fmt: on


def fault_of(error: BaseException) -> Fault:
    """Returns the line of the table that holds for an exception."""
    return next(fault for fault in FAULTS if fault.fits(error))
