"""Which samples an epoch holds and in which order.

A pure function of (seed, epoch), cut into batches by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import DataError

FINE, EXTRA = 0, 1

# One sample: index of the image in its source's files, the source, the class it was drawn for (-1:
# none) and the pixel its crop must show (-1: none).
ENTRY = np.dtype(
    [
        ("image", np.int32),
        ("source", np.int8),
        ("class", np.int16),
        ("y", np.int32),
        ("x", np.int32),
    ]
)


class ClassPools(Protocol):
    """What a plan asks of a class index: the places where each class occurs."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    def pool(self, class_id: int) -> np.ndarray:
        """Structured array with the fields image, y and x."""


@dataclass(frozen=True)
class ExtraPlan:
    """How images with coarse or automatic labels join.

    Attributes:
        files_count: how many there are.
        class_index: where their classes occur.
        mode: "mixture": of an epoch all but the share `probability` comes from them. "boost": their
            places join the pools of `boost_classes`, so that they are reached through class-uniform
            draws of those classes alone (the mode of the authors' code).
        probability: share of the fine images, with "mixture".
        boost_classes: train ids, with "boost".
    """

    files_count: int
    class_index: ClassPools | None = None
    mode: str = "mixture"
    probability: float = 0.5
    boost_classes: Sequence[int] = ()


