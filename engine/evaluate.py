"""Evaluate a checkpoint on a split, hand a split in to a benchmark, or predict any images with a checkpoint alone.

    python eval.py --checkpoint runs/x/checkpoints/best.pt [--split val] [--scales 0.5 1.0 2.0] [--flip] [--output DIR]
    python eval.py --checkpoint runs/x/checkpoints/best.pt --split test --submit test.zip
    python eval.py --checkpoint best.pt --images DIR_OR_FILES --output DIR

Runs alone or under torchrun, on CPU or GPUs, from the same command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .command_line import parse_with_overrides, run_door

SAVES = ("labels", "colour", "overlay", "attention", "confidence", "probabilities", "scales")
SAVED_BY_DEFAULT = ("labels", "colour", "overlay")
COMBINE, OVER = ("average", "max"), ("logits", "probabilities")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help and a mistyped option answer at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a checkpoint of train.py, or published weights together with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="YAML configuration, for weights that carry none"
    )
    parser.add_argument(
        "--split",
        help="split to score (default: data.val_split of the configuration); one without labels is predicted",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="folders, files, globs, .txt lists or videos: predict these instead of a split",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        metavar="S",
        help="scales of inference (default: eval.scales)",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average with the mirrored image (default: eval.flip)",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        help="how the scales of a single-scale model are combined (default: eval.combine)",
    )
    parser.add_argument(
        "--over", choices=OVER, help="what is averaged over scales and flip (default: eval.over)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="LIST",
        help="further ways to score beside it: scales, and after a plus what else differs, e.g. 1 0.5,1,2 0.5,1,2+flip 0.5,1,2+max",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where metrics.json, report.html and the pictures go",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        default=None,
        choices=SAVES,
        metavar="KIND",
        help=f"pictures to write for every image: {', '.join(SAVES)} (default: none where there are labels to score, else "
        f"{' '.join(SAVED_BY_DEFAULT)})",
    )
    parser.add_argument(
        "--submit",
        type=Path,
        metavar="FILE.zip",
        help="predictions of the split as its benchmark wants them, checked and zipped",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data/cityscapes",
    )
    arguments = parse_with_overrides(parser, argv)
    if arguments.images and arguments.output is None:
        parser.error("--images needs --output DIR for the predictions")
    if arguments.images and (arguments.split or arguments.submit):
        parser.error("--images goes with neither --split nor --submit")
    if arguments.images and arguments.compare:
        parser.error("--compare compares scores, and --images have none")
    if arguments.save and arguments.output is None:
        parser.error("--save needs --output DIR for the pictures")
    if arguments.submit and arguments.submit.suffix != ".zip":
        parser.error(f"--submit {arguments.submit}: the file must end in .zip")
    return arguments


import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import DataError, DatasetSpec, Files, image_files
from hmsa.network.inference.folding import prepare_for_inference
from hmsa.network.inference.predict import out_of_memory
from hmsa.network.model import MultiScale
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.labelling.submission import SubmissionError
from hmsa.utils.metrics.confusion import ConfusionMatrix, ImageScores
from hmsa.utils.metrics.instance_iou import instances_path
from hmsa.utils.metrics.scores import divide
from hmsa.utils.processes import Processes, join, recorded
from hmsa.utils.report.visualise import attention_share
from hmsa.utils.runtime import autocast_dtype, prepare_runtime
from hmsa.utils.training.checkpoint import write_atomically
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.training.run_folder import make_writable

from . import build as assemble
from .build import Inference, Loaded
from .pictures import (
    LABELS,
    Found,
    HandIn,
    Pictures,
    Wanted,
    attends,
    example_panel,
    fitted,
    infer,
    legend_of,
    share_maps,
)
from .reporting import Evaluation, per_class, print_results, write_results

__all__ = ["Evaluation", "evaluate", "example_panel", "main", "per_class"]

USER_ERRORS = (*assemble.USER_ERRORS, SubmissionError)
OnImage = Callable[[dict[str, Any], int, Found], None]
OnMaps = Callable[[int, np.ndarray, np.ndarray], None]


def predictions(
    model: MultiScale,
    loader: Iterable[dict[str, Any]],
    *,
    inference: Inference,
    processes: Processes,
    images: int,
    wanted: Wanted = LABELS,
    image_by_image: bool = False,
    show: bool = True,
) -> Iterable[tuple[dict[str, Any], int, Found]]:
    """(batch, position in it, what was found [1, ...]) for every image this rank is given, with a progress bar for all ranks.

    Where a batch has labels, what is found has their size. `image_by_image` infers each image of a batch alone.
    """
    with progress_bar(
        total=images,
        desc=inference.describe(),
        unit="image",
        show=show and processes.is_main,
        leave=False,
    ) as bar:
        for batch in loader:
            count = len(batch["names"])
            size = tuple((batch["label"] if "label" in batch else batch["image"]).shape[-2:])
            if image_by_image:
                for position in range(count):
                    yield (
                        batch,
                        position,
                        infer(
                            model,
                            batch["image"][position : position + 1],
                            inference,
                            wanted,
                            size=size,
                        ),
                    )
            else:
                found = infer(model, batch["image"], inference, wanted, size=size)
                for position in range(count):
                    yield batch, position, found.at(position)
            bar.update(min(count * processes.world_size, images - bar.n))


@dataclass
class _Tally:
    """What one rank has counted so far; by index of the image, so that it can be added up in one order for any number of ranks."""

    matrix: ConfusionMatrix
    scored: int = 0
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    shares: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@torch.inference_mode()
def evaluate(
    model: MultiScale,
    loader: Iterable[dict[str, Any]],
    *,
    spec: DatasetSpec,
    inference: Inference,
    processes: Processes,
    images: int,
    criterion: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None,
    attention: bool = False,
    wanted: Wanted = LABELS,
    image_by_image: bool = False,
    show: bool = True,
    on_image: OnImage | None = None,
    on_maps: OnMaps | None = None,
) -> Evaluation:
    """Score `model` on every image of `loader` once; image by image the result has the same bits for any number of ranks.

    `images` is how many there are over all ranks: a lost or doubled one raises. `criterion(logits, label)` gives the terms of the validation
    loss (mean over images). `attention` adds how much each scale counts per class. `on_image(batch, position, found)` sees each image, with
    what is `wanted` for it; `on_maps(index, predicted, label)` sees its uint8 maps [H, W] in a thread, while the network goes on.
    """
    was_training, start = model.training, time.monotonic()
    model.eval()
    tally = _Tally(
        ConfusionMatrix(spec.num_classes, ignore_label=spec.ignore_label, device=processes.device)
    )
    wanted = wanted | Wanted(logits=criterion is not None, attention=attention)
    with ImageWriter(workers=2 if on_maps or attention else 0) as background:
        for batch, position, found in predictions(
            model,
            loader,
            inference=inference,
            processes=processes,
            images=images,
            wanted=wanted,
            image_by_image=image_by_image,
            show=show,
        ):
            index, host_label = int(batch["index"][position]), batch["label"][position]
            label = host_label[None].to(processes.device)
            own = ConfusionMatrix(
                spec.num_classes, ignore_label=spec.ignore_label, device=processes.device
            )
            own.update(found.label, label)
            tally.matrix.merge(own)
            tally.scored += 1
            tally.per_image[index] = own.numpy()
            if criterion is not None:
                tally.losses[index] = _loss(criterion, found, label)
            if attention:
                assert found.prediction is not None
                background.call(
                    _note_shares,
                    tally,
                    index,
                    share_maps(found.prediction),
                    host_label.numpy(),
                    inference.scales,
                )
            if on_maps is not None:
                background.call(on_maps, index, found.label[0].cpu().numpy(), host_label.numpy())
            if on_image is not None:
                on_image(batch, position, found)
    model.train(was_training)
    return _join(
        tally, inference, processes=processes, images=images, seconds=time.monotonic() - start
    )


def _loss(
    criterion: Callable[[Tensor, Tensor], dict[str, Tensor]], found: Found, label: Tensor
) -> float | None:
    """The sum of the loss terms of one image, None where they do not fit into memory."""
    assert found.prediction is not None
    try:
        return float(torch.stack(list(criterion(found.prediction.logits, label).values())).sum())
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        logger.warning(
            "memory ran out over the validation loss of an image of %d x %d: there will be none",
            *label.shape[-2:],
        )
        return None


def _note_shares(
    tally: _Tally,
    index: int,
    shares: dict[float, np.ndarray],
    label: np.ndarray,
    scales: Sequence[float],
) -> None:
    """In the order of `scales`, which inference does not keep: it works from the largest down."""
    tally.shares[index] = attention_share(
        {scale: shares[scale] for scale in scales}, label, tally.matrix.num_classes
    )


def _join(
    tally: _Tally, inference: Inference, *, processes: Processes, images: int, seconds: float
) -> Evaluation:
    """Add up what all ranks counted, in the order of the images: the same bits for any number of ranks."""
    tally.matrix.reduce(processes.sum)
    gathered = processes.gather((tally.per_image, tally.losses, tally.shares, tally.scored))
    scored = sum(of_rank[3] for of_rank in gathered)
    per_image, losses, shares = (
        {index: found for of_rank in gathered for index, found in sorted(of_rank[part].items())}
        for part in range(3)
    )
    if not scored == len(per_image) == images:
        raise RuntimeError(
            f"{scored} images were scored, {len(per_image)} different ones, where the split has {images}: the result is void"
        )
    known = [losses[index] for index in sorted(losses) if losses[index] is not None]
    mean_shares = None
    if shares:
        parts = [shares[index] for index in sorted(shares)]
        mean_shares = divide(
            sum(part[0] for part in parts),
            np.broadcast_to(sum(part[1] for part in parts), parts[0][0].shape),
        )
    loss = math.fsum(known) / len(known) if known and len(known) == len(losses) else None
    return Evaluation(
        matrix=tally.matrix,
        images=scored,
        loss=loss,
        per_image=per_image,
        shares=mean_shares,
        seconds=seconds,
    )


@dataclass(frozen=True)
class Job:
    """What a command line asks for: which files, inferred in which ways, with which pictures, handed in where."""

    loaded: Loaded
    files: Files
    split: str
    inferences: Sequence[Inference]
    kinds: Sequence[str]
    output: Path | None
    hand_in: HandIn | None

    @property
    def native(self) -> bool:
        """Whether the network sees images at their own size."""
        return self.loaded.config.data.long_edge is None

    @property
    def wanted(self) -> Wanted:
        """What pictures and submission need; labels of resized images come from resized logits."""
        return Wanted.for_pictures(self.kinds) | Wanted(logits=not self.native and self.writes)

    @property
    def writes(self) -> bool:
        return bool(self.kinds) or self.hand_in is not None

    def add_to(self, writer: ImageWriter) -> OnImage:
        """What is to be written of each image, at the image's own size."""
        pictures = (
            None
            if self.output is None
            else Pictures(self.output, self.kinds, self.files, writer, native=self.native)
        )

        def add(batch: dict[str, Any], position: int, found: Found) -> None:
            if not self.native:
                found = fitted(found, self.files.image_size(int(batch["index"][position])))
            if pictures is not None:
                pictures.add(batch, position, found)
            if self.hand_in is not None:
                self.hand_in.add(batch["names"][position], found.label[0].cpu().numpy(), writer)

        return add


