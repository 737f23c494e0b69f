"""Batches for training, uint8 throughout.

They are the same for any number of workers, for any number of ranks with an equal global batch, and
after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..augment.augmentation import (
    Augmentation,
    Photometric,
    apply_draws,
    draw_geometry,
    draw_photometric,
    sample_generator,
)
from ..errors import DataError
from ..files import Files
from ..reading.cache import DecodedCache, build_cache
from ..sampling.class_uniform import ClassIndex, build_class_index
from ..sampling.plan import EXTRA, EpochPlan, ExtraPlan, global_batches, plan_length
from .workers import Batch, WorkerProcesses, batches, start_loader

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ClassUniform:
    """Class-uniform sampling (docs/release_notes.md, class-uniform sampling).

    Attributes:
        fraction: part of an epoch that is drawn class by class.
        tile: side in pixels (or height and width) of the tiles in which a class counts once.
        point: which place of a tile stands for a class, as in `build_class_index`.
    """

    fraction: float = 0.5
    tile: int | tuple[int, int] = 1024
    point: str = "pixel"


@dataclass(frozen=True)
class ExtraSource:
    """Images with coarse or automatic labels beside the fine ones.

    Attributes:
        files: the images; they carry their own confidence threshold and policy.
        probability: with `mixture`, the part of every epoch that is fine; the rest comes from here.
        mode: "mixture", or "boost": places of some classes join the pools of these classes.
        boost_classes: names of these classes.
    """

    files: Files
    probability: float = 0.5
    mode: str = "mixture"
    boost_classes: Sequence[str] = ()


class SampleSource:
    """Decoded samples of one set of files, from the cache where there is one."""

    def __init__(self, files: Files, cache: DecodedCache | None = None) -> None:
        self.files = files
        self.cache = cache

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, 3] and label uint8 [H, W] of equal size; not to be written to."""
        if self.cache is not None:
            return self.cache.read(index)
        image = self.files.read_image(index)
        return image, self.files.read_label(index, image_size=(image.shape[0], image.shape[1]))

    def locate(self, index: int, point: tuple[int, int]) -> tuple[int, int]:
        """Where pixel `point` of the label file lies in what `read` returns.

        That is elsewhere if the cache holds the label smaller.
        """
        if self.cache is None:
            return point
        return self.cache.locate(index, point)


class Request(NamedTuple):
    """One entry of a plan on its way to a worker.

    The epoch travels with it, so that persistent workers never work with an old one.
    """

    epoch: int
    position: int
    source: int
    image: int
    y: int
    x: int


