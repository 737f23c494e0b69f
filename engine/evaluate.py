"""Evaluate a checkpoint on a split, hand a split in to a benchmark, or predict any images.

`main` is `hmsa eval`; `evaluate` scores a model and serves the validation of a training as well.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import DataError, DatasetSpec, Files, image_files, resize_long_edge
from hmsa.network import InferenceOptions, ModelError, MultiScaleModel
from hmsa.network.inference import (
    out_of_memory,
    prepare_for_inference,
    require_refinable,
)
from hmsa.network.inference.labels import NonFiniteError
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.outputs import OutputFolder, output_folder, require_apart
from hmsa.utils.files.prefetch import prefetch
from hmsa.utils.metrics.confusion import ConfusionMatrix, ImageScores
from hmsa.utils.metrics.instance_iou import instances_path
from hmsa.utils.metrics.scores import divide
from hmsa.utils.processes import Processes, join
from hmsa.utils.report.contact_page import contact_page
from hmsa.utils.report.visualise import attention_share
from hmsa.utils.runtime import prepare_runtime
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.training.run_folder import make_writable
from hmsa.utils.words import UserError

from . import build
from .arguments import COMBINE, OVER, SAVED_BY_DEFAULT, read_refine, read_scales
from .build import Loaded, OpenedCheckpoint
from .contact_sheet import ContactSheet
from .costs import InferenceMeter, joined_cost
from .examples import ExampleWriter, example_files
from .pictures import (
    LABELS_ONLY,
    ImageResult,
    Needs,
    Pictures,
    SubmissionWriter,
    attends,
    example_panel,
    infer,
    legend_of,
    result_at_size,
    result_files,
    share_maps,
)
from .reporting import (
    Evaluation,
    per_class,
    print_results,
    suggest_calibration,
    write_results,
)
from .trust import NETWORK, SCORES
from .video_output import VideoError, VideoOutput, frames_of, video_names, video_suffix

__all__ = ["Evaluation", "evaluate", "example_panel", "main", "per_class"]

FAILURES_SHOWN = 10  # images named at the end that could not be predicted

OnImage = Callable[[int, Tensor, ImageResult], None]
OnMaps = Callable[[int, np.ndarray, np.ndarray], None]
Judge = Callable[[Tensor, Tensor], dict[str, Tensor]]


def main(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, then score a split, or predict what has no labels.

    Returns the exit status: 1 when an image could not be predicted.
    """
    # Read before the processes join: the configuration says on which device.
    opened = build.open_checkpoint(
        arguments.checkpoint,
        config_file=arguments.config,
        overrides=arguments.overrides,
        runs=NETWORK if arguments.images else SCORES,
    )
    config = opened.config
    with ExitStack() as held, join(device=config.runtime.device) as processes:
        start_logging(main=processes.is_main)
        held.enter_context(build.explained(config, "evaluation"))

        # A user error on one rank is raised on all: none waits for one that has ended.
        with processes.agreement(UserError):
            job = prepare_evaluation(arguments, opened, processes, held)

        failed = 0
        if job.files.labels is None:
            failed = predict_and_report(job, processes, of_split=not arguments.images)
        else:
            score_and_report(job, processes)
            if processes.is_main and opened.weights is not None:
                suggest_calibration(job.loaded, job.ways, opened.weights)
        if processes.is_main and job.submission is not None and not failed:
            job.submission.finish()
        return 1 if failed else 0


# --- what is asked for ---


@dataclass(frozen=True)
class EvaluationJob:
    """What a command line asks for."""

    loaded: Loaded
    files: Files
    split: str
    ways: Sequence[InferenceOptions]  # the first counts, the others stand beside it
    kinds: Sequence[str]  # of the pictures to write
    output: OutputFolder | None
    submission: SubmissionWriter | None
    video_suffix: str | None = None  # of the videos to write, None: none

    @property
    def own_size(self) -> bool:
        """Whether the network sees images at their own size."""
        return self.loaded.config.data.long_edge is None

    @property
    def writes_images(self) -> bool:
        """Whether something is written for every image."""
        return bool(self.kinds) or self.submission is not None

    @property
    def needs(self) -> Needs:
        """What pictures and submission need; labels of resized images come from resized logits."""
        logits = self.writes_images and not self.own_size
        return Needs.of_pictures(self.kinds) | Needs(logits=logits)

    def image_writer(self, writer: ImageWriter) -> OnImage:
        """A function that queues what is to be written of an image, at the image's own size."""
        pictures = None
        if self.output is not None and self.kinds:
            pictures = Pictures(self.output, self.kinds, self.files, writer, own_size=self.own_size)

        def add(index: int, image: Tensor, result: ImageResult) -> None:
            if not self.own_size:
                result = result_at_size(result, self.files.image_size(index))
            if pictures is not None:
                pictures.add(self.files.output_name(index), index, image, result)
            if self.submission is not None:
                label = result.label[0].cpu().numpy()
                self.submission.add(self.files.name(index), label, writer)

        return add


