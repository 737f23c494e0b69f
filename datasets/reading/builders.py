"""Processes that derive something from each image, for caches.

Every wait here has an end: the death of a process is noticed at once and named, and no process
outlives the one that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from ..errors import DataError
from ..exhaustion import exhaustion_explained, require_descriptors

Result = TypeVar("Result")

_FEW_IMAGES = 32  # starting a process costs as much as this many images
_LARGEST_CHUNK = 16  # images that a process is given at once
_CHUNKS_AHEAD = 4  # how many chunks for each process may be ready before their turn
_FILES_OF_A_PROCESS = 4
_FILES_BESIDE = 16
_SECONDS_TO_END = 5.0


def spread(
    task: Callable[[int], Result], indices: Sequence[int], *, workers: int, title: str
) -> Iterable[Result]:
    """task(index) for each index, in order, in `workers` processes, with a progress bar.

    The processes are forked where the system can, so that `task` may be bound to large arrays
    without sending them. An error in one of them arrives here.

    Raises:
        DataError: a process ended before its work was done, or cannot be started.
    """
    with tqdm(total=len(indices), desc=title, unit="image", disable=None, leave=False) as bar:
        if workers <= 1 or len(indices) < _FEW_IMAGES:
            for index in indices:
                yield task(index)
                bar.update()
            return

        chunk = max(1, min(_LARGEST_CHUNK, len(indices) // (4 * workers)))
        chunks = [indices[first : first + chunk] for first in range(0, len(indices), chunk)]
        for results in _in_processes(task, chunks, workers=workers, title=title):
            for result in results:
                yield result
                bar.update()


def _in_processes(
    task: Callable[[int], Result], chunks: Sequence[Sequence[int]], *, workers: int, title: str
) -> Iterator[list[Result]]:
    """The results of each chunk, in order."""
    require_descriptors(workers * _FILES_OF_A_PROCESS + _FILES_BESIDE, what=f"processes ({title})")
    links: dict[Connection, BaseProcess] = {}
    try:
        _start(task, workers, links)
        idle = list(links)
        ready: dict[int, list[Result]] = {}
        begun = 0
        for number in range(len(chunks)):
            while number not in ready:
                # What is ready before its turn waits in memory, so it is not let run far ahead.
                limit = min(len(chunks), number + _CHUNKS_AHEAD * workers)
                while idle and begun < limit:
                    _send(idle.pop(), links, (begun, chunks[begun]), title)
                    begun += 1
                for link in _answering(links, idle, title):
                    done, results = _receive(link, links, title)
                    ready[done] = results
                    idle.append(link)
            yield ready.pop(number)
    finally:
        _end(links)


def _start(task: Callable[[int], Any], workers: int, links: dict[Connection, BaseProcess]) -> None:
    """Start the processes, and enter each under the pipe that leads to it."""
    context = multiprocessing.get_context()
    with exhaustion_explained():
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(task, there), daemon=True)
            process.start()
            there.close()
            links[here] = process


def _send(link: Connection, links: dict[Connection, BaseProcess], work: Any, title: str) -> None:
    try:
        link.send(work)
    except OSError as error:
        raise _lost(links[link], title) from error


def _answering(
    links: dict[Connection, BaseProcess], idle: list[Connection], title: str
) -> list[Connection]:
    """The pipes on which something has come; waits until there is one, or a process has ended."""
    processes = {process.sentinel: process for process in links.values()}
    busy = [link for link in links if link not in idle]
    found = wait([*busy, *processes])

    answering = [link for link in busy if link in found]
    if not answering:
        ended = next(processes[sentinel] for sentinel in found if sentinel in processes)
        raise _lost(ended, title)
    return answering


def _receive(link: Connection, links: dict[Connection, BaseProcess], title: str) -> Any:
    """Number and results of a finished chunk; an error in the process is raised here."""
    try:
        error, answer = link.recv()
    except (OSError, EOFError) as broken:
        raise _lost(links[link], title) from broken
    if error is not None:
        raise error
    return answer


def _lost(process: BaseProcess, title: str) -> DataError:
    """The error that names a process and how it ended."""
    process.join(_SECONDS_TO_END)
    status = process.exitcode
    how = f"ended with status {status}"
    if status is not None and status < 0:
        how = f"was killed by signal {-status} ({_signal_name(-status)})"
    return DataError(
        f"{title}: process {process.pid} {how}, most often for want of memory; lower data.workers "
        "or free memory, and start again",
        kind="worker",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _end(links: dict[Connection, BaseProcess]) -> None:
    """End all processes, whatever they are doing."""
    for link, process in links.items():
        link.close()
        process.terminate()
    for process in links.values():
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(task: Callable[[int], Any], link: Connection) -> None:
    """What a process does: chunks come, their results go, until the pipe is closed."""
    # The main process answers an interrupt, and ends this one. Its handlers are not for here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    while True:
        try:
            number, indices = link.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, Any] = (None, (number, [task(index) for index in indices]))
        except Exception as error:
            answer = (_sendable(error), None)
        link.send(answer)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, with its traceback unless it is a user's, as something that a pipe can carry."""
    if isinstance(error, DataError):
        return error
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in another process:\n{text}")
        multiprocessing.reduction.ForkingPickler.dumps(error)
    except Exception:
        return RuntimeError(f"in another process:\n{text}")
    return error