class TrainReader:
    """Reads and augments the samples of a batch."""

    def __init__(
        self,
        sources: list[SampleSource],
        *,
        augmentation: Augmentation,
        seed: int,
        photometric: bool,
        augment: Augment | None = None,
    ) -> None:
        self.sources = sources
        self.augmentation = augmentation
        self.seed = seed
        self.photometric = photometric
        self.augment = augment
        self.fine_count = len(sources[0].files)

    def read(self, requests: list[Request]) -> Batch:
        """The batch as described in TrainLoader.epoch."""
        # Samples are written straight into the batch, so nothing is copied afterwards.
        count, (height, width) = len(requests), self.augmentation.crop
        image = np.empty((count, height, width, 3), dtype=np.uint8)
        label = np.empty((count, height, width), dtype=np.uint8)
        region = torch.empty((count, 4), dtype=torch.int64)
        for slot, request in enumerate(requests):
            region[slot] = torch.tensor(self._write_sample(request, (image[slot], label[slot])))

        return {
            "image": torch.from_numpy(image).permute(0, 3, 1, 2),
            "label": torch.from_numpy(label),
            "index": torch.tensor(
                [item.image + self.fine_count * (item.source == EXTRA) for item in requests]
            ),
            "position": torch.tensor([item.position for item in requests]),
            "region": region,
            "names": [self.sources[item.source].files.name(item.image) for item in requests],
        }

    def _write_sample(
        self, request: Request, results: tuple[np.ndarray, np.ndarray]
    ) -> tuple[int, int, int, int]:
        """Augment into a slot of the batch; returns the part of it that is not padding."""
        source = self.sources[request.source]
        image, label = source.read(request.image)
        point = None
        if request.y >= 0:
            point = source.locate(request.image, (request.y, request.x))

        # Both are drawn always and in this order, so that the device can repeat the first.
        rng = sample_generator(self.seed, request.epoch, request.position)
        strengths: Photometric | None = draw_photometric(self.augmentation, rng)
        geometry = draw_geometry(
            (image.shape[0], image.shape[1]), augmentation=self.augmentation, rng=rng, point=point
        )
        if not self.photometric:
            strengths = None

        apply_draws(
            image,
            label,
            results,
            geometry=geometry,
            strengths=strengths,
            augmentation=self.augmentation,
            ignore_label=source.files.spec.ignore_label,
        )

        # The caller's own changes come last, and draw from the same generator after its ten draws.
        if self.augment is not None:
            changed = self.augment(results[0], results[1], rng)
            for result, part in zip(results, changed, strict=True):
                result[...] = part
        return geometry.region(self.augmentation.crop)

    def describe(self, requests: list[Request]) -> str:
        """The images asked for."""
        return ", ".join(
            str(self.sources[item.source].files.image_path(item.image)) for item in requests
        )


class TrainLoader:
    """Training batches of one rank, epoch by epoch, from workers that live on between epochs."""

    def __init__(
        self,
        reader: TrainReader,
        plan: EpochPlan,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        processes: WorkerProcesses,
    ) -> None:
        self.plan = plan
        self._steps = _Steps(plan, batch_size=batch_size, rank=rank, world_size=world_size)
        self._reader = reader
        self._processes = processes
        self._loader: DataLoader[Any] | None = None
        self._next_epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the next epoch: 0 in the first loop over the loader, 1 in the second."""
        return self.epoch(self._next_epoch)

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank and in every epoch."""
        return len(self._steps)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from step `start_step` on, as if it had never been interrupted.

        A batch holds
        - `image` uint8 [N, 3, h, w], channels-last in memory,
        - `label` uint8 [N, h, w],
        - `index` int64 [N]: of the image among the fine files, or fine count + index among the
          extra ones,
        - `position` int64 [N] in the epoch's plan,
        - `region` int64 [N, 4]: top, bottom, left, right of what is not padding,
        - `names`, a list of N texts.
        """
        assert 0 <= start_step <= len(self)
        self._steps.epoch, self._steps.start_step = epoch, start_step
        if self._loader is None:
            self._loader = start_loader(self._reader, self._steps, self._processes)
        self._next_epoch = epoch + 1
        yield from batches(self._loader)

    def close(self) -> None:
        """End the workers; a later `epoch` starts new ones."""
        self._loader = None


class _Steps:
    """What torch's loader asks for the requests of each step of the epoch that is set."""

    def __init__(self, plan: EpochPlan, *, batch_size: int, rank: int, world_size: int) -> None:
        self.plan = plan
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = self.start_step = 0

    def __len__(self) -> int:
        return self.plan.length // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Request]]:
        epoch, entries = self.epoch, self.plan.entries(self.epoch)
        steps = global_batches(
            self.plan.length,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            start_step=self.start_step,
        )
        for positions in steps:
            yield [_request(epoch, position, entries[position]) for position in positions]


def _request(epoch: int, position: int, entry: np.void) -> Request:
    # Plain integers: numpy's would be pickled with their type, at ten times the size.
    return Request(
        epoch, position, int(entry["source"]), int(entry["image"]), int(entry["y"]), int(entry["x"])
    )


