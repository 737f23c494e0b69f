"""Reading ahead in threads: results come in order, and a failure comes in the place of its item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 2, depth: int = 4
) -> Iterator[tuple[Item, Result | Exception]]:
    """(item, function(item)) of every item, in the order of `items`.

    An exception stands where a result would, so that one bad item does not end the others.

    Args:
        function: called in `workers` threads.
        depth: how many items are at most worked on ahead of the consumer, which bounds the memory.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        # Submitting stops at `depth`, so that decoded images do not fill the memory.
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= depth:
                yield _finished(*waiting.popleft())

        while waiting:
            yield _finished(*waiting.popleft())


def _finished(item: Item, future: Future[Any]) -> tuple[Item, Any]:
    try:
        return item, future.result()
    except Exception as error:
        return item, error
