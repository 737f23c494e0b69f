"""Loader processes.

Each has one thread, ignores the signals that are meant for the main process, ends with it, and
hands over what went wrong.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.queues
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..exhaustion import explain_exhaustion, require_descriptors

Batch = dict[str, Any]

# Files that loading keeps open at once in the main process.
_FILES_OF_A_WORKER = 6
_TENSORS_OF_A_BATCH = 6
_BATCHES_IN_USE = 4
_FILES_BESIDE = 24

_SECONDS_TO_END = 0.5

# Exit statuses of workers that could not hand over a batch; see `_end_without_batch`.
_NO_SHARED_MEMORY = 75
_NO_DESCRIPTORS = 76
_NOT_SENT = 77
_SHARED_MEMORY = "/dev/shm"
_REASONS = {
    _NO_SHARED_MEMORY: (
        "because /dev/shm{size} has no room for another batch; enlarge it (docker run "
        "--shm-size=8g), or lower data.workers or data.batch_size, and resume"
    ),
    _NO_DESCRIPTORS: (
        "because it may not open more files; raise the limit (ulimit -n 4096), or lower "
        "data.workers, and resume"
    ),
    _NOT_SENT: "because a batch could not be handed over; lower data.workers, and resume",
}


class BatchReader(Protocol):
    """Makes the batch that a list of requests asks for; it is sent to the workers."""

    def read(self, requests: list[Any]) -> Batch:
        """The batch; DataError if a file is at fault."""

    def describe(self, requests: list[Any]) -> str:
        """The files that the requests are about, for messages."""


class _BatchDataset(Dataset[Any]):
    """A BatchReader as torch's loader wants it.

    It gives a whole batch at a time, and a user's error as a value instead of a traceback.
    """

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitems__(self, requests: list[Any]) -> Batch | DataError:
        try:
            return self.reader.read(requests)
        except DataError as error:
            return error
        except Exception as error:
            error.add_note(f"while reading {self.reader.describe(requests)}")
            raise

    def __getitem__(self, request: Any) -> Batch | DataError:
        return self.__getitems__([request])


def _unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class WorkerProcesses:
    """How a loader's processes are run.

    Attributes:
        workers: how many there are; 0: the main process reads.
        prefetch: how many batches each prepares ahead at most.
        persistent: whether they outlive an epoch.
        pin_memory: whether batches go to pinned memory; None: where there is a GPU.
    """

    workers: int
    prefetch: int
    persistent: bool
    pin_memory: bool | None


def start_loader(reader: BatchReader, steps: Any, processes: WorkerProcesses) -> DataLoader[Any]:
    """torch's DataLoader over `steps`, an iterable of lists of requests."""
    pin_memory = processes.pin_memory
    if pin_memory is None:
        pin_memory = torch.cuda.is_available()

    # Each worker has pipes, and each tensor of a batch on its way holds a file.
    if processes.workers > 0:
        batches_on_their_way = processes.workers * processes.prefetch + _BATCHES_IN_USE
        require_descriptors(
            processes.workers * _FILES_OF_A_WORKER
            + batches_on_their_way * _TENSORS_OF_A_BATCH
            + _FILES_BESIDE,
            what=f"{processes.workers} data loader workers",
        )

    # torch refuses these options where there are no workers.
    for_workers: dict[str, Any] = {}
    if processes.workers > 0:
        for_workers = {
            "persistent_workers": processes.persistent,
            "prefetch_factor": processes.prefetch,
            "worker_init_fn": partial(_begin_worker, main=os.getpid()),
        }
    with _few_cores_are_no_fault():
        return DataLoader(
            _BatchDataset(reader),
            batch_sampler=steps,
            num_workers=processes.workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            **for_workers,
        )


@contextmanager
def _few_cores_are_no_fault() -> Iterator[None]:
    """Without torch's warning of more workers than cores, which costs nothing here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        DataError: a file is at fault, or a worker was lost.
    """
    iterator: Any = None
    try:
        with _few_cores_are_no_fault():
            iterator = iter(loader)
        if loader.num_workers:
            # Exit handlers run in reverse order, and starting the workers may have registered one
            # of torch's.
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)
            _explain_signals()
        for batch in iterator:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        if explain_lost_worker(error) is None:
            raise
        explanation = explain_lost_worker(error, status=_exit_status(iterator)) or ""
        raise DataError(explanation, kind="worker") from error


