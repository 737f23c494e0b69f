"""Label images with a trained network: `hmsa autolabel`.

A pixel gets a hard label where the network is sure enough and is ignored elsewhere (paper, section
4). Labels are written one by one, each whole or not at all, so that the job can be killed at any
moment and started again; manifest.json, images.jsonl and report.html are compiled from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import DataError, Files, LabelPolicy, image_files, normalise
from hmsa.network import InferenceOptions, ModelError
from hmsa.network.inference import predict_label, prepare_for_inference, require_refinable
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.outputs import inside, require_apart
from hmsa.utils.files.prefetch import prefetch
from hmsa.utils.files.writing import write_file
from hmsa.utils.labelling.answers import KeptAnswer, answers_of, read_answer, write_answer
from hmsa.utils.labelling.autolabel_check import problems_of
from hmsa.utils.labelling.autolabels import (
    AutolabelError,
    agreement_of,
    compile_tree,
    empty_classes,
    encode_label,
    failure_path,
    fingerprint,
    starved_classes,
    write_failure,
)
from hmsa.utils.labelling.thresholds import (
    BINS,
    HardLabel,
    confidence_histogram,
    hard_label,
    quantile_thresholds,
)
from hmsa.utils.labelling.work_tree import (
    alone,
    claim,
    forget_thresholds,
    one_at_a_time,
    read_thresholds,
    require_not_drawn,
    sweep,
    write_thresholds,
)
from hmsa.utils.processes import Processes, join
from hmsa.utils.report.report import write_report
from hmsa.utils.report.verdict import verdict_of
from hmsa.utils.runtime import kernel_search, prepare_runtime
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.training.run_folder import make_writable
from hmsa.utils.words import UserError, invocation

from . import build
from .build import Loaded, OpenedCheckpoint
from .label_images import THRESHOLD_SETTINGS, LabellingJob, human_label, labelling_report

# How long the processes of a job wait for the slowest, which may have large images.
WAIT_MINUTES = 24 * 60.0


class ImageLabel(NamedTuple):
    """What the network says of one image, on the device."""

    label: Tensor  # uint8 [H, W]
    confidence: Tensor  # float32 [H, W]
    image_sha256: str  # of the file that was read
    is_kept: bool = False  # the answer was read from its file


LabelOrError = ImageLabel | Exception


def main(arguments: argparse.Namespace) -> int:
    """Label what this job is given and is not done yet, then compile the manifest.

    Returns the exit status: 1 when an image could not be labelled.
    """
    if arguments.verify:
        return verify_labels(arguments.output)

    # Read before the processes join: the configuration says on which device.
    shard, shards = parse_shard(arguments.shard)
    opened = open_teacher(arguments)
    device = opened.config.runtime.device
    with ExitStack() as held, join(device=device, timeout_minutes=WAIT_MINUTES) as processes:
        start_logging(main=processes.is_main)
        held.enter_context(build.explained(opened.config, "auto-labelling"))

        # A user error on one rank is raised on all: none waits for one that has ended.
        with processes.agreement(UserError):
            job = prepare_labelling(arguments, opened, processes)
        if job.settings["keep_share"] is not None:
            job = job.with_thresholds(measured_thresholds(job, processes))

        # The folder is filled with one set of settings, and each part of it by one job at a time.
        with processes.agreement(UserError):
            if processes.is_main:
                labels = (job.output / entry.label for entry in job.entries())
                may_change = THRESHOLD_SETTINGS if job.keeps_answers else ()
                claim(job.output, job.settings, labels, may_change=may_change)
                held.enter_context(alone(job.output, shard, shards))

        # What is not done yet is shared out anew over all ranks, so that they end together.
        first, step = shard + shards * processes.rank, shards * processes.world_size
        made_with = job.fingerprint
        undone = [
            index
            for index in range(first, len(job.files), step)
            if not job.is_done(index, made_with)
        ]
        rest = sorted(index for of_rank in processes.gather(undone) for index in of_rank)
        own = rest[processes.rank :: processes.world_size]
        failed = sum(processes.gather(label_images(job, own, show=processes.is_main)))

        complete = finish(job) if processes.is_main else True
        if complete or (shards > 1 and not failed):
            return 0
        return 1


def verify_labels(folder: Path) -> int:
    """Check the finished labels in `folder`; status 1 when something is wrong with them."""
    start_logging(main=True)
    labels, problems = problems_of(folder)
    for problem in problems[:50]:
        warn(problem)
    verdict = f"{len(problems)} problems found" if problems else "all as they should be"
    logger.info("%d labels checked, %s", labels, verdict)
    return 1 if problems else 0


def parse_shard(text: str) -> tuple[int, int]:
    """The numbers I and N of --shard I/N.

    Raises:
        AutolabelError: the text is something else.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise AutolabelError(f"--shard: '{text}' is not I/N with I from 0 to N-1, e.g. 3/16")
    return int(index), int(count)