@torch.inference_mode()
def predict_images(job: Job, processes: Processes) -> int:
    """Predict images without labels; returns how many over all ranks, which is how many there are."""
    loader = assemble.split_loader(job.loaded.config, job.files, processes, with_label=False)
    done = 0
    with ImageWriter() as writer:
        add = job.add_to(writer)
        for found in predictions(
            job.loaded.model,
            loader,
            inference=job.inferences[0],
            processes=processes,
            images=len(job.files),
            wanted=job.wanted,
            image_by_image=job.loaded.config.runtime.deterministic,
        ):
            add(*found)
            done += 1
    written = sum(processes.gather(done))
    if written != len(job.files):
        raise RuntimeError(
            f"{written} predictions were made for {len(job.files)} images: the result is void"
        )
    return written


def score_split(job: Job, processes: Processes) -> list[Evaluation]:
    """Evaluate the first way to infer with all scores and pictures, the others for comparison."""
    config, files, model = job.loaded.config, job.files, job.loaded.model
    options: Any = {
        "spec": job.loaded.spec,
        "processes": processes,
        "images": len(files),
        "image_by_image": config.runtime.deterministic,
    }
    criterion = assemble.criterion(config, files).main
    scores = image_scores(job, processes)
    results = []
    for number, inference in enumerate(job.inferences):
        # A loss needs the logits of a whole image at once, which tiles are there to avoid.
        options["criterion"] = criterion if inference.tile is None else None
        loader = assemble.split_loader(config, files, processes)
        if number:
            results.append(evaluate(model, loader, inference=inference, **options))
            continue
        with ImageWriter() as writer:
            results.append(
                evaluate(
                    model,
                    loader,
                    inference=inference,
                    attention=attends(model, inference) and inference.tile is None,
                    wanted=job.wanted,
                    on_image=job.add_to(writer) if job.writes else None,
                    on_maps=lambda index, predicted, label: scores.update(
                        predicted, label, files.label_path(index)
                    ),
                    **options,
                )
            )
        scores.load(processes.gather(scores.state()))
        results[0] = replace(results[0], boundary_f=scores.boundary.scores())
        if scores.instances is not None:
            matrix = results[0].matrix.numpy()
            results[0] = replace(
                results[0],
                iiou=scores.instances.iiou(matrix),
                category_iiou=scores.instances.category_iiou(matrix),
            )
    return results