def prepare_evaluation(
    arguments: argparse.Namespace,
    opened: OpenedCheckpoint,
    processes: Processes,
    held: ExitStack,
) -> EvaluationJob:
    """Build the network, find the files, choose how to infer, and open the output folder.

    The folder stays open as long as `held` does.

    Raises:
        UserError: for everything that a user may have got wrong.
    """
    if processes.is_main:
        if arguments.output is not None:
            make_writable(arguments.output, setting="--output DIR")
        if arguments.submit is not None:
            make_writable(arguments.submit.parent, setting="--submit FILE.zip")

    loaded = build.build_loaded(opened, device=processes.device)
    runtime = loaded.config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)

    ways = ways_to_infer(arguments, loaded)
    model = prepare_for_inference(loaded.model, autocast_dtype=ways[0].autocast_dtype)
    loaded = replace(loaded, model=model)

    # Pictures are the point where there is nothing to score.
    files, split = files_to_evaluate(arguments, loaded)
    kinds = arguments.save or ()
    if files.labels is None and arguments.output and not kinds:
        kinds = SAVED_BY_DEFAULT

    submission = None
    if arguments.submit is not None:
        submission = SubmissionWriter.of(arguments.submit, files, split)
        if processes.is_main:
            submission.clear()

    kinds, suffix = video_to_write(arguments, files, kinds, processes)
    output = None
    if arguments.output is not None:
        require_apart(arguments.output, inputs_of(arguments, files))
        output = held.enter_context(
            output_folder(arguments.output, command="eval", process=processes.rank)
        )
        # Nothing of the user's is in the place of a result, and no two results are one file.
        if processes.is_main:
            scales = {scale for way in ways[:1] for scale in way.scales}
            output.require_free(result_files(files, kinds, scales=sorted(scales)))
            output.require_free(example_files(files))
            if suffix is not None:
                named = video_names(files).items()
                output.require_free((f"{name}{suffix}", video) for name, video in named)
    return EvaluationJob(
        loaded=loaded,
        files=files,
        split=split,
        ways=ways,
        kinds=kinds,
        output=output,
        submission=submission,
        video_suffix=suffix,
    )


def video_to_write(
    arguments: argparse.Namespace, files: Files, kinds: Sequence[str], processes: Processes
) -> tuple[Sequence[str], str | None]:
    """The kinds of results, and the ending of the videos among them; None for none.

    Raises:
        UserError: a video was asked for, and there is none to be made.
    """
    asked = "video" in kinds
    has_frames = next(frames_of(files), None) is not None
    if asked and not has_frames:
        raise DataError("--save video: no video is among the images; name one with --images")
    if asked and processes.world_size > 1:
        raise DataError(
            "--save video: frames of several processes cannot be put into one video; start one "
            "process, or use --save overlay"
        )
    if not (asked or (has_frames and arguments.output and not arguments.save)):
        return kinds, None

    # What nobody asked for is left out where it cannot be written.
    if processes.world_size > 1:
        return kinds, None
    try:
        suffix = video_suffix()
    except VideoError as error:
        if asked:
            raise
        logger.warning("no video is written: %s", error)
        return kinds, None
    return [*kinds, "video"] if not asked else kinds, suffix


def inputs_of(arguments: argparse.Namespace, files: Files) -> Iterator[Path]:
    """Everything that the evaluation reads: folders that were named, images and labels."""
    for text in arguments.images or ():
        path = Path(text).expanduser()
        if path.exists():
            yield path
    for index in range(len(files)):
        yield files.image_path(index)
        label = files.label_path(index)
        if label is not None:
            yield label


