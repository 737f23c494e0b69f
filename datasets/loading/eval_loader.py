"""Batches for evaluation: whole images, every one exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..files import Files
from ..reading.decoding import resize_long_edge
from .workers import Batch, Processes, batches, start_loader


class EvalReader:
    """Reads whole images of equal size, with their labels if asked for."""

    def __init__(
        self, files: Files, *, with_label: bool, long_edge: int | None, score_native: bool
    ) -> None:
        self.files, self.with_label, self.long_edge, self.score_native = (
            files,
            with_label,
            long_edge,
            score_native,
        )

    def read(self, requests: list[int]) -> Batch:
        """The batch as described in build_eval_loader."""
        samples = [self._sample(index) for index in requests]
        batch: Batch = {
            "image": torch.from_numpy(np.stack([image for image, _ in samples])).permute(
                0, 3, 1, 2
            ),
            "index": torch.tensor(requests),
            "names": [self.files.name(index) for index in requests],
        }
        if self.with_label:
            batch["label"] = torch.from_numpy(
                np.stack([label for _, label in samples if label is not None])
            )
        return batch

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        image = self.files.read_image(index)
        label = (
            self.files.read_label(index, image_size=(image.shape[0], image.shape[1]))
            if self.with_label
            else None
        )
        if self.long_edge is None:
            return image, label
        resized, resized_label = resize_long_edge(image, label, long_edge=self.long_edge)
        return resized, label if self.score_native else resized_label

    def describe(self, requests: list[int]) -> str:
        """The images asked for."""
        return ", ".join(str(self.files.image_path(index)) for index in requests)


class EvalLoader:
    """Every image of a rank's share once, each time it is iterated over."""

    def __init__(self, reader: EvalReader, steps: list[list[int]], processes: Processes) -> None:
        self._reader, self._steps, self._processes = reader, steps, processes

    def __len__(self) -> int:
        """Batches of this rank, which may differ by one from other ranks'."""
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        return batches(start_loader(self._reader, self._steps, self._processes))


def build_eval_loader(
    files: Files,
    *,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 1,
    with_label: bool = True,
    long_edge: int | None = None,
    score_native: bool = False,
    prefetch: int = 2,
    pin_memory: bool | None = None,
) -> EvalLoader:
    """Images rank, rank + world_size, ... of `files`, each exactly once and none twice over all ranks.

    A batch holds `image` uint8 [N, 3, H, W] (channels-last in memory), `index` int64 [N], `names`, and with `with_label` `label` uint8 [N, H, W].
    Only images of equal size share a batch, whose sizes are read beforehand if `batch_size` is above 1. `long_edge` resizes images, and labels
    too unless `score_native` (Mapillary: 2177). DataError as in `files.read_image` and `files.read_label`.
    """
    if with_label:
        files.require_labels()
    mine = list(range(rank, len(files), world_size))
    steps = (
        [[index] for index in mine] if batch_size == 1 else _equal_sizes(files, mine, batch_size)
    )
    reader = EvalReader(
        files, with_label=with_label, long_edge=long_edge, score_native=score_native
    )
    if files.frames is not None:
        workers = 0  # a video decoder that the main process has used hangs in a forked one
    processes = Processes(
        workers=min(workers, len(steps)), prefetch=prefetch, persistent=False, pin_memory=pin_memory
    )
    return EvalLoader(reader, steps, processes)


def _equal_sizes(files: Files, indices: list[int], batch_size: int) -> list[list[int]]:
    """`indices` in lists of at most `batch_size` whose images have one size; a list comes when it is full, the others at the end."""
    steps: list[list[int]] = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        group = waiting.setdefault(files.image_size(index), [])
        group.append(index)
        if len(group) == batch_size:
            steps.append(group.copy())
            group.clear()
    return steps + [group for group in waiting.values() if group]