# --- what is asked for ---


def open_teacher(arguments: argparse.Namespace) -> OpenedCheckpoint:
    """Read the teacher's checkpoint; a --split may name the data set that it is of.

    Raises:
        UserError: a file cannot be read or is damaged.
    """
    dataset, _, _ = (arguments.split or "").rpartition(":")
    overrides = list(arguments.overrides)
    if dataset:
        overrides.insert(0, f"data.dataset={dataset}")
    return build.open_checkpoint(
        arguments.checkpoint, config_file=arguments.config, overrides=overrides
    )


def prepare_labelling(
    arguments: argparse.Namespace, opened: OpenedCheckpoint, processes: Processes
) -> LabellingJob:
    """Build the teacher, find the images, choose everything but thresholds that are measured.

    Raises:
        UserError: for everything that a user may have got wrong.
    """
    make_writable(arguments.output, setting="--output DIR")
    _, _, split = (arguments.split or "").rpartition(":")
    loaded = build.build_loaded(opened, device=processes.device)
    section, runtime = loaded.config.autolabel, loaded.config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)

    policy = LabelPolicy(classes=section.policy)
    for name in section.policy:
        loaded.spec.index_of(name)
    files = find_files(arguments, split, loaded, policy)
    options = build.inference_options(
        section, scales=arguments.scales, flip=arguments.flip, refine=arguments.refine
    )
    require_refinable(loaded.model, options)

    threshold = section.threshold if arguments.threshold is None else arguments.threshold
    if not 0 <= threshold <= 1:
        raise AutolabelError(
            f"--threshold: {threshold:g} is no probability; choose one from 0 to 1, e.g. 0.9"
        )

    # The settings name the teacher as it was trained. What labels is a copy with its batch norms
    # folded, as that of `hmsa eval`.
    settings = settings_of(loaded, files, options, threshold)
    try:
        teacher = prepare_for_inference(loaded.model, autocast_dtype=options.autocast_dtype)
    except ModelError as error:
        raise AutolabelError(f"{loaded.path}: {error}") from error

    job = LabellingJob(
        loaded=replace(loaded, model=teacher),
        files=files,
        options=options,
        policy=policy,
        output=arguments.output,
        thresholds=np.zeros(0),
        settings=settings,
        keeps_answers=section.keep_answers or answers_of(arguments.output).is_dir(),
    )
    require_distinct(job, arguments.images or ())
    return job.with_thresholds(np.full(loaded.spec.num_classes, threshold))


def settings_of(
    loaded: Loaded, files: Files, options: InferenceOptions, threshold: float
) -> dict[str, Any]:
    """Everything that the labels depend on, but for the thresholds of the classes."""
    section = loaded.config.autolabel
    # Only where there are any, so that labels made without them stay valid.
    calibrated = {}
    if bias := build.used_attention_bias(loaded.model, options):
        calibrated["attention_bias"] = bias
    refined = {}
    if options.refined_scales:
        refined["refine"] = options.refine
    return {
        **calibrated,
        **refined,
        "checkpoint_sha256": loaded.sha256,
        "scales": list(options.scales),
        "flip": options.flip,
        "combine": options.combine,
        "over": options.over,
        "precision": section.precision,
        "parameters": str(next(loaded.model.parameters()).dtype),
        "tile": options.tile,
        "overlap": options.overlap,
        "threshold": threshold,
        "keep_share": section.keep_share,
        "label_ids": section.label_ids,
        "confidence": section.confidence,
        "policy": dict(section.policy),
        "compared_with_human": files.labels is not None,
        "classes": loaded.spec.to_dict(),
    }


def find_files(
    arguments: argparse.Namespace, split: str, loaded: Loaded, policy: LabelPolicy
) -> Files:
    """The images, with the labels that people drew of them where the split has any.

    Raises:
        UserError: the images are not there, or the policy needs labels and there are none.
    """
    if split:
        return split_to_label(split, loaded, policy)

    if policy.needs_human:
        raise AutolabelError(
            "autolabel.policy takes classes from labels drawn by people, which only a --split "
            "has; use --split, or drop the policy"
        )
    if arguments.list is not None and arguments.list.suffix != ".txt":
        raise AutolabelError(f"--list: {arguments.list} must be a .txt file with one image a line")
    return image_files(
        arguments.images or [arguments.list],
        spec=loaded.spec,
        max_pixels=loaded.config.data.max_pixels,
    )