def files_to_evaluate(arguments: argparse.Namespace, loaded: Loaded) -> tuple[Files, str]:
    """The images that the command line names, and what to call them: their split or folder.

    Raises:
        DataError: there are none, or no labels where scores are asked for.
    """
    config = loaded.config
    if arguments.images:
        max_pixels = config.data.max_pixels
        files = image_files(arguments.images, spec=loaded.spec, max_pixels=max_pixels)
        return files, files.split

    split = arguments.split or config.data.val_split
    files = build.split_files(config, split, expected=loaded.spec)
    if files.labels is not None:
        return files, split

    if not (arguments.output or arguments.submit):
        raise DataError(
            f"split '{split}' has no labels to score it by; give --output DIR to predict it, or "
            "--submit FILE.zip to hand it in"
        )
    if arguments.compare:
        raise DataError(f"split '{split}' has no labels: --compare has no scores to compare")
    return files, split


def ways_to_infer(arguments: argparse.Namespace, loaded: Loaded) -> list[InferenceOptions]:
    """The way that counts, then those of --compare.

    Raises:
        DataError: a way cannot be read, or does not suit the model.
    """
    first = build.inference_options(
        loaded.config.eval,
        scales=arguments.scales,
        flip=arguments.flip,
        combine=arguments.combine,
        over=arguments.over,
        refine=arguments.refine,
    )
    ways = [first, *(compared_way(text, first) for text in arguments.compare)]

    multiscale = loaded.model.multiscale
    if multiscale != "single" and any(way.combine == "max" for way in ways):
        raise DataError(
            f"a maximum over scales is for single-scale models, and this one is {multiscale}: "
            "leave max out"
        )
    for way in ways:
        require_refinable(loaded.model, way)
    return ways


def compared_way(text: str, first: InferenceOptions) -> InferenceOptions:
    """A --compare item: scales, then what else differs from the first way.

    Examples are 0.5,1,2 or 0.5,1,2+flip or 0.5,1,2+refine=0.3 or 1,2+max+probabilities.

    Raises:
        DataError: it cannot be read so.
    """
    listed, *words = text.split("+")
    try:
        scales = read_scales(listed)
    except argparse.ArgumentTypeError as error:
        raise DataError(
            f"--compare: '{listed}' is not a list of scales ({error}); write e.g. 0.5,1,2"
        ) from error

    changes: dict[str, Any] = {}
    for word in words:
        if word in ("flip", "noflip"):
            changes["flip"] = word == "flip"
        elif word in COMBINE:
            changes["combine"] = word
        elif word in OVER:
            changes["over"] = word
        elif word.startswith("refine="):
            try:
                changes["refine"] = read_refine(word.removeprefix("refine="))
            except argparse.ArgumentTypeError as error:
                raise DataError(f"--compare: '{word}' in '{text}': {error}") from error
        else:
            known = ", ".join((*COMBINE, *OVER, "refine=SHARE"))
            raise DataError(f"--compare: '{word}' in '{text}' is none of flip, noflip, {known}")
    return replace(first, scales=scales, **changes)


# --- images without labels ---


def predict_and_report(job: EvaluationJob, processes: Processes, *, of_split: bool) -> int:
    """Predict every image, and say what was written where.

    Returns how many images could not be predicted.
    """
    if of_split and processes.is_main:
        logger.warning("split '%s' has no labels: predictions only, no metrics", job.split)
    own_failures, sheet, videos = predict_images(job, processes)
    failures = [line for of_rank in processes.gather(own_failures) for line in of_rank]
    page = sheet.report(
        processes,
        title=f"Predictions: {job.split}",
        way=job.ways[0].describe(),
        videos=videos,
        failures=failures,
    )
    if not processes.is_main:
        return len(failures)

    if job.output is not None:
        job.output.write("index.html", contact_page(page))
        legend = json.dumps(legend_of(job.files.spec), indent=2) + "\n"
        job.output.write("classes.json", legend)
        logger.info(
            "%d of %d images predicted at %s; %s in %s",
            len(job.files) - len(failures),
            len(job.files),
            job.ways[0].describe(),
            ", ".join(job.kinds),
            job.output.folder,
        )
        logger.info("look at them: %s", job.output.folder / "index.html")
    for line in failures[:FAILURES_SHOWN]:
        logger.warning("not predicted: %s", line)
    if len(failures) > FAILURES_SHOWN:
        logger.warning("and %d more were not predicted", len(failures) - FAILURES_SHOWN)
    if failures and job.submission is not None:
        logger.warning("%s is not written: predictions are missing", job.submission.archive)
    return len(failures)


