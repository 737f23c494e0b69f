"""Measuring ours against a baseline: alternating timings, peak extra memory, proof that both agree.

A benchmark gives two *builders*: module-level functions `build(**arguments)` that make their inputs
and return a *workload*, a callable without arguments that does one round and returns its result.
Builders are importable by name, because on the CPU each one's peak memory is measured in a fresh
process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from hmsa.utils.files.writing import write_file, written_whole
from hmsa.utils.words import UserError

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
# The number of mallopt's option M_MMAP_THRESHOLD in glibc's malloc.h.
_MMAP_THRESHOLD = -3


class Disagreement(RuntimeError):
    """Ours and the baseline do not compute the same thing: comparing their speed means nothing."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON, in place of such rows at most.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """
    require_place_for_rows(path)
    write_file(path, json.dumps(rows, indent=2) + "\n")


def require_place_for_rows(path: Path) -> None:
    """Raise UserError where `write_rows` would fail; to be asked before the measuring."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, list):
            raise UserError(f"{path} holds something else than rows; name another file")

    # Whether the folder can be written to shows when something is written.
    with written_whole(path.parent / f".{path.name}.probe") as probe:
        probe.touch()
    (path.parent / f".{path.name}.probe").unlink()


def size_text(form: str) -> Callable[[str], str]:
    """An argparse type: whole numbers joined by x, as many as in `form`, such as HxW."""
    pattern = "x".join([r"[1-9]\d*"] * len(form.split("x")))

    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return read


def numbers_of(size: str) -> tuple[int, ...]:
    """The whole numbers of a text that `size_text` has accepted: (512, 1024) of 512x1024."""
    return tuple(int(number) for number in size.split("x"))


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
) -> dict[str, Any]:
    """One row: medians of `rounds` alternating rounds, and the peak extra memory of one round each.

    `check(ours_result, baseline_result)` raises Disagreement when the two disagree (`require_close`
    helps); it runs on the results of the first warm-up round.
    """
    ours_workload, baseline_workload = ours(**arguments), baseline(**arguments)
    check(ours_workload(), baseline_workload())

    ours_s, baseline_s = time_alternately(
        (ours_workload, baseline_workload), device=device, rounds=rounds, warm_up=warm_up - 1
    )

    # On a GPU the inputs of the timed rounds would count as memory that was there before.
    del ours_workload, baseline_workload
    return row(
        name=name,
        size=size,
        device=device,
        ours_s=ours_s,
        baseline_s=baseline_s,
        ours_mib=peak_extra_mib(ours, arguments=arguments, device=device),
        baseline_mib=peak_extra_mib(baseline, arguments=arguments, device=device),
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
    """A row of the table from measured figures.

    `ratio` is baseline over ours (how many times faster ours is), `memory_ratio` ours over
    baseline (the share of memory that ours takes).
    """
    memory_ratio = None
    if ours_mib is not None and baseline_mib:
        memory_ratio = ours_mib / baseline_mib
    return {
        "name": name,
        "ours_s": ours_s,
        "baseline_s": baseline_s,
        "ratio": baseline_s / ours_s,
        "ours_mib": ours_mib,
        "baseline_mib": baseline_mib,
        "memory_ratio": memory_ratio,
        "device": device_name(device),
        "size": size,
    }


def time_alternately(
    workloads: tuple[Workload, ...], *, device: str = "cpu", rounds: int = 5, warm_up: int = 1
) -> list[float]:
    """Median seconds of each workload.

    They take turns, so that a change in the machine's speed meets all of them.
    """
    for _ in range(warm_up):
        for workload in workloads:
            workload()

    seconds: list[list[float]] = [[] for _ in workloads]
    for _ in range(rounds):
        for workload, record in zip(workloads, seconds, strict=True):
            # Work is only queued on a GPU: without waiting, the next side would pay for this one.
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
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu"


def require_close(
    ours: torch.Tensor, baseline: torch.Tensor, *, relative: float, what: str
) -> None:
    """Raise Disagreement unless |ours - baseline| <= relative * |baseline| (Euclidean norms)."""
    difference = torch.linalg.vector_norm(ours.double() - baseline.double()).item()
    bound = relative * torch.linalg.vector_norm(baseline.double()).item()

    # Written so that a difference which is not a number fails, too.
    if not difference <= bound:
        raise Disagreement(
            f"{what}: ours differs from the baseline by {difference:.3e}, more than {bound:.3e}."
        )


def peak_extra_mib(build: Builder, *, arguments: Mapping[str, Any], device: str = "cpu") -> float:
    """Peak memory of one round beyond what was there before it, in MiB.

    On the CPU it is the resident memory of a fresh process, on a GPU what the CUDA allocator hands
    out.
    """
    if torch.device(device).type == "cuda":
        return _peak_of_allocator(build(**arguments), device)

    # A fresh process: the peak of this one already holds everything that ran before.
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(
        target=_report_peak, args=(send, build, dict(arguments), torch.get_num_threads())
    )
    child.start()

    # With our copy of the sending end closed, a child that dies ends the waiting.
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
    # The first round fills caches of cuDNN and of the allocator that later rounds find filled.
    workload()
    gc.collect()
    torch.cuda.synchronize(device)

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    workload()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _report_peak(send: Connection, build: Builder, arguments: dict[str, Any], threads: int) -> None:
    """Measure one round in this process and send the figure in MiB to the parent."""
    torch.set_num_threads(threads)
    _map_large_blocks()
    workload = build(**arguments)

    # A first round pays for libraries and thread pools; its garbage goes back to the system.
    if _reset_peak_resident():
        workload()
        gc.collect()
        _call_malloc("malloc_trim", 0)
        _reset_peak_resident()

    # The result is kept until the peak is read: it is memory that the round takes.
    before = _resident_mib()
    result = workload()
    send.send(_peak_resident_mib() - before)
    send.close()
    del result


def _reset_peak_resident() -> bool:
    """Reset the kernel's record of the peak resident memory; False where it has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _map_large_blocks() -> None:
    """Let glibc map every block of 128 KiB or more by itself.

    Holes in the heap, which differ from run to run, then count for neither side. Setting the
    threshold also stops glibc from moving it.
    """
    _call_malloc("mallopt", _MMAP_THRESHOLD, 128 * 2**10)


def _call_malloc(name: str, *values: int) -> None:
    """Call a function of glibc's allocator where there is one."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*values)


def _resident_mib() -> float:
    return _status_mib("VmRSS:") or _peak_resident_mib()


def _peak_resident_mib() -> float:
    recorded = _status_mib("VmHWM:")
    if recorded is not None:
        return recorded

    # Without /proc, as on macOS, whose getrusage counts bytes where Linux counts KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak / MIB
    return peak / 2**10


def _status_mib(field: str) -> float | None:
    """A field of the kernel's status of this process, which is in KiB, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None

    for line in lines:
        if line.startswith(field):
            return int(line.split()[1]) / 2**10
    return None