def _exit_status(iterator: Any) -> int | None:
    """Exit status of a loader's worker that could not hand over its batch, if there is one."""
    for worker in getattr(iterator, "_workers", ()):
        # A broken connection shows a little before the worker has ended.
        worker.join(_SECONDS_TO_END)
        if worker.exitcode in _REASONS:
            return int(worker.exitcode)
        if worker.exitcode:
            return None
    return None


def _explain_signals() -> None:
    """Let the end of a worker be a DataError wherever the main process happens to be.

    torch's handler of SIGCHLD raises a RuntimeError there, in the middle of a step, too.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and callable(handler) and not isinstance(handler, _ExplainedHandler):
        signal.signal(signal.SIGCHLD, _ExplainedHandler(handler))


class _ExplainedHandler:
    """A signal handler whose RuntimeError about a lost worker becomes a DataError."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            explanation = explain_lost_worker(error)
            if explanation is None:
                raise
            raise DataError(explanation, kind="worker") from error


def explain_lost_worker(error: BaseException, *, status: int | None = None) -> str | None:
    """One sentence if `error` is how a dead loader worker shows, else None.

    torch raises a RuntimeError, or the connection breaks while a batch is being received. What the
    system refuses to the main process itself (descriptors, threads, processes, memory) is explained
    as well.

    Args:
        error: what was raised.
        status: exit status of the worker; by default the one that the error names, if any.
    """
    exhausted = explain_exhaustion(error)
    if exhausted is not None:
        return f"{exhausted}, or lower data.workers, and resume"

    is_broken_link = isinstance(error, (ConnectionError, EOFError))
    if not is_broken_link and "DataLoader worker (pid" not in str(error):
        return None
    named = re.search(r"exit code (\d+)", str(error))
    if status is None and named is not None:
        status = int(named[1])
    reason = _REASONS.get(
        status or 0,
        "killed from outside or for want of memory (in containers often of /dev/shm); lower "
        "data.workers or data.batch_size, or enlarge the memory, and resume",
    )
    return (
        f"a data loader worker was lost, {reason.format(size=_size_of_shared_memory())} "
        f"({type(error).__name__}: {' '.join(str(error).split())})"
    )


def _size_of_shared_memory() -> str:
    """ " of N MiB" for the file system through which batches travel, as far as it can be told."""
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return ""
    return f" of {status.f_frsize * status.f_blocks >> 20} MiB"


def _begin_worker(_: int, *, main: int) -> None:
    """Prepare a worker process: one thread, and no answer to signals meant for the main process."""
    # What a forked worker inherits it never collects: pages stay shared with the main process, and
    # no loader that is garbage there is shut down from here.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_only_for(main)
    # The thread that sends batches would drop one that it cannot send, with a traceback, and the
    # main process would wait for it for ever.
    queue_type: Any = multiprocessing.queues.Queue
    queue_type._on_queue_feeder_error = staticmethod(_end_without_batch)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_without_batch(error: BaseException, _: Any) -> None:
    """End this worker because a batch cannot be handed over.

    torch notices the end of a worker, and its exit status says why: shared memory and descriptors
    are what a batch needs on its way.
    """
    status = _NOT_SENT
    if "Too many open files" in str(error):
        status = _NO_DESCRIPTORS
    elif "shared memory" in str(error) or "No space left" in str(error):
        status = _NO_SHARED_MEMORY
    os._exit(status)


def _end_only_for(main: int) -> None:
    """Let SIGTERM end this process only if process `main` sent it.

    One to the whole process group is the main process's to answer: it needs its workers to finish
    the step and save. Ignoring all of them would leave it waiting for its workers when it ends by
    an exception.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_await_end, args=(main,), daemon=True).start()


def _await_end(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)


def _end_workers() -> None:
    """End all daemon children at exit.

    Else torch waits seconds for each worker of a loader that the traceback of an exception keeps
    alive.
    """
    # torch's handler would tell of the very ends that are caused here.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:  # as multiprocessing itself is about to do
            child.terminate()