@torch.inference_mode()
def predict_images(
    job: EvaluationJob, processes: Processes
) -> tuple[list[str], ContactSheet, dict[str, str]]:
    """Predict this rank's images.

    Returns a sentence for each that could not be predicted, small pictures of the others, and the
    videos that were written. One damaged image of thousands ends nothing. Images are decoded ahead
    in threads.
    """
    config, files, options = job.loaded.config, job.files, job.ways[0]

    def read(index: int) -> np.ndarray:
        image = files.read_image(index)
        if config.data.long_edge is None:
            return image
        return resize_long_edge(image, None, long_edge=config.data.long_edge)[0]

    own = range(processes.rank, len(files), processes.world_size)
    workers = max(1, config.eval.workers)
    failures = []
    with (
        ImageWriter() as writer,
        opened_video(job) as video,
        progress_bar(
            total=len(own),
            desc=options.describe(),
            unit="image",
            show=processes.is_main,
            leave=False,
        ) as bar,
    ):
        add = job.image_writer(writer)
        sheet = ContactSheet(files, job.kinds, writer)
        for index, image in prefetch(read, own, workers=workers):
            try:
                if isinstance(image, Exception):
                    raise image
                tensor = torch.from_numpy(image).permute(2, 0, 1)
                size = (image.shape[0], image.shape[1])
                with named_images([files.name(index)]):
                    result = infer(job.loaded.model, tensor[None], options, job.needs, size=size)
                add(index, tensor, result)
                if job.output is not None:
                    sheet.add(index, tensor, result)
                if video is not None:
                    video.add(index, tensor, result)
            except (DataError, ModelError) as error:
                logger.warning("%s", error)
                failures.append(str(error))
            bar.update()
    return failures, sheet, {} if video is None else video.written


def opened_video(job: EvaluationJob) -> VideoOutput | nullcontext[None]:
    """The videos to write, or nothing."""
    if job.video_suffix is None or job.output is None:
        return nullcontext()
    return VideoOutput(job.output, job.files, suffix=job.video_suffix)


def image_results(
    model: MultiScaleModel,
    loader: Iterable[dict[str, Any]],
    *,
    options: InferenceOptions,
    processes: Processes,
    images: int,
    needs: Needs = LABELS_ONLY,
    image_by_image: bool = False,
    show: bool = True,
    cost: InferenceMeter | None = None,
) -> Iterator[tuple[dict[str, Any], int, ImageResult]]:
    """(batch, position in it, result [1, ...]) of every image this rank is given.

    Where a batch has labels, results have their size. What inference takes is added to `cost`.
    `image_by_image` infers each image of a batch alone, so that the size of batches changes no bit.
    The progress bar counts the `images` of all ranks.
    """
    measured = cost or InferenceMeter(next(model.parameters()).device)
    with progress_bar(
        total=images,
        desc=options.describe(),
        unit="image",
        show=show and processes.is_main,
        leave=False,
    ) as bar:
        for batch in loader:
            count = len(batch["names"])
            sized = batch["label"] if "label" in batch else batch["image"]
            size = (sized.shape[-2], sized.shape[-1])

            if image_by_image:
                for position in range(count):
                    image = batch["image"][position : position + 1]
                    with named_images([batch["names"][position]]), measured.of(1) as area:
                        result = infer(model, image, options, needs, size=size, area=area)
                    yield batch, position, result
            else:
                with named_images(batch["names"]), measured.of(count) as area:
                    result = infer(model, batch["image"], options, needs, size=size, area=area)
                for position in range(count):
                    yield batch, position, result.at(position)
            bar.update(min(count * processes.world_size, images - bar.n))


@contextmanager
def named_images(names: Sequence[str]) -> Iterator[None]:
    """Say for which images the network's answer is not a number.

    Such an answer would be scored and drawn as the first class.

    Raises:
        ModelError: names the images.
    """
    try:
        yield
    except NonFiniteError as error:
        reason = str(error).rstrip(".")
        raise ModelError(
            f"{', '.join(names)}: {reason}; try eval.precision=fp32 or bf16, or another checkpoint"
        ) from error


# --- a split with labels ---


