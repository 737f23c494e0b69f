"""Batches for evaluation: whole images, every one exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..files import Files
from ..reading.decoding import resize_long_edge
from .workers import Batch, WorkerProcesses, batches, start_loader


class EvalReader:
    """Reads whole images of equal size, with their labels if asked for."""

    def __init__(
        self, files: Files, *, with_label: bool, long_edge: int | None, score_native: bool
    ) -> None:
        self.files = files
        self.with_label = with_label
        self.long_edge = long_edge
        self.score_native = score_native

    def read(self, requests: list[int]) -> Batch:
        """The batch of the images at these indices, as described in build_eval_loader."""
        images, labels = [], []
        for index in requests:
            image, label = self._sample(index)
            images.append(image)
            if label is not None:
                labels.append(label)

        batch: Batch = {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "index": torch.tensor(requests),
            "names": [self.files.name(index) for index in requests],
        }
        if self.with_label:
            batch["label"] = torch.from_numpy(np.stack(labels))
        return batch

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image uint8 [H, W, 3] and label uint8 [H, W], resized as asked for."""
        image = self.files.read_image(index)
        label = None
        if self.with_label:
            label = self.files.read_label(index, image_size=(image.shape[0], image.shape[1]))
        if self.long_edge is None:
            return image, label

        resized, resized_label = resize_long_edge(image, label, long_edge=self.long_edge)
        if self.score_native:
            return resized, label
        return resized, resized_label

    def describe(self, requests: list[int]) -> str:
        """The images asked for."""
        return ", ".join(str(self.files.image_path(index)) for index in requests)


class EvalLoader:
    """Every image of a rank's share once, each time it is iterated over."""

    def __init__(
        self, reader: EvalReader, steps: list[list[int]], processes: WorkerProcesses
    ) -> None:
        self._reader = reader
        self._steps = steps
        self._processes = processes

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
    """Images rank, rank + world_size, ... of `files`, none twice over all ranks.

    A batch holds `image` uint8 [N, 3, H, W] (channels-last in memory), `index` int64 [N], `names`,
    and with `with_label` also `label` uint8 [N, H, W].

    Args:
        files: the split.
        workers: processes that read; 0: the main process does.
        rank: which share is this loader's.
        world_size: number of shares.
        batch_size: images in a batch. Only images of equal size share one, so their sizes are read
            beforehand if this is above 1.
        with_label: whether labels are read.
        long_edge: pixels of the longer side to which images are resized (Mapillary: 2177).
        score_native: whether labels keep their size then.
        prefetch: batches that each worker prepares ahead.
        pin_memory: whether batches lie in pinned memory; None: where there is a GPU.

    Raises:
        DataError: the split has no labels; later as in `files.read_image` and `files.read_label`.
    """
    if with_label:
        files.require_labels()
    # Images are dealt out in turn, since neighbours in a list are often of one size and scene.
    share = list(range(rank, len(files), world_size))
    steps = [[index] for index in share]
    if batch_size > 1:
        steps = _equal_sizes(files, share, batch_size)

    # A video decoder that the main process has used hangs in a forked one.
    if files.frames is not None:
        workers = 0
    reader = EvalReader(
        files, with_label=with_label, long_edge=long_edge, score_native=score_native
    )
    processes = WorkerProcesses(
        workers=min(workers, len(steps)), prefetch=prefetch, persistent=False, pin_memory=pin_memory
    )
    return EvalLoader(reader, steps, processes)


def _equal_sizes(files: Files, indices: list[int], batch_size: int) -> list[list[int]]:
    """`indices` in lists of at most `batch_size` whose images have one size.

    A list comes when it is full, the others at the end.
    """
    steps: list[list[int]] = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        group = waiting.setdefault(files.image_size(index), [])
        group.append(index)
        if len(group) == batch_size:
            steps.append(group.copy())
            group.clear()
    return steps + [group for group in waiting.values() if group]