def split_to_label(split: str, loaded: Loaded, policy: LabelPolicy) -> Files:
    """The files of a split, without labels where it has none and none are needed.

    Raises:
        DataError: the split is not there, or lacks labels that the policy needs.
    """
    try:
        files = build.split_files(loaded.config, split, expected=loaded.spec)
    except DataError as error:
        if policy.needs_human or error.kind not in ("missing", "pairs"):
            raise
        files = build.split_files(loaded.config, split, expected=loaded.spec, labels="none")
        logger.info("not compared with labels drawn by people: %s", error)
    if policy.needs_human:
        files.require_labels()
    return files


def require_distinct(job: LabellingJob, inputs: Sequence[str]) -> None:
    """Refuse an output where labels would meet images or each other.

    Raises:
        UserError: a label would take the place of an image or of another label, would be found
            among the images the next time, or would lie outside the output folder.
    """
    read = [Path(path).expanduser() for path in inputs if Path(path).expanduser().exists()]
    for index in range(len(job.files)):
        label = job.files.label_path(index)
        read += [job.files.image_path(index), *([] if label is None else [label])]
    require_apart(job.output, read)

    taken: set[str] = set()
    for entry in job.entries():
        for name in (entry.label, entry.confidence):
            if name is None:
                continue
            inside(job.output, name)
            if name in taken:
                raise AutolabelError(
                    f"{entry.image}: its label and that of another image would both be called "
                    f"{name}; rename one of the images"
                )
            taken.add(name)


# --- thresholds ---