def score_and_report(job: EvaluationJob, processes: Processes) -> None:
    """Score the split in every way that was asked for; write the results, then print them."""
    results = score_split(job, processes)
    if not processes.is_main:
        return

    if job.output is not None:
        write_results(
            job.output,
            job.loaded,
            files=job.files,
            split=job.split,
            ways=job.ways,
            results=results,
        )
    print_results(job.loaded, job.split, job.ways, results)
    if job.output is not None:
        folder = job.output.folder
        logger.info("wrote %s and %s", folder / "metrics.json", folder / "report.html")


def score_split(job: EvaluationJob, processes: Processes) -> list[Evaluation]:
    """Evaluate the first way to infer with all scores and pictures, the others for comparison."""
    config, files, model = job.loaded.config, job.files, job.loaded.model
    criterion = build.criterion(config, files).to(processes.device).main
    results = []
    for number, options in enumerate(job.ways):
        # A loss needs the logits of a whole image at once, which tiles are there to avoid.
        is_whole = options.tile is None
        common: dict[str, Any] = {
            "spec": job.loaded.spec,
            "options": options,
            "processes": processes,
            "images": len(files),
            "image_by_image": config.runtime.deterministic,
            "criterion": criterion if is_whole else None,
        }
        loader = build.split_loader(config, files, processes)
        if number > 0:
            results.append(evaluate(model, loader, **common))
            continue

        scores = image_scores(job, processes)

        def add_scores(
            index: int, predicted: np.ndarray, label: np.ndarray, scores: ImageScores = scores
        ) -> None:
            scores.update(predicted, label, files.label_path(index))

        with ImageWriter() as writer:
            result = evaluate(
                model,
                loader,
                attention=is_whole and attends(model, options),
                needs=job.needs,
                on_image=scored_image_writer(job, writer),
                on_maps=add_scores,
                **common,
            )
        scores.load(processes.gather(scores.state()))
        results.append(_with_image_scores(result, scores))
    return results


def scored_image_writer(job: EvaluationJob, writer: ImageWriter) -> OnImage | None:
    """A function that queues what is to be written of an image that is scored."""
    if job.output is None:
        return job.image_writer(writer) if job.writes_images else None

    examples = ExampleWriter(job.output, job.files, writer)
    if not job.writes_images:
        return examples.add
    add_pictures = job.image_writer(writer)

    def add(index: int, image: Tensor, result: ImageResult) -> None:
        examples.add(index, image, result)
        add_pictures(index, image, result)

    return add


def image_scores(job: EvaluationJob, processes: Processes) -> ImageScores:
    """Counters of boundary F, and of iIoU where every label has an instance map of its size."""
    spec, files, config = job.files.spec, job.files, job.loaded.config
    maps = 0
    if spec.name == "cityscapes" and (job.own_size or config.eval.score_native):
        labels = [files.label_path(index) for index in range(len(files))]
        maps = sum(path is not None and instances_path(path) is not None for path in labels)
        if maps < len(files):
            logger.info(
                "no iIoU: %d of %d labels have an instance map beside them", maps, len(files)
            )

    return ImageScores(
        names=spec.names,
        to_train=spec.to_train,
        categories=[item.category for item in spec.classes],
        ignore_label=spec.ignore_label,
        with_instances=maps == len(files),
    )


def _with_image_scores(result: Evaluation, scores: ImageScores) -> Evaluation:
    result = replace(result, boundary_f=scores.boundary.scores())
    if scores.instances is None:
        return result
    matrix = result.matrix.numpy()
    return replace(
        result,
        iiou=scores.instances.iiou(matrix),
        category_iiou=scores.instances.category_iiou(matrix),
    )