def build_train_loader(
    files: Files,
    *,
    augmentation: Augmentation,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    class_uniform: ClassUniform | None = None,
    extra: ExtraSource | None = None,
    cache: str = "none",
    cache_dir: str | Path | None = None,
    photometric: bool = True,
    augment: Augment | None = None,
    prefetch: int = 2,
    pin_memory: bool | None = None,
) -> TrainLoader:
    """The training loader of one rank.

    An epoch has len(files) samples less what does not fill a step of batch_size * world_size *
    accumulate: with that product equal, every global batch is the same for any number of ranks.

    Args:
        files: the fine images and labels.
        augmentation: ranges of what is drawn for each sample.
        batch_size: samples of one rank in one forward pass.
        workers: processes that read; 0: the main process does.
        seed: of all random numbers.
        rank: which share is this loader's.
        world_size: number of ranks.
        accumulate: forward passes of one step.
        class_uniform: class-uniform sampling; its index is built, or found in `cache_dir`.
        extra: images with coarse or automatic labels.
        cache: kind of decoded cache, as in `build_cache`.
        cache_dir: where index and cache lie.
        photometric: whether workers change colour and blur; False leaves both to
            `augment_on_device`.
        augment: a function of (image uint8 [h, w, 3], label uint8 [h, w], generator) that returns
            both of the same size, applied to each finished crop; the generator is the sample's own.
        prefetch: batches that each worker prepares ahead.
        pin_memory: whether batches lie in pinned memory; None: where there is a GPU.

    Raises:
        DataError: no labels, no images, an impossible plan, a cache that cannot be written.
    """
    parts = [files]
    if extra is not None:
        parts.append(extra.files)
    _require_usable(parts)

    plan = _build_plan(
        files,
        class_uniform,
        extra,
        seed=seed,
        workers=workers,
        cache_dir=cache_dir,
        length=plan_length(len(files), samples_per_step=batch_size * world_size * accumulate),
    )

    # The cache of the fine images and that of the extra ones are apart.
    sources = []
    for part in parts:
        decoded = build_cache(
            part,
            kind=cache,
            cache_dir=cache_dir,
            long_edge=augmentation.long_edge,
            workers=workers,
        )
        sources.append(SampleSource(part, decoded))

    reader = TrainReader(
        sources, augmentation=augmentation, seed=seed, photometric=photometric, augment=augment
    )
    processes = WorkerProcesses(
        workers=workers, prefetch=prefetch, persistent=True, pin_memory=pin_memory
    )
    return TrainLoader(
        reader,
        plan,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        processes=processes,
    )


def _require_usable(parts: Sequence[Files]) -> None:
    """DataError unless all have labels and images, and the same classes as the first."""
    for part in parts:
        part.require_labels()
        if not len(part):
            raise DataError(f"split '{part.split}' in {part.root} has no images")
        if part.spec != parts[0].spec:
            raise DataError(
                f"data.extra has the classes of {part.spec.name}, not those of "
                f"{parts[0].spec.name}: they cannot be mixed"
            )


def _build_plan(
    files: Files,
    class_uniform: ClassUniform | None,
    extra: ExtraSource | None,
    *,
    seed: int,
    length: int,
    workers: int,
    cache_dir: str | Path | None,
) -> EpochPlan:
    """The plan of all epochs, with the class indices that it needs."""
    fraction = 0.0
    if class_uniform is not None:
        fraction = class_uniform.fraction

    def class_index(part: Files) -> ClassIndex | None:
        if class_uniform is None or fraction <= 0:
            return None
        return build_class_index(
            part,
            tile=class_uniform.tile,
            point=class_uniform.point,
            cache_dir=cache_dir,
            workers=max(1, workers),
        )

    own_index = class_index(files)
    extra_plan = None
    if extra is not None:
        extra_plan = ExtraPlan(
            len(extra.files),
            class_index(extra.files),
            mode=extra.mode,
            probability=extra.probability,
            boost_classes=tuple(files.spec.index_of(name) for name in extra.boost_classes),
        )
    return EpochPlan(len(files), own_index, fraction, extra=extra_plan, seed=seed, length=length)
