"""Measuring ours against a baseline: alternating timings, peak extra memory, and the proof that both agree.

A benchmark gives two *builders*: module-level functions `build(**arguments)` that make their inputs and return a
workload, a callable without arguments that does one round and returns its result. Builders are importable by name,
because on the CPU each one's peak memory is measured in a fresh process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Workload = Callable[[], Any]
Builder = Callable[..., Workload]
ROW_KEYS = (
    "name",
    "ours_s",
    "baseline_s",
    "ratio",
    "ours_mib",
    "baseline_mib",
    "memory_ratio",
    "device",
    "size",
)
MIB = 2**20


class Disagreement(RuntimeError):
    """Ours and the baseline do not compute the same thing, so that comparing their speed means nothing."""


def size_text(form: str) -> Callable[[str], str]:
    """An argparse type: whole numbers joined by x, as many as in `form`, such as HxW."""

    def read(text: str) -> str:
        if not re.fullmatch("x".join([r"[1-9]\d*"] * len(form.split("x"))), text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return read


def compare(
    *,
    name: str,
    size: str,
    ours: Builder,
    baseline: Builder,
    arguments: Mapping[str, Any],
    check: Callable[[Any, Any], None],
    device: str = "cpu",
    rounds: int = 5,
    warm_up: int = 1,
    memory: bool = True,
) -> dict[str, Any]:
    """One row of the table: medians of `rounds` alternating rounds, and the peak extra memory of one round of each.

    `check(ours_result, baseline_result)` raises when the two disagree (`require_close` helps); it runs on the results
    of the warm-up. With `memory=False` the memory columns are None.
    """
    ours_workload, baseline_workload = ours(**arguments), baseline(**arguments)
    check(ours_workload(), baseline_workload())
    ours_s, baseline_s = time_alternately(
        (ours_workload, baseline_workload), device=device, rounds=rounds, warm_up=warm_up - 1
    )
    del ours_workload, baseline_workload
    ours_mib = peak_extra_mib(ours, arguments=arguments, device=device) if memory else None
    baseline_mib = peak_extra_mib(baseline, arguments=arguments, device=device) if memory else None
    return row(
        name=name,
        size=size,
        device=device,
        ours_s=ours_s,
        baseline_s=baseline_s,
        ours_mib=ours_mib,
        baseline_mib=baseline_mib,
    )


def row(
    *,
    name: str,
    size: str,
    device: str,
    ours_s: float,
    baseline_s: float,
    ours_mib: float | None = None,
    baseline_mib: float | None = None,
) -> dict[str, Any]:
    """A row of the table from measured figures: `ratio` is baseline over ours, `memory_ratio` ours over baseline."""
    memory_ratio = None if ours_mib is None or not baseline_mib else ours_mib / baseline_mib
    values = (name, ours_s, baseline_s, baseline_s / ours_s, ours_mib, baseline_mib, memory_ratio)
    return dict(zip(ROW_KEYS, (*values, device_name(device), size), strict=True))


def time_alternately(
    workloads: tuple[Workload, ...], *, device: str = "cpu", rounds: int = 5, warm_up: int = 1
) -> list[float]:
    """Median seconds of each workload. They take turns, so that a change in the machine's speed meets all of them."""
    for _ in range(warm_up):
        for workload in workloads:
            workload()
    seconds: list[list[float]] = [[] for _ in workloads]
    for _ in range(rounds):
        for workload, record in zip(workloads, seconds, strict=True):
            synchronise(device)
            begin = time.perf_counter()
            workload()
            synchronise(device)
            record.append(time.perf_counter() - begin)
    return [statistics.median(record) for record in seconds]


def synchronise(device: str) -> None:
    """Wait until the GPU is done; nothing on the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """What the row says about the device: "cpu", or the GPU's product name."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def require_close(
    ours: torch.Tensor, baseline: torch.Tensor, *, relative: float, what: str
) -> None:
    """Raise Disagreement unless |ours - baseline| <= relative * |baseline| in the Euclidean norm."""
    difference = torch.linalg.vector_norm(ours.double() - baseline.double()).item()
    bound = relative * torch.linalg.vector_norm(baseline.double()).item()
    if not difference <= bound:
        raise Disagreement(
            f"{what}: ours differs from the baseline by {difference:.3e}, more than {bound:.3e}."
        )


def peak_extra_mib(build: Builder, *, arguments: Mapping[str, Any], device: str = "cpu") -> float:
    """Peak memory of one round beyond what was there before it, in MiB: resident memory, or the CUDA allocator's."""
    if torch.device(device).type == "cuda":
        return _peak_of_allocator(build(**arguments), device)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(
        target=_report_peak, args=(send, build, dict(arguments), torch.get_num_threads())
    )
    child.start()
    send.close()
    try:
        return float(receive.recv())
    except EOFError as error:
        child.join()
        raise RuntimeError(
            f"the process that measures {build.__name__} ended with {child.exitcode}."
        ) from error
    finally:
        child.join()


def _peak_of_allocator(workload: Workload, device: str) -> float:
    workload()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    workload()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _report_peak(send: Any, build: Builder, arguments: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    _map_large_blocks()
    workload = build(**arguments)
    if (
        _reset_peak_resident()
    ):  # a first round pays for libraries and thread pools; its garbage goes back to the system
        workload()
        gc.collect()
        _return_free_memory()
        _reset_peak_resident()
    before = _resident_mib()
    result = workload()
    send.send(_peak_resident_mib() - before)
    send.close()
    del result


def _reset_peak_resident() -> bool:
    """Reset the kernel's record of the peak resident memory; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _map_large_blocks() -> None:
    """Let glibc map every block of 128 KiB or more by itself, so that holes in the heap, which differ from run to run, count for neither side."""
    _of_malloc(
        "mallopt", -3, 128 * 2**10
    )  # M_MMAP_THRESHOLD; setting it also stops glibc from moving it


def _return_free_memory() -> None:
    """Hand free heap pages back to the system, so that a later round has to take them again."""
    _of_malloc("malloc_trim", 0)


def _of_malloc(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)


def _resident_mib() -> float:
    return _status_mib("VmRSS:") or _peak_resident_mib()


def _peak_resident_mib() -> float:
    kibibytes_per_unit = 2**10 if sys.platform == "darwin" else 1
    return (
        _status_mib("VmHWM:")
        or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kibibytes_per_unit / 2**10
    )


def _status_mib(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(field)), None)