def image_scores(job: Job, processes: Processes) -> ImageScores:
    """Boundary F, and iIoU where every label has an instance map of its size."""
    spec, data, eval_section = job.files.spec, job.loaded.config.data, job.loaded.config.eval
    maps = 0
    if spec.name == "cityscapes" and (data.long_edge is None or eval_section.score_native):
        maps = sum(
            path is not None and instances_path(path) is not None
            for path in map(job.files.label_path, range(len(job.files)))
        )
        if maps < len(job.files):
            logger.info(
                "no iIoU: %d of %d labels have an instance map beside them", maps, len(job.files)
            )
    return ImageScores(
        names=spec.names,
        to_train=spec.to_train,
        categories=[item.category for item in spec.classes],
        ignore_label=spec.ignore_label,
        with_instances=maps == len(job.files),
    )


def compared_way(text: str, first: Inference) -> Inference:
    """A --compare item: scales, then what else differs from the first way, such as 0.5,1,2 or 0.5,1,2+flip or 1,2+max+probabilities."""
    listed, *words = text.split("+")
    try:
        scales = tuple(float(part) for part in listed.split(","))
    except ValueError:
        scales = ()
    if not scales or min(scales) <= 0:
        raise DataError(f"--compare: '{listed}' is not a list of scales; write e.g. 0.5,1,2")
    changes: dict[str, Any] = {}
    for word in words:
        field_name = {
            **dict.fromkeys(COMBINE, "combine"),
            **dict.fromkeys(OVER, "over"),
            "flip": "flip",
            "noflip": "flip",
        }.get(word)
        if field_name is None:
            raise DataError(
                f"--compare: '{word}' in '{text}' is none of flip, noflip, {', '.join((*COMBINE, *OVER))}"
            )
        changes[field_name] = word == "flip" if field_name == "flip" else word
    return replace(first, scales=scales, **changes)