@dataclass
class _Tally:
    """What one rank has counted so far.

    It is kept by the index of the image, so that it can be added up in one order for any number of
    ranks.
    """

    matrix: ConfusionMatrix
    scored: int = 0
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    shares: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@torch.inference_mode()
def evaluate(
    model: MultiScaleModel,
    loader: Iterable[dict[str, Any]],
    *,
    spec: DatasetSpec,
    options: InferenceOptions,
    processes: Processes,
    images: int,
    criterion: Judge | None = None,
    attention: bool = False,
    needs: Needs = LABELS_ONLY,
    image_by_image: bool = False,
    show: bool = True,
    on_image: OnImage | None = None,
    on_maps: OnMaps | None = None,
) -> Evaluation:
    """Score `model` on every image of `loader` once.

    With `image_by_image` the result has the same bits for any number of ranks.

    Args:
        images: how many there are over all ranks; a lost or doubled one raises.
        criterion: `criterion(logits, label)` gives the terms of the validation loss, which is the
            mean over images.
        attention: also find how much each scale counts for each class.
        needs: what `on_image(index, image, result)` reads besides labels; it sees each image.
        on_maps: `on_maps(index, predicted, label)` sees the uint8 maps [H, W] of each image in a
            thread, while the network goes on.

    Raises:
        RuntimeError: not every image was scored exactly once.
        ModelError: the network's answer for an image is not a number.
    """
    was_training, start = model.training, time.monotonic()
    model.eval()
    tally = _Tally(_empty_matrix(spec, processes))
    cost = InferenceMeter(processes.device)
    needs = needs | Needs(logits=criterion is not None, attention=attention)

    workers = 2 if on_maps or attention else 0
    with ImageWriter(workers=workers) as background:
        for batch, position, result in image_results(
            model,
            loader,
            options=options,
            processes=processes,
            images=images,
            needs=needs,
            image_by_image=image_by_image,
            show=show,
            cost=cost,
        ):
            index, host_label = int(batch["index"][position]), batch["label"][position]
            label = host_label[None].to(processes.device, non_blocking=True)

            # A matrix for each image; their sum is that of the split.
            matrix = _empty_matrix(spec, processes)
            matrix.update(result.label, label)
            tally.matrix.merge(matrix)
            tally.scored += 1
            tally.per_image[index] = matrix.numpy()

            if criterion is not None:
                tally.losses[index] = _loss(criterion, result, label)
            if attention:
                assert result.prediction is not None
                shares = share_maps(result.prediction)
                label_map = host_label.numpy()
                background.call(_note_shares, tally, index, shares, label_map, options.scales)
            if on_maps is not None:
                predicted = result.label[0].cpu().numpy()
                background.call(on_maps, index, predicted, host_label.numpy())
            if on_image is not None:
                on_image(index, batch["image"][position], result)

    model.train(was_training)
    seconds = time.monotonic() - start
    evaluation = _add_up(tally, processes, images=images, seconds=seconds)
    return replace(evaluation, cost=joined_cost(processes.gather(cost.total())))


def _empty_matrix(spec: DatasetSpec, processes: Processes) -> ConfusionMatrix:
    return ConfusionMatrix(
        spec.num_classes, ignore_label=spec.ignore_label, device=processes.device
    )


def _loss(criterion: Judge, result: ImageResult, label: Tensor) -> float | None:
    """The sum of the loss terms of one image, None where they do not fit into memory."""
    assert result.prediction is not None
    try:
        terms = criterion(result.prediction.logits, label)
        return float(torch.stack(list(terms.values())).sum())
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
    """Count how much each scale counts for each class of one image, in the order of `scales`.

    Inference does not keep that order: it works from the largest scale down.
    """
    ordered = {scale: shares[scale] for scale in scales}
    tally.shares[index] = attention_share(ordered, label, tally.matrix.num_classes)


def _add_up(tally: _Tally, processes: Processes, *, images: int, seconds: float) -> Evaluation:
    """Add up what all ranks counted, in the order of the images.

    Floating-point sums depend on their order, so this one is the same for any number of ranks.
    """
    tally.matrix.reduce(processes.sum)
    gathered = processes.gather((tally.per_image, tally.losses, tally.shares, tally.scored))
    scored = sum(of_rank[3] for of_rank in gathered)
    per_image, losses, shares = (
        {index: value for of_rank in gathered for index, value in sorted(of_rank[part].items())}
        for part in range(3)
    )
    if not scored == len(per_image) == images:
        raise RuntimeError(
            f"{scored} images were scored, {len(per_image)} different ones, where the split has "
            f"{images}: the result is void"
        )

    # The loss is that of all images or of none.
    loss = None
    known = [losses[index] for index in sorted(losses) if losses[index] is not None]
    if known and len(known) == len(losses):
        loss = math.fsum(known) / len(known)

    return Evaluation(
        matrix=tally.matrix,
        images=scored,
        loss=loss,
        per_image=per_image,
        shares=_mean_shares([shares[index] for index in sorted(shares)]),
        seconds=seconds,
    )


def _mean_shares(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Mean weight of every scale per class, float64 [S, C].

    Each part is the sum of weights and the number of pixels of one image.
    """
    if not parts:
        return None
    weights = sum(part[0] for part in parts)
    pixels = sum(part[1] for part in parts)
    return divide(weights, np.broadcast_to(pixels, parts[0][0].shape))
