"""Calibrate a checkpoint's attention for a list of scales: what `hmsa calibrate` does.

Biases are fitted on some training images and judged on images of the validation split. One is kept
where leaving it out makes the result on those worse. The lowest scale, which is fused last, stays
where it helps by more than the error of that difference; else it is switched off. What comes of all
that is written only where it helps by more than its error, too.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import DatasetSpec, Files, normalise, resize_long_edge
from hmsa.network.calibration import (
    FITTED_WINDOW,
    WINDOW,
    KeptMaps,
    average_kept,
    fit_attention_bias,
    fuse_kept,
    keep_maps,
    scales_switched_off,
    switched_off,
)
from hmsa.network.model import (
    Hierarchical,
    PairBias,
    PairBiases,
    ScalePair,
    adjacent_pairs,
)
from hmsa.utils.config import Config
from hmsa.utils.metrics.confusion import ConfusionMatrix, iou_of, mean_of
from hmsa.utils.processes import join
from hmsa.utils.runtime import autocast_dtype, prepare_runtime
from hmsa.utils.training.checkpoint import save_checkpoint
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.words import UserError, counted

from . import build
from .trust import naming

# So many judge, and half as many fit: a gain of one point is within the error of 50 images.
IMAGES = 100
RESAMPLINGS = 200  # of the judging images, for the error of a difference of mIoU


class CalibrationError(UserError, ValueError):
    """The checkpoint or the images do not allow a calibration; the message says what to do."""


@dataclass(frozen=True)
class CalibrationImages:
    """Which images fit the biases, and which judge them.

    `count` images of the split `judge` judge and half as many of `split` fit. Where both are the
    same split, `count` is the number of all of them, of which half judge.
    """

    split: str
    judge: str
    count: int = IMAGES


def main(arguments: argparse.Namespace) -> int:
    """Fit, judge, and write the biases that help into the checkpoint; returns the exit status."""
    with join() as processes:
        start_logging(main=processes.is_main)
        if processes.world_size > 1:
            raise CalibrationError("hmsa calibrate runs in one process; start it without torchrun")

        opened = build.open_checkpoint(
            arguments.checkpoint, config_file=None, overrides=arguments.overrides
        )
        output = arguments.output or opened.path
        if output.exists() and not output.samefile(opened.path):
            raise CalibrationError(f"--output: {output} is there already; name a new file")

        data = opened.config.data
        calibrate(
            opened,
            scales=tuple(arguments.scales or opened.config.eval.scales),
            images=CalibrationImages(
                split=arguments.split or data.train_split,
                judge=arguments.judge or data.val_split,
                count=arguments.images,
            ),
            output=output,
            device=processes.device,
        )
    return 0


def calibrate_run(config: Config, *, device: torch.device) -> None:
    """Calibrate best.pt of a training that is done, as runtime.calibrate says, if none did before.

    A network that has no attention between pairs of scales is left as it is. Images that do not
    allow a calibration are warned of, and then the checkpoint stays as it is.

    Raises:
        UserError: an image or the disk fails; the checkpoint stays as it is.
    """
    scales = config.runtime.calibrate_scales or config.eval.scales
    if not config.model.multiscale.startswith("hierarchical") or len(scales) < 2:
        return

    # What this very configuration has built may be built again.
    opened = build.open_checkpoint(
        Path(config.experiment.output), config_file=None, overrides=naming(config)
    )
    assert opened.weights is not None
    if opened.weights.get("calibration"):
        return
    images = CalibrationImages(split=config.data.train_split, judge=config.data.val_split)
    try:
        calibrate(opened, scales=scales, images=images, output=opened.path, device=device)
    except CalibrationError as error:
        # The training is done and whole; it only goes without biases.
        logger.warning("not calibrated: %s", error)


def calibrate(
    opened: build.OpenedCheckpoint,
    *,
    scales: Sequence[float],
    images: CalibrationImages,
    output: Path,
    device: torch.device,
) -> None:
    """Fit biases for `scales`, and write the checkpoint with those that help to `output`.

    Raises:
        UserError: the network, the scales or the images do not allow it; nothing is written.
    """
    assert opened.weights is not None, "a checkpoint without --config carries its own weights"
    loaded = build.build_loaded(opened, device=device)
    config, model, spec = loaded.config, loaded.model, loaded.spec
    runtime = config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
    if not isinstance(model, Hierarchical):
        raise CalibrationError(
            f"{opened.path}: its network is model.multiscale: {model.multiscale}, which has no "
            "attention between pairs of scales; only hierarchical ones can be calibrated"
        )
    if len(scales) < 2:
        raise CalibrationError("--scales: one scale has no attention; give two or more, e.g. 0.5 1")

    # Images of training fit; those that training did not see judge, where there are any.
    start = time.monotonic()
    fitting, judging = labelled_images(config, images, expected=spec)
    total = len(fitting.indices) + len(judging.indices)
    with (
        build.explained(config, "evaluation"),
        progress_bar(total=total, desc="maps", unit="image", show=True, leave=False) as bar,
    ):
        fitted_maps = kept_maps(
            fitting, model, config, scales=scales, advance=bar.update, window=FITTED_WINDOW
        )
        judged_maps = kept_maps(judging, model, config, scales=scales, advance=bar.update)
    model.to("cpu")
    biases = fit_attention_bias(model, fitted_maps, ignore_label=spec.ignore_label)
    judge = Judge(model, judged_maps, ignore_label=spec.ignore_label)
    helpful = judge.keep_what_helps(biases)

    # What was found, then what becomes of it.
    before, after = judge.miou({}), judge.miou(helpful)
    gain, error = judge.gain(helpful, {})
    averaged = judge.average().miou()
    for pair in adjacent_pairs(scales):
        verdict = "left out, since it does not help"
        if helpful.get(pair) == biases[pair]:
            verdict = "kept"
        logger.info("%gx and %gx: attention bias %s, %s", *pair, in_words(biases[pair]), verdict)
    for scale in scales_switched_off(helpful):
        logger.info(
            "%gx: switched off, since it helps by no more than the error; a list without it takes "
            "less time for the same result",
            scale,
        )
    listed = ", ".join(f"{scale:g}" for scale in sorted(scales))
    logger.info(
        "mIoU at {%s} on %d images of split %s that were not fitted: %.1f %% before, %.1f %% after "
        "(%+.2f, standard error %.2f); averaging the same scales gives %.1f %%; in %.0f s",
        listed,
        len(judging.indices),
        images.judge,
        100 * before,
        100 * after,
        100 * gain,
        100 * error,
        100 * averaged,
        time.monotonic() - start,
    )
    write_calibrated(
        output,
        opened.weights,
        biases=helpful,
        fitted=biases,
        evidence={
            "scales": sorted(scales),
            "split": images.split,
            "judged_by": images.judge,
            "images_fitted": len(fitting.indices),
            "images_judged": len(judging.indices),
            "miou_before": before,
            "miou_after": after,
            "miou_averaged": averaged,
            "gain": gain,
            "standard_error": error,
        },
    )


def in_words(bias: PairBias) -> str:
    """A pair's biases for a line of the log: what they are where both scales see one class."""
    lower, higher = (np.asarray(numbers) for numbers in bias)
    total = lower + higher
    if total.size == 1:
        return f"{total.item():+.2f}"
    return f"{total.min():+.2f} to {total.max():+.2f} by class"


