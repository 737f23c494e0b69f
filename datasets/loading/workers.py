"""Loader processes.

Each has one thread, ignores the signals that are meant for the main process, ends with it, and
hands over what went wrong.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError

Batch = dict[str, Any]


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

    # torch refuses these options where there are no workers.
    for_workers: dict[str, Any] = {}
    if processes.workers > 0:
        for_workers = {
            "persistent_workers": processes.persistent,
            "prefetch_factor": processes.prefetch,
            "worker_init_fn": partial(_begin_worker, main=os.getpid()),
        }
    return DataLoader(
        _BatchDataset(reader),
        batch_sampler=steps,
        num_workers=processes.workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        **for_workers,
    )


def batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        DataError: a file is at fault, or a worker was lost.
    """
    with _lost_worker_explained():
        iterator = iter(loader)
        if loader.num_workers:
            # Exit handlers run in reverse order, and starting the workers may have registered one
            # of torch's.
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)
        for batch in iterator:
            if isinstance(batch, DataError):
                raise batch
            yield batch


@contextmanager
def _lost_worker_explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        explanation = explain_lost_worker(error)
        if explanation is not None:
            raise DataError(explanation, kind="worker") from error
        raise


def explain_lost_worker(error: BaseException) -> str | None:
    """One sentence if `error` is how a dead loader worker shows, else None.

    torch notices by a signal and raises RuntimeError wherever the main process happens to be, in
    the middle of a step, too; or the connection breaks while a batch is being received.
    """
    is_broken_link = isinstance(error, (ConnectionError, EOFError))
    if not is_broken_link and "DataLoader worker (pid" not in str(error):
        return None
    return (
        "a data loader worker was lost, killed from outside or for want of memory (in containers "
        "often of /dev/shm); lower data.workers or data.batch_size, or enlarge the memory, and "
        f"resume ({type(error).__name__}: {' '.join(str(error).split())})"
    )


def _begin_worker(_: int, *, main: int) -> None:
    """Prepare a worker process: one thread, and no answer to signals meant for the main process."""
    # What a forked worker inherits it never collects: pages stay shared with the main process, and
    # no loader that is garbage there is shut down from here.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_only_for(main)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


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
    for child in multiprocessing.active_children():
        if child.daemon:  # as multiprocessing itself is about to do
            child.terminate()