def set_up(arguments: argparse.Namespace, processes: Processes) -> Job:
    """Load the checkpoint, find the files, settle how to infer; everything a user may have got wrong is said here."""
    for folder, setting in (
        (arguments.output, "--output DIR"),
        (arguments.submit and arguments.submit.parent, "--submit FILE.zip"),
    ):
        if folder is not None and processes.is_main:
            make_writable(folder, setting=setting)
    loaded = assemble.load_model(
        arguments.checkpoint,
        config_file=arguments.config,
        overrides=arguments.overrides,
        device=processes.device,
    )
    runtime, section = loaded.config.runtime, loaded.config.eval
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
    first = Inference.of(
        section,
        scales=arguments.scales,
        flip=arguments.flip,
        combine=arguments.combine,
        over=arguments.over,
    )
    loaded = replace(
        loaded,
        model=prepare_for_inference(loaded.model, autocast_dtype=autocast_dtype(first.precision)),
    )
    inferences = [first, *(compared_way(text, first) for text in arguments.compare)]
    if loaded.model.multiscale != "single" and "max" in {
        inference.combine for inference in inferences
    }:
        raise DataError(
            f"a maximum over scales is for single-scale models, and this one is {loaded.model.multiscale}: leave max out"
        )
    split = arguments.split or loaded.config.data.val_split
    if arguments.images:
        files, split = (
            image_files(
                arguments.images, spec=loaded.spec, max_pixels=loaded.config.data.max_pixels
            ),
            "images",
        )
    else:
        files = assemble.split_files(loaded.config, split, expected=loaded.spec)
        if files.labels is None and not (arguments.output or arguments.submit):
            raise DataError(
                f"split '{split}' has no labels to score it by; give --output DIR to predict it, or --submit FILE.zip to hand it in"
            )
    if files.labels is None and arguments.compare:
        raise DataError(f"split '{split}' has no labels: --compare has no scores to compare")
    kinds = arguments.save or (
        SAVED_BY_DEFAULT if files.labels is None and arguments.output else ()
    )
    hand_in = None if arguments.submit is None else HandIn.of(arguments.submit, files, split)
    if hand_in is not None and processes.is_main:
        hand_in.clear()
    return Job(loaded, files, split, inferences, kinds, arguments.output, hand_in)


