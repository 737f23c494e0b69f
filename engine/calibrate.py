"""Calibrate a checkpoint's attention for a list of scales: what `hmsa calibrate` does.

Biases are fitted on some training images and judged on others. One is kept where leaving it out
makes the result on the other images worse, and all of them only where together they help by more
than the error of that difference.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hmsa.datasets import Files, normalise, resize_long_edge
from hmsa.network.calibration import KeptMaps, fit_attention_bias, fuse_kept, keep_maps
from hmsa.network.model import Hierarchical, ScalePair, adjacent_pairs
from hmsa.utils.metrics.confusion import ConfusionMatrix, iou_of, mean_of
from hmsa.utils.processes import Processes, join
from hmsa.utils.runtime import autocast_dtype, prepare_runtime
from hmsa.utils.training.checkpoint import save_checkpoint
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.words import UserError

from . import build

RESAMPLINGS = 200  # of the judging images, for the error of a difference of mIoU


class CalibrationError(UserError, ValueError):
    """The checkpoint or the images do not allow a calibration; the message says what to do."""


def main(arguments: argparse.Namespace) -> int:
    """Fit, judge, and write the biases that help into the checkpoint; returns the exit status."""
    with join() as processes:
        start_logging(main=processes.is_main)
        if processes.world_size > 1:
            raise CalibrationError("hmsa calibrate runs in one process; start it without torchrun")
        return calibrate(arguments, processes)


def calibrate(arguments: argparse.Namespace, processes: Processes) -> int:
    """Calibrate the checkpoint that the command line names; returns the exit status."""
    opened = build.open_checkpoint(
        arguments.checkpoint, config_file=None, overrides=arguments.overrides
    )
    assert opened.weights is not None, "a checkpoint without --config carries its own weights"
    loaded = build.build_loaded(opened, device=processes.device)
    config, model, checkpoint = loaded.config, loaded.model, opened.path
    runtime = config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
    if not isinstance(model, Hierarchical):
        raise CalibrationError(
            f"{checkpoint}: its network is model.multiscale: {model.multiscale}, which has no "
            "attention between pairs of scales; only hierarchical ones can be calibrated"
        )
    scales = tuple(arguments.scales or config.eval.scales)
    if len(scales) < 2:
        raise CalibrationError("--scales: one scale has no attention; give two or more, e.g. 0.5 1")

    # Images of training, spread over the split, of which some fit and others judge.
    split = arguments.split or config.data.train_split
    files = build.split_files(config, split, expected=loaded.spec)
    files.require_labels()
    fitting, judging = choose_images(files, count=arguments.images)

    start = time.monotonic()
    kept: dict[int, KeptMaps] = {}
    half = autocast_dtype(config.eval.precision)
    indices = [*fitting, *judging]
    with progress_bar(total=len(indices), desc="maps", unit="image", show=True, leave=False) as bar:
        for index in indices:
            image, label = files.read_image(index), files.read_label(index)
            if config.data.long_edge is not None:
                image, resized_label = resize_long_edge(image, label, config.data.long_edge)
                assert resized_label is not None
                label = resized_label
            parameter = next(model.parameters())
            tensor = torch.from_numpy(image)[None].to(parameter.device)
            with torch.autocast(parameter.device.type, dtype=half, enabled=half is not None):
                kept[index] = keep_maps(
                    model,
                    normalise(tensor, dtype=parameter.dtype),
                    torch.from_numpy(label),
                    scales,
                )
            bar.update()

    biases = fit_attention_bias(
        model.to("cpu"), [kept[index] for index in fitting], ignore_label=loaded.spec.ignore_label
    )
    judge = Judge(model, [kept[index] for index in judging], ignore_label=loaded.spec.ignore_label)
    helpful = judge.keep_what_helps(biases)

    # What was found, then what becomes of it.
    before, after = judge.miou({}), judge.miou(helpful)
    gain, error = judge.gain(helpful, {})
    for pair in adjacent_pairs(scales):
        verdict = "kept" if pair in helpful else "left out, since it does not help"
        logger.info("%gx and %gx: attention bias %+.2f, %s", *pair, biases[pair], verdict)
    listed = ", ".join(f"{scale:g}" for scale in sorted(scales))
    logger.info(
        "mIoU at {%s} on %d images of split %s that were not fitted: %.1f %% before, %.1f %% after "
        "(%+.2f, standard error %.2f), in %.0f s",
        listed,
        len(judging),
        split,
        100 * before,
        100 * after,
        100 * gain,
        100 * error,
        time.monotonic() - start,
    )
    write_calibrated(
        arguments.output or checkpoint,
        opened.weights,
        biases=helpful,
        fitted=biases,
        evidence={
            "scales": sorted(scales),
            "split": split,
            "images_fitted": len(fitting),
            "images_judged": len(judging),
            "miou_before": before,
            "miou_after": after,
            "gain": gain,
            "standard_error": error,
        },
    )
    return 0


def write_calibrated(
    path: Path,
    content: Mapping[str, object],
    *,
    biases: Mapping[ScalePair, float],
    fitted: Mapping[ScalePair, float],
    evidence: Mapping[str, object],
) -> None:
    """Write the checkpoint with its biases, whole or not at all; the weights stay as they are.

    Biases of pairs that this calibration did not look at are kept.
    """
    held = build.attention_bias_of(content)
    held = {pair: bias for pair, bias in held.items() if pair not in fitted}
    held.update(biases)
    rows = [[*pair, bias] for pair, bias in sorted(held.items())]
    save_checkpoint(path, {**content, "attention_bias": rows, "calibration": dict(evidence)})
    logger.info("%s: holds %d attention biases", path, len(rows))


# --- images ---


def choose_images(files: Files, *, count: int) -> tuple[list[int], list[int]]:
    """Indices of at most `count` images, spread over the split: those to fit, those to judge by.

    Images of one recording are much alike, so a recording fits or judges as a whole, where names
    tell recordings apart. A single recording is cut in the middle.

    Raises:
        CalibrationError: there are too few images.
    """
    count = min(count, len(files))
    if count < 4:
        raise CalibrationError(
            f"{count} images are too few for a calibration; give --images 20 or more, and a split "
            "that has as many"
        )
    chosen = [position * len(files) // count for position in range(count)]
    recordings: dict[str, list[int]] = {}
    for index in chosen:
        recordings.setdefault(recording_of(files.name(index)), []).append(index)
    if len(recordings) == 1:
        return chosen[: count // 2], chosen[count // 2 :]

    # The larger recordings first, each to the side that has fewer images so far.
    fitting: list[int] = []
    judging: list[int] = []
    for indices in sorted(recordings.values(), key=len, reverse=True):
        side = min(fitting, judging, key=len)
        side += indices
    return sorted(fitting), sorted(judging)


def recording_of(name: str) -> str:
    """The name of an image without its last number: that of the recording it belongs to."""
    match = re.search(r"^(.*)[_-]\d+(?=[_.]|$)", Path(name).name)
    if match is None:
        return name
    return f"{Path(name).parent}/{match[1]}"


# --- judging ---


@dataclass
class _Scores:
    """Confusion matrices int64 [N, C, C] of the judging images for one choice of biases."""

    matrices: np.ndarray

    def miou(self, weights: np.ndarray | None = None) -> float:
        """mIoU over all images, or with images counted as often as `weights` [N] says."""
        matrices = self.matrices
        if weights is not None:
            matrices = matrices * weights[:, None, None]
        return mean_of(iou_of(matrices.sum(axis=0)))


class Judge:
    """Scores choices of biases on images that they were not fitted on."""

    def __init__(
        self, model: Hierarchical, images: Sequence[KeptMaps], *, ignore_label: int
    ) -> None:
        self.model = model
        self.images = images
        self.ignore_label = ignore_label
        self._known: dict[tuple[tuple[ScalePair, float], ...], _Scores] = {}

        # The same resamplings for every question, so that answers can be compared.
        generator = np.random.default_rng(0)
        draws = generator.integers(len(images), size=(RESAMPLINGS, len(images)))
        self.weights = np.stack([np.bincount(draw, minlength=len(images)) for draw in draws])

    def scores(self, biases: Mapping[ScalePair, float]) -> _Scores:
        """The confusion matrix of each image with `biases`."""
        key = tuple(sorted(biases.items()))
        if key not in self._known:
            self._known[key] = self._count(biases)
        return self._known[key]

    def miou(self, biases: Mapping[ScalePair, float]) -> float:
        """mIoU as a fraction."""
        return self.scores(biases).miou()

    def gain(
        self, biases: Mapping[ScalePair, float], others: Mapping[ScalePair, float]
    ) -> tuple[float, float]:
        """How much more mIoU `biases` have than `others`, and its standard error (bootstrap)."""
        own, other = self.scores(biases), self.scores(others)
        differences = [own.miou(row) - other.miou(row) for row in self.weights]
        return own.miou() - other.miou(), float(np.std(differences, ddof=1))

    def keep_what_helps(self, biases: Mapping[ScalePair, float]) -> dict[ScalePair, float]:
        """The biases that help, or none where all together help no more than the error.

        A single bias moves the score by less than the error of a hundred images, so it is asked
        only whether it helps at all; the error counts for all of them.
        """
        kept = dict(biases)
        for pair in sorted(biases):
            rest = {other: bias for other, bias in kept.items() if other != pair}
            if self.miou(kept) <= self.miou(rest):
                kept = rest

        gain, error = self.gain(kept, {})
        if kept and not gain > error:
            return {}
        return kept

    @torch.inference_mode()
    def _count(self, biases: Mapping[ScalePair, float]) -> _Scores:
        tensors = {pair: torch.tensor(bias) for pair, bias in biases.items()}
        matrices = []
        for kept in self.images:
            logits = fuse_kept(self.model, kept, tensors)
            matrix = ConfusionMatrix(logits.shape[1], ignore_label=self.ignore_label)
            matrix.update(logits.argmax(dim=1)[0].to(torch.uint8), kept.label)
            matrices.append(matrix.numpy())
        return _Scores(np.stack(matrices))
