"""Settings of torch that a run chooses, and when a process may be interrupted."""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch

from .words import UserError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None, "fp64": None}


class RuntimeSettingError(UserError, RuntimeError):
    """torch cannot run as the runtime section says; the message says what to change."""


def check_torch_version() -> None:
    """Refuse torch below 2.6, where reading a checkpoint can run code (CVE-2025-32434).

    Raises:
        RuntimeSettingError: torch is older.
    """
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 6):
        raise RuntimeSettingError(
            f"torch {torch.__version__} is too old: checkpoints can run code when read "
            "(CVE-2025-32434); install torch>=2.6"
        )


def prepare_runtime(
    *, threads: int | None = None, deterministic: bool = False, tf32: bool = False, seed: int = 0
) -> None:
    """Set threads, determinism and TF32, and seed torch.

    With `deterministic` an operation that has no deterministic kernel is an error.

    Raises:
        RuntimeSettingError: torch is too old, or `threads` are too many.
    """
    check_torch_version()
    if threads is not None:
        _set_threads(threads)

    # cuBLAS is deterministic only with a fixed workspace, and cuDNN's search for the fastest kernel
    # may choose another one in every run.
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True

    # TF32 has the range of fp32 and the precision of fp16; only asked for is it used.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(seed)


def _set_threads(threads: int) -> None:
    """Let torch use `threads` threads; far more than there are processors end the process."""
    processors = os.cpu_count() or 1
    most = max(64, 4 * processors)
    if threads > most:
        raise RuntimeSettingError(
            f"runtime.threads: {threads} is far more than the {processors} processors of this "
            f"machine; set it to {processors} or less, or to null"
        )
    torch.set_num_threads(threads)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype to autocast to, or None where the precision is the parameters' own."""
    return _AUTOCAST[precision]


def parameter_dtype(precision: str) -> torch.dtype:
    """The dtype parameters are kept in: fp64 for fp64 runs, else fp32."""
    if precision == "fp64":
        return torch.float64
    return torch.float32


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context that autocasts to `dtype` on `device`; None autocasts nothing."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class KernelSearch:
    """Lets cuDNN search for the fastest kernels where images of one size come again and again.

    A search runs every convolution of a network in all ways that there are. That pays in a
    training, whose crops have one size, and in an evaluation of images of one size. Where each
    image has its own it would take longer than the inference.
    """

    PAYS_FROM = 3  # images of a size

    def __init__(self) -> None:
        self.seen: Counter[tuple[int, ...]] = Counter()

    @contextmanager
    def for_size(self, size: Sequence[int], *, in_parts: bool = False) -> Iterator[None]:
        """Inside, images of `size` are computed; a training's own setting is back afterwards.

        With `in_parts` parts of them are computed, too, whose sizes are others for each image.
        """
        setting = torch.backends.cudnn
        before = setting.benchmark
        self.seen[tuple(size)] += 1
        often = self.seen[tuple(size)] >= self.PAYS_FROM and not in_parts

        # `prepare_runtime` has it on where it is wanted: on CUDA, unless a run is deterministic.
        setting.benchmark = before and often
        try:
            yield
        finally:
            setting.benchmark = before


kernel_search = KernelSearch()


def seed_step(*, seed: int, step: int, rank: int) -> None:
    """Seed torch for one step.

    Dropout is then a function of (seed, step, rank), and a resumed run draws what it would have
    drawn without the interruption.
    """
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}".encode()))


class _Interruptions:
    """How many `uninterrupted` blocks are open, and what was asked for in the meantime."""

    def __init__(self) -> None:
        # Signal handlers run in the main thread between any two of its steps, also while it holds
        # this lock; a plain lock would wait for itself there.
        self.lock = threading.RLock()
        self.blocks = 0
        self.exit_status: int | None = None


_interruptions = _Interruptions()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Finish the block, such as the writing of a checkpoint, before the process may be stopped.

    Ctrl-C within the block raises KeyboardInterrupt at its end, and `exit_when_possible` takes
    effect there. Nothing helps against SIGKILL, but `files.writing` loses nothing by it either.
    """
    presses: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        presses.append(number)

    # Python lets only the main thread set handlers, and only it receives KeyboardInterrupt.
    is_main = threading.current_thread() is threading.main_thread()
    previous: Any = None
    if is_main:
        previous = signal.signal(signal.SIGINT, remember)
    with _interruptions.lock:
        _interruptions.blocks += 1
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, previous or signal.SIG_DFL)
        with _interruptions.lock:
            _interruptions.blocks -= 1
            if _interruptions.blocks == 0 and _interruptions.exit_status is not None:
                status, _interruptions.exit_status = _interruptions.exit_status, None
                os._exit(status)

    if presses:
        signal.raise_signal(signal.SIGINT)


def exit_when_possible(status: int) -> None:
    """End the process at once with `status`, or at the end of a block that is `uninterrupted`.

    For signal handlers and timers.
    """
    with _interruptions.lock:
        if _interruptions.blocks > 0:
            _interruptions.exit_status = status
        else:
            os._exit(status)
