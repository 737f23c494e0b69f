"""Loader processes: one thread each, deaf to signals meant for the main process, gone when it goes, and telling it what went wrong."""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401  (its exit handler must be registered before ours: they run in reverse order)
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from .errors import DataError

Batch = dict[str, Any]


class BatchReader(Protocol):
    """Makes the batch that a list of requests asks for; what goes over to the workers."""

    def read(self, requests: list[Any]) -> Batch:
        """The batch; DataError if a file is at fault."""

    def describe(self, requests: list[Any]) -> str:
        """The files the requests are about, for messages."""


class _Reading(Dataset[Any]):
    """A BatchReader as torch's loader wants it: a whole batch at a time, a user's error as a value instead of a traceback."""

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


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Processes:
    """How many `workers` (0: the main process reads), how many batches each prepares ahead at most, whether they outlive an epoch, and whether
    batches go to pinned memory (None: where there is a GPU)."""

    workers: int
    prefetch: int
    persistent: bool
    pin_memory: bool | None


def start_loader(reader: BatchReader, steps: Any, processes: Processes) -> DataLoader[Any]:
    """torch's DataLoader over `steps`, an iterable of lists of requests."""
    many = processes.workers > 0
    return DataLoader(
        _Reading(reader),
        batch_sampler=steps,
        num_workers=processes.workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available() if processes.pin_memory is None else processes.pin_memory,
        persistent_workers=processes.persistent and many,
        prefetch_factor=processes.prefetch if many else None,
        worker_init_fn=partial(_begin_worker, ending=_main_is_ending()) if many else None,
    )


def batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches, with DataError for a file at fault or a lost worker."""
    with _lost_worker_explained():
        yield from map(_require_batch, loader)


def _require_batch(batch: Batch | DataError) -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


@contextmanager
def _lost_worker_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
            raise DataError(explain_lost_worker(error), kind="worker") from error
        raise


def explain_lost_worker(error: RuntimeError) -> str:
    """One sentence for the error by which torch reports that a loader worker died; it may interrupt the main process anywhere."""
    return (
        "a data loader worker was lost, killed from outside or for want of memory (in containers often of /dev/shm); lower data.workers or "
        f"data.batch_size, or enlarge the memory, and resume ({str(error).splitlines()[0]})"
    )


def _begin_worker(_: int, *, ending: Any) -> None:
    """A signal to the process group is the main process's to answer: it needs its workers to finish the step and save (ENGINEERING 5.1)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


_ending: Any = None


def _main_is_ending() -> Any:
    """A shared byte that becomes 1 when the main process exits: from then on workers heed the SIGTERM by which multiprocessing ends them.

    Without it an exception that keeps a loader alive would leave the main process waiting for workers that ignore it.
    """
    global _ending
    if _ending is None:
        _ending = RawValue("b", 0)
        atexit.register(_tell_workers)
    return _ending


def _tell_workers() -> None:
    _ending.value = 1

