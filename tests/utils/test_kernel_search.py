"""cuDNN searches for kernels where sizes repeat, and never where a run has switched that off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hmsa.utils.runtime import KernelSearch


@pytest.fixture(autouse=True)
def _setting() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def searched(sizes: list[tuple[int, int]], *, in_parts: bool = False) -> list[bool]:
    """For each image of these sizes, whether kernels may be searched for."""
    search, found = KernelSearch(), []
    for size in sizes:
        with search.for_size(size, in_parts=in_parts):
            found.append(torch.backends.cudnn.benchmark)
    return found


def test_a_size_must_come_again_and_again() -> None:
    torch.backends.cudnn.benchmark = True
    assert searched([(number, 64) for number in range(5)]) == [False] * 5
    assert searched([(8, 64)] * 4) == [False, False, True, True]
    assert torch.backends.cudnn.benchmark, "a training goes on as it was"


def test_parts_of_images_have_new_sizes_every_time() -> None:
    torch.backends.cudnn.benchmark = True
    assert searched([(8, 64)] * 4, in_parts=True) == [False] * 4


def test_a_deterministic_run_never_searches() -> None:
    torch.backends.cudnn.benchmark = False
    assert searched([(8, 64)] * 4) == [False] * 4
    assert not torch.backends.cudnn.benchmark


def test_an_error_inside_leaves_the_setting_alone() -> None:
    torch.backends.cudnn.benchmark = True
    with pytest.raises(MemoryError), KernelSearch().for_size((8, 64)):
        raise MemoryError
    assert torch.backends.cudnn.benchmark
