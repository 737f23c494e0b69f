"""Epoch plans: exact quotas, constant length, the same global batches for any number of ranks,
nothing lost between them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa.datasets import DataError, EpochPlan, ExtraPlan
from hmsa.datasets.sampling.class_uniform import PLACE
from hmsa.datasets.sampling.plan import EXTRA, FINE, class_quotas, global_batches, plan_length


@dataclass
class Pools:
    """A class index with pools of given sizes; image numbers tell the class apart."""

    sizes: list[int]
    first: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.sizes)

    def pool(self, class_id: int) -> np.ndarray:
        places = np.zeros(self.sizes[class_id], dtype=PLACE)
        places["image"] = self.first + np.arange(len(places))
        places["y"], places["x"] = class_id, np.arange(len(places))
        return places


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    """Asked in any order, from another object; other seeds and epochs give other orders."""
    first, second = (EpochPlan(50, Pools([5, 7, 0]), 0.5, seed=3) for _ in range(2))
    late = first.entries(9)
    assert np.array_equal(first.entries(2), second.entries(2)) and np.array_equal(
        second.entries(9), late
    )
    assert not np.array_equal(first.entries(2), late)
    assert not np.array_equal(
        first.entries(2), EpochPlan(50, Pools([5, 7, 0]), 0.5, seed=4).entries(2)
    )


def test_without_class_uniform_sampling_every_image_comes_once() -> None:
    """In an order of its own each epoch, without class or point."""
    plan = EpochPlan(31, seed=1)
    for epoch in range(3):
        entries = plan.entries(epoch)
        assert (
            sorted(entries["image"]) == list(range(31))
            and (entries["y"] == -1).all()
            and (entries["class"] == -1).all()
        )
        assert (entries["source"] == FINE).all()
    assert EpochPlan(3, length=8).entries(0)["image"].tolist().count(0) in (
        2,
        3,
    )  # wraps round, evenly


@given(
    files=st.integers(1, 400),
    sizes=st.lists(st.sampled_from([0, 0, 1, 2, 9, 300]), min_size=1, max_size=20),
    fraction=st.floats(0, 1),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 9),
)
def test_quotas_are_exact(
    files: int, sizes: list[int], fraction: float, epoch: int, seed: int
) -> None:
    """int(N f / C) for each class; the share of absent classes spread equally over the others; the
    rest random; always N in all.
    """
    entries = EpochPlan(files, Pools(sizes), fraction, seed=seed).entries(epoch)
    assert len(entries) == files
    counts = np.bincount(entries["class"][entries["class"] >= 0], minlength=len(sizes))
    present = np.array(sizes) > 0
    share = int(files * fraction / len(sizes))
    assert (counts[~present] == 0).all()
    if present.all():
        assert (counts == share).all()
    elif present.any():
        assert counts.sum() == share * len(sizes) and np.ptp(counts[present]) <= 1
    visited = entries[entries["class"] >= 0]
    assert (visited["y"] == visited["class"]).all()  # from the class's own pool
    for class_id in np.flatnonzero(counts):
        visits = np.bincount(visited[visited["class"] == class_id]["x"], minlength=sizes[class_id])
        assert np.ptp(visits) <= 1
    images = np.bincount(entries["image"][entries["class"] < 0], minlength=files)
    assert np.ptp(images) <= 1 and (entries["y"][entries["class"] < 0] == -1).all()


def test_what_does_not_divide_goes_round() -> None:
    """Over the epochs every present class gets equally much of the absent classes' share."""
    total = np.sum(
        [
            class_quotas(1000, fraction=0.5, pool_sizes=[3, 0, 3, 3, 0, 3, 3], epoch=epoch)
            for epoch in range(5)
        ],
        axis=0,
    )
    share = int(1000 * 0.5 / 7)
    assert total.tolist() == [share * 7, 0, share * 7, share * 7, 0, share * 7, share * 7]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("files", [5, 24, 100, 367])