@torch.inference_mode()
def measured_thresholds(job: LabellingJob, processes: Processes) -> np.ndarray:
    """Thresholds [C] that keep autolabel.keep_share of each class.

    They are measured on images evenly spread over all, once for all jobs that fill the folder.

    Raises:
        AutolabelError: the folder holds thresholds that were measured with other settings.
    """
    count = min(job.loaded.config.autolabel.keep_share_images, len(job.files))
    sample = [position * len(job.files) // count for position in range(count)]
    names = [job.files.name(index) for index in sample]
    made_with = fingerprint({**job.settings, "sample": names})

    # Rank 0 looks for all: a job beside this one may write the file at any moment.
    path = job.output / "thresholds.json"
    if job.keeps_answers and processes.is_main:
        forget_thresholds(path, made_with=made_with)
    if not processes.gather(path.is_file())[0]:
        measure_thresholds(job, sample, path, made_with, processes)

    with processes.agreement(UserError):
        thresholds = read_thresholds(path, made_with=made_with, names=job.loaded.spec.names)
    return thresholds


def measure_thresholds(
    job: LabellingJob, sample: Sequence[int], path: Path, made_with: str, processes: Processes
) -> None:
    """Measure the thresholds on the images of `sample`, shared out over the ranks; write `path`."""
    classes, section = job.loaded.spec.num_classes, job.loaded.config.autolabel
    own = sample[processes.rank :: processes.world_size]

    histogram = torch.zeros(classes, BINS, dtype=torch.int64, device=processes.device)
    for _, found in labels_of(job, own, what="thresholds", show=processes.is_main):
        if not isinstance(found, Exception):
            histogram += confidence_histogram(found.label, found.confidence, classes=classes)

    assert section.keep_share is not None
    thresholds = quantile_thresholds(
        processes.sum(histogram).cpu().numpy(),
        keep_share=section.keep_share,
        at_most=np.full(classes, job.settings["threshold"]),
    )
    by_class = dict(zip(job.loaded.spec.names, thresholds.tolist(), strict=True))
    if processes.is_main:
        write_thresholds(path, by_class, made_with=made_with, images=len(sample))
    processes.barrier()


# --- labels ---


def labels_of(
    job: LabellingJob, indices: Sequence[int], *, what: str, show: bool
) -> Iterator[tuple[int, LabelOrError]]:
    """(index, label with its confidence) of every image, on the device.

    A user error stands in the place of what could not be predicted. Images are decoded ahead, and
    nothing waits for a GPU: its results are on their way while the next image is sent there. An
    answer that was kept is read instead.
    """
    model = job.loaded.model
    parameter = next(model.parameters())
    answers_made_with = job.answers_fingerprint
    in_parts = bool(job.options.refined_scales)
    # Weights may be kept in half precision, images never are.
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32

    def read(index: int) -> tuple[Tensor | KeptAnswer, str]:
        before = job.image_sha256(index)
        if job.keeps_answers:
            answer = read_answer(
                job.answer_path(index),
                made_with=answers_made_with,
                image=job.entry(index).image,
                image_sha256=before,
            )
            if answer is not None:
                return answer, before

        image = torch.from_numpy(job.files.read_image(index))[None]
        if job.image_sha256(index) != before:
            raise DataError(f"{job.files.image_path(index)}: was replaced while it was read")
        return (image.pin_memory() if parameter.is_cuda else image), before

    workers = job.loaded.config.autolabel.workers
    with progress_bar(total=len(indices), desc=what, unit="image", show=show) as bar:
        for index, found in prefetch(read, indices, workers=workers):
            try:
                if isinstance(found, Exception):
                    raise found
                image, image_sha256 = found
                if isinstance(image, KeptAnswer):
                    kept = image.label.to(parameter.device), image.confidence.to(parameter.device)
                    yield index, ImageLabel(*kept, image_sha256, is_kept=True)
                    bar.update()
                    continue

                on_device = image.to(parameter.device, non_blocking=True)
                normalised = normalise(on_device, dtype=dtype)
                with kernel_search.for_size(image.shape, in_parts=in_parts):
                    label, confidence = predict_label(
                        model, normalised, job.options, with_confidence=True, on_fallback=warn
                    )
                assert confidence is not None
                yield index, ImageLabel(label[0], confidence[0], image_sha256)
            except (DataError, ModelError) as error:
                yield index, error
            bar.update()


def warn(sentence: str) -> None:
    """Log a warning."""
    logger.warning("%s", sentence)


@torch.inference_mode()
def label_images(job: LabellingJob, indices: Sequence[int], *, show: bool) -> int:
    """Label these images; returns how many of them could not be labelled."""
    device = next(job.loaded.model.parameters()).device
    thresholds = torch.from_numpy(job.thresholds).to(device, torch.float32)
    failed: list[int] = []

    # Labels are encoded and written in threads, while the network works on the next images.
    with ImageWriter() as writer:
        for index, found in labels_of(job, indices, what="label", show=show):
            if isinstance(found, Exception):
                failed.append(index)
                note_failure(job, index, str(found))
                continue
            answer = None
            if job.keeps_answers and not found.is_kept:
                # On its way to the host before the label is, whose arrival is waited for.
                answer = KeptAnswer(
                    found.label.to("cpu", non_blocking=True),
                    found.confidence.to("cpu", non_blocking=True),
                )
            hard = hard_label(
                found.label,
                found.confidence,
                thresholds=thresholds,
                ignore_label=job.loaded.spec.ignore_label,
            )
            image_sha256 = found.image_sha256
            writer.call(
                write_label, job, index, hard.to_host(), image_sha256, failed.append, answer
            )
    return len(failed)


def write_label(
    job: LabellingJob,
    index: int,
    hard: HardLabel,
    image_sha256: str,
    on_failure: Callable[[int], None],
    answer: KeptAnswer | None,
) -> None:
    """Write one label, its confidence image, and the answer that it is made of where it is to stay.

    Runs in a thread of the writer. The label goes last, since it is what says that an image is
    done.
    """
    hard.wait()
    spec, entry, label = job.loaded.spec, job.entry(index), hard.label.numpy()

    human, problem = human_label(job, index, (label.shape[0], label.shape[1]))
    not_numbers = int(hard.not_numbers)
    if not_numbers:
        problem = (
            f"{job.files.image_path(index)}: the network's answer is not a number at "
            f"{not_numbers} pixels; try autolabel.precision=fp32"
        )
    if problem is not None and (job.policy.needs_human or not_numbers):
        on_failure(index)
        note_failure(job, index, problem)
        return
    if problem is not None:
        warn(problem)

    merged = label
    if not job.policy.is_neutral:
        merged = job.policy.merge(label, spec=spec, human=human, confidence=None)
    record = {
        "image_sha256": image_sha256,
        **label_record(job, index, hard, merged=merged, human=human),
    }

    if answer is not None:
        write_answer(
            job.answer_path(index),
            answer,
            made_with=job.answers_fingerprint,
            image=entry.image,
            image_sha256=image_sha256,
        )

    # Somebody may have corrected a label by hand since the folder was claimed.
    for name in (entry.confidence, entry.label):
        if name is not None:
            require_not_drawn(job.output / name)
    if entry.confidence is not None:
        content = encode_label(hard.confidence.numpy(), {"made_with": job.fingerprint})
        write_file(job.output / entry.confidence, content)
    ids = merged
    if job.settings["label_ids"] == "raw":
        ids = spec.to_raw[merged]
    write_file(job.output / entry.label, encode_label(ids, record))
    failure_path(job.output / entry.label).unlink(missing_ok=True)


def label_record(
    job: LabellingJob,
    index: int,
    hard: HardLabel,
    *,
    merged: np.ndarray,
    human: np.ndarray | None,
) -> dict[str, Any]:
    """What a label's file says about itself: with what it was made, and its counts.

    Args:
        hard: the network's label, on the host.
        merged: that label after the policy, uint8 [H, W] train ids.
        human: the label that people drew, uint8 [H, W] train ids, where there is one.
    """
    classes = job.loaded.spec.num_classes
    record: dict[str, Any] = {
        "made_with": job.fingerprint,
        "image": job.entry(index).image,
        "mean_confidence": hard.mean_confidence,
        "predicted": hard.predicted.tolist(),
        "counts": _class_counts(merged, classes),
    }
    if not job.policy.is_neutral:
        record["kept"] = hard.kept.tolist()

    # An image of a split with labels may lack its own.
    if human is not None:
        record["human"] = _class_counts(human, classes)
        record["agreement"] = agreement_of(human, hard.label.numpy(), classes=classes)
    elif job.files.labels is not None:
        record["human"], record["agreement"] = None, []
    return record


def _class_counts(label: np.ndarray, classes: int) -> list[int]:
    """Pixels of each class."""
    counts: list[int] = np.bincount(label.reshape(-1), minlength=256)[:classes].tolist()
    return counts


def note_failure(job: LabellingJob, index: int, why: str) -> None:
    """Say and note why an image has no label; one it may have from before is of another image."""
    warn(why)
    label = job.output / job.entry(index).label
    require_not_drawn(label)
    label.unlink(missing_ok=True)
    write_failure(label, made_with=job.fingerprint, why=why)


def finish(job: LabellingJob) -> bool:
    """Compile manifest.json, images.jsonl and report.html from the label files.

    Returns whether all images have a label.
    """
    # Of two jobs that finish together, the second sees all that the first has done.
    with one_at_a_time(job.output):
        tree = compile_tree(job.output, job.settings, job.entries(), job.loaded.spec.names)
        if tree.manifest["complete"]:
            sweep(job.output)
        images = {entry.image: job.image_place(index) for index, entry in enumerate(job.entries())}
        tree.write(job.output, images=images)
        report = labelling_report(job, tree)
        write_report(job.output / "report.html", report)

    content = tree.manifest
    logger.info(
        "%d of %d images labelled, %.1f %% of the pixels kept at %s: %s",
        content["labelled"],
        len(job.files),
        100 * content["kept_share"],
        build.describe_inference(job.loaded.model, job.options),
        job.output / "report.html",
    )
    logger.info("%-22s%12s%14s%10s", "class", "threshold", "pixels kept", "kept %")
    for (name, row), threshold in zip(content["per_class"].items(), job.thresholds, strict=True):
        share = "-" if row["kept_share"] is None else f"{100 * row['kept_share']:.1f}"
        logger.info("%-22s%12.3g%14d%10s", name, threshold, row["kept"], share)
    thresholds = report.curve.half_kept_at if report.curve is not None else {}
    for sentence in [*empty_classes(content, thresholds), *starved_classes(content, thresholds)]:
        warn(sentence)
    # What the page says first, where a training on these labels would do harm.
    verdict = verdict_of(report)
    if verdict.kind == "bad":
        warn(f"{verdict.headline} {verdict.reasons[0]}")
    for failure in content["failures"][:10]:
        logger.warning("not labelled: %s (%s)", failure["image"], failure["why"])
    if content["complete"]:
        logger.info("%s", next_commands(job))
    return bool(content["complete"])


def next_commands(job: LabellingJob) -> str:
    """What to do with finished labels, as commands to copy."""
    lines = [f"train on them: {invocation('train')} CONFIG.yaml data.extra.root={job.output}"]
    if job.keeps_answers:
        paths = answers_of(job.output).rglob("*.png")
        size = sum(path.stat().st_size for path in paths) / 2**20
        lines.append(
            f"another threshold: the same command with --threshold, which infers nothing again "
            f"({size:.1f} MiB in {answers_of(job.output)})"
        )
    return "\n".join(lines)