def write_calibrated(
    path: Path,
    content: Mapping[str, object],
    *,
    biases: PairBiases,
    fitted: PairBiases,
    evidence: Mapping[str, object],
) -> None:
    """Write the checkpoint with its biases, whole or not at all; the weights stay as they are.

    Biases of pairs that this calibration did not look at are kept.
    """
    held = build.attention_bias_of(content)
    held = {pair: bias for pair, bias in held.items() if pair not in fitted}
    held.update(biases)
    rows = build.rows_of_bias(held)
    save_checkpoint(path, {**content, "attention_bias": rows, "calibration": dict(evidence)})
    logger.info("%s: holds the attention biases of %s of scales", path, counted(len(rows), "pair"))


# --- images ---


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a split."""

    files: Files
    indices: Sequence[int]


def labelled_images(
    config: Config, images: CalibrationImages, *, expected: DatasetSpec
) -> tuple[ChosenImages, ChosenImages]:
    """The images that fit, and those that judge.

    Raises:
        UserError: a split cannot be read, has no labels or too few images.
    """
    files = build.split_files(config, images.split, expected=expected)
    files.require_labels()
    if images.judge == images.split:
        fitting, judging = choose_images(files, count=images.count)
        return ChosenImages(files, fitting), ChosenImages(files, judging)

    judges = build.split_files(config, images.judge, expected=expected)
    judges.require_labels()
    return (
        ChosenImages(files, evenly_spread(files, count=images.count // 2, split=images.split)),
        ChosenImages(judges, evenly_spread(judges, count=images.count, split=images.judge)),
    )


def kept_maps(
    chosen: ChosenImages,
    model: Hierarchical,
    config: Config,
    *,
    scales: Sequence[float],
    advance: Callable[[], object],
    window: tuple[int, int] = WINDOW,
) -> list[KeptMaps]:
    """What fusing needs of each image, without augmentation, at the size that evaluation uses.

    Of images larger than `window` (height, width) a part is kept: its middle where images judge.
    Small windows lie elsewhere in every image, so that they together see all of the scene.
    """
    half = autocast_dtype(config.eval.precision)
    parameter = next(model.parameters())
    kept = []
    for number, index in enumerate(chosen.indices):
        image, label = chosen.files.read_image(index), chosen.files.read_label(index)
        if config.data.long_edge is not None:
            image, resized_label = resize_long_edge(image, label, config.data.long_edge)
            assert resized_label is not None
            label = resized_label

        # Small windows lie elsewhere in each image; a large one is in the middle, where every
        # calibration judges by the same pixels.
        place = (0.5, 0.5)
        if window != WINDOW:
            place = spread_place(number)
        tensor = torch.from_numpy(image)[None].to(parameter.device)
        with torch.autocast(parameter.device.type, dtype=half, enabled=half is not None):
            normalised = normalise(tensor, dtype=parameter.dtype)
            maps = keep_maps(
                model,
                normalised,
                torch.from_numpy(label),
                scales,
                window=window,
                place=place,
            )
        kept.append(maps)
        advance()
    return kept


def spread_place(number: int) -> tuple[float, float]:
    """Down and across, from 0 to 1: places that fill the square evenly as `number` rises.

    The R2 sequence of M. Roberts (https://extremelearning.com.au, 2018): steps of 1/g and 1/g^2,
    where g^3 = g + 1.
    """
    return (0.5 + 0.7548776662 * number) % 1, (0.5 + 0.5698402910 * number) % 1


def evenly_spread(files: Files, *, count: int, split: str) -> list[int]:
    """Indices of at most `count` images of a split, evenly spread.

    Raises:
        CalibrationError: there are too few.
    """
    count = min(count, len(files))
    if count < 2:
        raise CalibrationError(
            f"split {split} has {len(files)} images, too few for a calibration; name a larger one "
            "with --split or --judge"
        )
    return [position * len(files) // count for position in range(count)]


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
        self._known: dict[tuple[tuple[ScalePair, PairBias], ...], _Scores] = {}

        # The same resamplings for every question, so that answers can be compared.
        generator = np.random.default_rng(0)
        draws = generator.integers(len(images), size=(RESAMPLINGS, len(images)))
        self.weights = np.stack([np.bincount(draw, minlength=len(images)) for draw in draws])

    def scores(self, biases: PairBiases) -> _Scores:
        """The confusion matrix of each image with `biases`."""
        key = tuple(sorted(biases.items()))
        if key not in self._known:
            self._known[key] = self._count(biases)
        return self._known[key]

    def miou(self, biases: PairBiases) -> float:
        """mIoU as a fraction."""
        return self.scores(biases).miou()

    def gain(self, biases: PairBiases, others: PairBiases) -> tuple[float, float]:
        """How much more mIoU `biases` have than `others`, and its standard error (bootstrap)."""
        own, other = self.scores(biases), self.scores(others)
        differences = [own.miou(row) - other.miou(row) for row in self.weights]
        return own.miou() - other.miou(), float(np.std(differences, ddof=1))

    def keep_what_helps(self, biases: PairBiases) -> PairBiases:
        """The biases that help, or none where all together help no more than the error.

        Those of a single pair move the score by less than the error of a hundred images, so they
        are asked only whether they help at all; the error counts for all of them. It counts for
        the lowest scale as well: one that does not help so much has a bias that switches it off.
        """
        kept = dict(biases)
        for pair in sorted(biases):
            rest = {other: bias for other, bias in kept.items() if other != pair}
            if self.miou(kept) <= self.miou(rest):
                kept = rest
        kept = self.without_idle_scales(kept, adjacent_pairs(list(self.images[0].scales)))

        gain, error = self.gain(kept, {})
        if kept and not gain > error:
            return {}
        return kept

    def without_idle_scales(
        self, biases: PairBiases, pairs: Sequence[ScalePair]
    ) -> dict[ScalePair, PairBias]:
        """Switch off the lowest scale while it helps no more than the error; the highest stays."""
        kept = dict(biases)
        for pair in pairs:
            without = {**kept, pair: switched_off()}
            gain, error = self.gain(kept, without)
            if gain > error:
                break
            kept = without
        return kept

    def average(self) -> _Scores:
        """The confusion matrix of each image where its scales are averaged, without attention."""
        return self._count_logits(lambda kept: average_kept(self.model, kept))

    def _count(self, biases: PairBiases) -> _Scores:
        return self._count_logits(lambda kept: fuse_kept(self.model, kept, biases))

    @torch.inference_mode()
    def _count_logits(self, logits_of: Callable[[KeptMaps], Tensor]) -> _Scores:
        matrices = []
        for kept in self.images:
            logits = logits_of(kept)
            matrix = ConfusionMatrix(logits.shape[1], ignore_label=self.ignore_label)
            matrix.update(logits.argmax(dim=1)[0].to(torch.uint8), kept.label)
            matrices.append(matrix.numpy())
        return _Scores(np.stack(matrices))
