"""Measures for the benchmarks: variants that take turns, memory of tensors, floating-point operations.

Wall times are compared as ratios of medians of interleaved repeats. On a machine that others share, the ratio of CPU
seconds tells more than that of the wall's; both are reported.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Variant = Callable[[], object]
MIN_REPEATS = 7


@dataclass(kw_only=True, slots=True)
class Times:
    """Seconds of every repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process."""

    def row(self) -> dict[str, Any]:
        """For the JSON: medians, quartiles and all values."""
        low, _, high = statistics.quantiles(self.wall, n=4) if len(self.wall) > 1 else (self.wall * 3)
        return {
            "median_s": self.median,
            "quartiles_s": [low, high],
            "median_cpu_s": statistics.median(self.cpu),
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
        }

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def keep_freed_memory() -> None:
    """Freed memory stays with the process, as in CUDA's allocator, instead of going back to the system.

    Else a variant pays for the page faults of what the one before it gave back: a fifth of a training step.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_max = -1, -4
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(mmap_max, 0)


def give_back_freed_memory() -> None:
    """So that what is resident is what is in use, and no leftover of what ran before."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def interleave(variants: Mapping[str, Variant], repeats: int, device: str = "cpu") -> dict[str, Times]:
    """Runs each variant once to warm up, then all of them in turn, in an order drawn anew for every repeat."""
    keep_freed_memory()
    times = {name: Times() for name in variants}
    for run in variants.values():
        run()
    orders = random.Random(0)
    for _ in range(repeats):
        for name in orders.sample(list(variants), len(variants)):
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            synchronize(device)
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(times: Mapping[str, Times], numerator: str, denominator: str) -> float:
    return times[numerator].median / times[denominator].median


def cpu_ratio(times: Mapping[str, Times], numerator: str, denominator: str) -> float:
    return statistics.median(times[numerator].cpu) / statistics.median(times[denominator].cpu)


def peak_memory(run: Variant, device: str = "cpu") -> int:
    """Bytes of tensors that were alive at once while it ran, over what was there before.

    On CPU from the profiler's record of every allocation, the operators' own scratch included, so it is the same in
    every run; on CUDA the allocator's own count.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    alive = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def count_flops(run: Variant) -> int:
    """Floating-point operations of matrix products, convolutions and attention, by torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return int(counter.get_total_flops())


def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


# torch's counter knows the attention kernels of CUDA only.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function` of a module returns, in a process whose memory and imports are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


class Stopwatch:
    """Seconds by the clock and of all cores since it was made: on a busy machine only the latter tell something."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        return {f"{name}_s": time.monotonic() - self._wall, f"{name}_cpu_s": time.process_time() - self._cpu}


def resident_mb(kind: str = "VmHWM") -> float:
    """Of this process: VmHWM is the most that was ever resident, VmRSS what is now, RssAnon that without mapped files.

    Not getrusage, whose maximum outlives exec: a child would report its parent's.
    """
    size = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert size is not None
    return int(size[1]) / 1024


def fitted_exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost over log size, by least squares: 1 is linear."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def load_average() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]