def main(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, then score a split, or predict what has no labels; write what was asked for."""
    with join() as processes:
        start_logging(main=processes.is_main)
        with processes.agreement(*USER_ERRORS):
            job = set_up(arguments, processes)
        if job.files.labels is None:
            if not arguments.images:
                logger.warning("split '%s' has no labels: predictions only, no metrics", job.split)
            written = predict_images(job, processes)
            if processes.is_main and job.output is not None:
                write_atomically(
                    job.output / "classes.json",
                    (json.dumps(legend_of(job.files.spec), indent=2) + "\n").encode(),
                )
                logger.info(
                    "%d images predicted at %s; %s in %s",
                    written,
                    job.inferences[0].describe(),
                    ", ".join(job.kinds),
                    job.output,
                )
        else:
            results = score_split(job, processes)
            if processes.is_main:
                print_results(
                    job.loaded.spec,
                    job.split,
                    job.inferences,
                    results,
                    checkpoint=job.loaded.sha256,
                )
                if job.output is not None:
                    write_results(
                        job.output,
                        job.loaded,
                        arguments.checkpoint,
                        job.split,
                        job.files,
                        job.inferences,
                        results,
                    )
                    logger.info(
                        "wrote %s and %s", job.output / "metrics.json", job.output / "report.html"
                    )
        if processes.is_main and job.hand_in is not None:
            job.hand_in.finish()
        return 0


def command(argv: list[str] | None = None) -> int:
    """The command line: parse, run, and end with one sentence and status 2 where the user is mistaken."""
    arguments = parse_arguments(argv)
    return run_door(recorded(lambda: main(arguments)), user_errors=lambda: USER_ERRORS)