class EpochPlan:
    """The samples of every epoch.

    An epoch has `length` entries, of which `fraction` are drawn class-uniformly: int(length *
    fraction / C) for each of the C classes, as in the authors' code (docs/release_notes.md,
    class-uniform sampling). The places of a class are walked through in a shuffled order that
    begins anew when it ends, so that numbers of visits differ by one at most. The share of classes
    without any place goes to the others in equal parts. All other entries walk through the shuffled
    images in the same way. At last the whole epoch is shuffled.
    """

    def __init__(
        self,
        files_count: int,
        class_index: ClassPools | None = None,
        fraction: float = 0.0,
        *,
        extra: ExtraPlan | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        """Check that such a plan can be drawn.

        Args:
            files_count: how many fine images there are.
            class_index: where their classes occur.
            fraction: part of an epoch that is drawn class-uniformly.
            extra: images with coarse or automatic labels.
            seed: of all random numbers.
            length: samples of an epoch; by default as many as there are fine images.

        Raises:
            DataError: the plan cannot be drawn.
        """
        self.length = files_count
        if length is not None:
            self.length = length
        self.files_count = files_count
        self.class_index = class_index
        self.fraction = fraction
        self.extra = extra
        self.seed = seed
        _require_possible(self)

    def entries(self, epoch: int) -> np.ndarray:
        """The samples of `epoch` in order, ENTRY [length]."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch))))

        if self.extra is None or self.extra.mode == "boost":
            drawn = self._draw(rng, epoch, source=FINE, length=self.length)
        else:
            fine = round(self.length * self.extra.probability)
            parts = [
                self._draw(rng, epoch, source=FINE, length=fine),
                self._draw(rng, epoch, source=EXTRA, length=self.length - fine),
            ]
            drawn = np.concatenate(parts)
        return drawn[rng.permutation(self.length)]

    def _draw(
        self, rng: np.random.Generator, epoch: int, *, source: int, length: int
    ) -> np.ndarray:
        """`length` samples of one source: its class-uniform part, then images in shuffled order."""
        index, count = self.class_index, self.files_count
        if source == EXTRA:
            assert self.extra is not None
            index, count = self.extra.class_index, self.extra.files_count

        # The class-uniform part: each class takes its quota from the places where it occurs.
        pools: list[np.ndarray] = []
        if index is not None and self.fraction > 0:
            pools = self._pools(index, source)
        quotas = class_quotas(
            length, fraction=self.fraction, pool_sizes=[len(pool) for pool in pools], epoch=epoch
        )
        uniform = [
            pool[_walk(rng, len(pool), quota)]
            for pool, quota in zip(pools, quotas, strict=True)
            if quota
        ]

        # The rest shows whole images, without a class or pixel of their own.
        images = np.full(length - sum(quotas), -1, dtype=ENTRY)
        images["image"] = _walk(rng, count, len(images))
        images["source"] = source
        return np.concatenate([*uniform, images])

    def _pools(self, index: ClassPools, source: int) -> list[np.ndarray]:
        """The places of each class as entries; boosted classes have those of the extra images."""
        boosted: ClassPools | None = None
        if self.extra is not None and self.extra.mode == "boost":
            boosted = self.extra.class_index

        pools = []
        for class_id in range(index.num_classes):
            pool = _as_entries(index.pool(class_id), source=source, class_id=class_id)
            if boosted is not None and self.extra and class_id in self.extra.boost_classes:
                more = _as_entries(boosted.pool(class_id), source=EXTRA, class_id=class_id)
                pool = np.concatenate([pool, more])
            pools.append(pool)
        return pools


def class_quotas(
    length: int, *, fraction: float, pool_sizes: Sequence[int], epoch: int
) -> list[int]:
    """How many samples each class gets of an epoch.

    That is int(length * fraction / C), and none for classes without a place. The places of these
    are shared out equally among the others; what does not divide goes to some of them, to others
    each epoch.

    Args:
        length: samples of the epoch.
        fraction: part of it that is drawn class-uniformly.
        pool_sizes: number of places of each of the C classes.
        epoch: number of the epoch.
    """
    if not pool_sizes:
        return []

    total = int(length * fraction / len(pool_sizes)) * len(pool_sizes)
    quotas = [0] * len(pool_sizes)
    present = [class_id for class_id, size in enumerate(pool_sizes) if size]
    if present:
        each, rest = divmod(total, len(present))
        for class_id in present:
            quotas[class_id] = each
        # The classes that get one more move on from epoch to epoch.
        for turn in range(rest):
            quotas[present[(epoch * rest + turn) % len(present)]] += 1
    return quotas


def global_batches(
    length: int, *, batch_size: int, rank: int, world_size: int, start_step: int = 0
) -> Iterator[range]:
    """For each step the positions in the plan that `rank` takes.

    Global batch s is [s G, (s + 1) G) with G = batch_size * world_size, of which rank r takes
    [s G + r batch_size, s G + (r + 1) batch_size). So equal global batches hold the same samples
    for any number of ranks, and beginning at `start_step` is arithmetic. `length` is a multiple of
    G.
    """
    global_size = batch_size * world_size
    assert length % global_size == 0 and 0 <= rank < world_size
    for step in range(start_step, length // global_size):
        first = step * global_size + rank * batch_size
        yield range(first, first + batch_size)


def plan_length(files_count: int, *, samples_per_step: int) -> int:
    """As many samples as there are images, less what does not fill a step; a step at least.

    So every rank takes equally many, and no sample is lost. Which images fall to the remainder
    changes from epoch to epoch, as the walk is shuffled anew.
    """
    return max(1, files_count // samples_per_step) * samples_per_step


def _walk(rng: np.random.Generator, size: int, steps: int) -> np.ndarray:
    """`steps` indices below `size`, int64: shuffled orders one after the other.

    So visits to two indices differ by one at most.
    """
    rounds = 0
    if steps:
        rounds = (steps + size - 1) // size
    orders = [rng.permutation(size) for _ in range(rounds)]
    return np.concatenate([np.empty(0, dtype=np.int64), *orders])[:steps]


def _as_entries(places: np.ndarray, *, source: int, class_id: int) -> np.ndarray:
    """Places of a class index as ENTRY."""
    entries = np.empty(len(places), dtype=ENTRY)
    entries["image"], entries["y"], entries["x"] = places["image"], places["y"], places["x"]
    entries["source"], entries["class"] = source, class_id
    return entries


def _require_possible(plan: EpochPlan) -> None:
    """DataError for a plan that cannot be drawn."""
    if not 0 <= plan.fraction <= 1:
        raise DataError(
            f"data.class_uniform.fraction must lie between 0 and 1, not {plan.fraction}"
        )
    assert plan.files_count > 0 and plan.length > 0
    if plan.fraction > 0 and plan.class_index is None:
        raise DataError(
            "data.class_uniform.fraction is above 0, which needs a class index of the labels"
        )
    if plan.extra is not None:
        _require_possible_extra(plan.extra, plan.fraction)


def _require_possible_extra(extra: ExtraPlan, fraction: float) -> None:
    if extra.mode not in ("mixture", "boost"):
        raise DataError(f"data.extra.mode must be mixture or boost, not '{extra.mode}'")
    if extra.mode == "mixture" and not 0 <= extra.probability <= 1:
        raise DataError(f"data.extra.probability must lie between 0 and 1, not {extra.probability}")

    has_pools = fraction > 0 and extra.class_index is not None and len(extra.boost_classes) > 0
    if extra.mode == "boost" and not has_pools:
        raise DataError(
            "data.extra.mode boost reaches extra images through class-uniform draws only: set "
            "data.class_uniform.fraction and data.extra.boost_classes, or take data.extra.mode "
            "mixture"
        )
    if fraction > 0 and extra.class_index is None:
        raise DataError(
            "data.class_uniform.fraction is above 0, which needs a class index of the extra labels "
            "too"
        )