def test_the_union_over_ranks_is_the_plan(world_size: int, files: int) -> None:
    """Every position once over all ranks and steps; equally many steps on each."""
    length = plan_length(files, samples_per_step=2 * world_size)
    ranks = [
        list(global_batches(length, batch_size=2, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(steps) for steps in ranks}) == 1 and len(ranks[0]) == max(
        1, files // (2 * world_size)
    )
    positions = [position for steps in ranks for step in steps for position in step]
    assert (
        sorted(positions) == list(range(length))
        and len(EpochPlan(files, length=length).entries(0)) == length
    )
    assert files - 2 * world_size < length <= max(files, 2 * world_size)


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    """A global batch of 12 from 1, 2, 3, 4 ranks, or from accumulated micro-batches, is the same
    set of samples.
    """
    length = plan_length(100, samples_per_step=12)
    for world_size, accumulate in ((1, 1), (2, 1), (3, 1), (4, 1), (2, 3), (1, 4)):
        batch = 12 // world_size // accumulate
        assert plan_length(100, samples_per_step=batch * world_size * accumulate) == length
        ranks = [
            list(global_batches(length, batch_size=batch, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for step in range(length // 12):
            micro = range(step * accumulate, (step + 1) * accumulate)
            taken = {position for steps in ranks for number in micro for position in steps[number]}
            assert taken == set(range(12 * step, 12 * step + 12))


def test_beginning_in_mid_epoch_is_arithmetic() -> None:
    """The steps from k on."""
    steps = list(global_batches(60, batch_size=2, rank=1, world_size=3))
    for start in (0, 1, 7, 10):
        assert (
            list(global_batches(60, batch_size=2, rank=1, world_size=3, start_step=start))
            == steps[start:]
        )


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_mixture_has_exact_shares(probability: float) -> None:
    """The share p is fine, the rest extra, each with its own class-uniform part; class pools stay
    apart.
    """
    extra = ExtraPlan(500, Pools([50, 0, 60], first=1000), mode="mixture", probability=probability)
    entries = EpochPlan(200, Pools([5, 6, 0]), 0.5, extra=extra, seed=2).entries(4)
    assert len(entries) == 200
    for source, length in (
        (FINE, round(200 * probability)),
        (EXTRA, 200 - round(200 * probability)),
    ):
        mine = entries[entries["source"] == source]
        assert len(mine) == length
        classes = Counter(mine["class"][mine["class"] >= 0].tolist())
        absent = 2 if source == FINE else 1
        assert sum(classes.values()) == int(length * 0.5 / 3) * 3 and absent not in classes
        assert (mine["image"][mine["class"] >= 0] >= 1000).all() == (source == EXTRA) or not classes


def test_mixture_without_class_uniform_sampling() -> None:
    """The paper's draw alone."""
    entries = EpochPlan(100, extra=ExtraPlan(1000, probability=0.5), seed=2).entries(0)
    assert (
        Counter(entries["source"].tolist()) == {FINE: 50, EXTRA: 50}
        and len(np.unique(entries["image"][entries["source"] == EXTRA])) == 50
    )


def test_boost_reaches_extra_images_through_boosted_classes_alone() -> None:
    """The release's mode: the pools are joined and walked through evenly; the random part and other
    classes stay fine; the length stays.
    """
    extra = ExtraPlan(500, Pools([50, 30, 60], first=1000), mode="boost", boost_classes=(1,))
    entries = EpochPlan(240, Pools([5, 10, 8]), 0.5, extra=extra, seed=2).entries(1)
    boosted = entries["class"] == 1
    assert len(entries) == 240 and boosted.sum() == 40
    assert (entries["source"][~boosted] == FINE).all()
    assert Counter(entries["source"][boosted].tolist()) == {FINE: 10, EXTRA: 30}
    assert (entries["image"][boosted & (entries["source"] == EXTRA)] >= 1000).all()


def test_a_class_that_only_the_extra_source_has_is_no_absent_class_when_boosted() -> None:
    """It gets its own quota."""
    extra = ExtraPlan(500, Pools([50, 30], first=1000), mode="boost", boost_classes=(1,))
    entries = EpochPlan(40, Pools([5, 0]), 1.0, extra=extra).entries(0)
    assert (
        Counter(entries["class"].tolist()) == {0: 20, 1: 20}
        and (entries["source"] == (entries["class"] == 1)).all()
    )


def test_impossible_plans_are_refused() -> None:
    """One sentence each."""
    with pytest.raises(
        DataError, match=r"data\.class_uniform\.fraction must lie between 0 and 1, not 1\.5"
    ):
        EpochPlan(5, Pools([1]), 1.5)
    with pytest.raises(DataError, match="needs a class index of the labels"):
        EpochPlan(5, None, 0.5)
    with pytest.raises(DataError, match="needs a class index of the extra labels"):
        EpochPlan(5, Pools([1]), 0.5, extra=ExtraPlan(5))
    with pytest.raises(DataError, match=r"data\.extra\.mode must be mixture or boost, not 'add'"):
        EpochPlan(5, extra=ExtraPlan(5, mode="add"))
    with pytest.raises(
        DataError, match=r"data\.extra\.probability must lie between 0 and 1, not -1"
    ):
        EpochPlan(5, extra=ExtraPlan(5, probability=-1))
    for plan in (
        ExtraPlan(5, Pools([1]), mode="boost"),
        ExtraPlan(5, mode="boost", boost_classes=(0,)),
    ):
        with pytest.raises(
            DataError, match="boost reaches extra images through class-uniform draws only"
        ):
            EpochPlan(5, Pools([1]), 0.5, extra=plan)
    with pytest.raises(
        DataError, match="boost reaches extra images through class-uniform draws only"
    ):
        EpochPlan(5, extra=ExtraPlan(5, Pools([1]), mode="boost", boost_classes=(0,)))
