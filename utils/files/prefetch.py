"""Reading ahead in threads, in order, with bounded memory; a failure arrives in its item's place instead of ending the rest."""

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
    """(item, function(item)) in the order of `items`, at most `depth` ahead of the consumer; an exception stands where a result would."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    iterator = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        for item in iterator:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= depth:
                yield _settle(*waiting.popleft())
        while waiting:
            yield _settle(*waiting.popleft())


def _settle(item: Item, future: Future[Any]) -> tuple[Item, Any]:
    try:
        return item, future.result()
    except Exception as error:
        return item, error
