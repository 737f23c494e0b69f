"""Label images with a trained network: hard labels where it is sure enough, ignore elsewhere (paper, section 4).

    python autolabel.py --checkpoint teacher.pt --images DIR --output DIR --threshold 0.9
    torchrun --nproc-per-node 8 autolabel.py --checkpoint teacher.pt --split train_extra data.root=/data/cityscapes --output DIR
    python autolabel.py --verify --output DIR

The job may be killed and started again at any moment, also with another number of processes: finished labels are kept when they were made with the
same checkpoint and settings. DIR then holds the labels under the images' names, manifest.json, a line per image in images.jsonl, and report.html.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .command_line import parse_with_overrides, run_door


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="the teacher: a checkpoint of train.py, or weights with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="YAML configuration, for weights that carry none"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images", nargs="+", metavar="PATH", help="folders, files or globs of images"
    )
    source.add_argument(
        "--list", type=Path, metavar="FILE", help="a .txt file with one image a line"
    )
    source.add_argument(
        "--split",
        help="a split of the configuration's data set, e.g. train_extra, or of another one: cityscapes:train_extra",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="where the labels and manifest.json go",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="keep a pixel at this probability or above (default: autolabel.threshold)",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        metavar="S",
        help="scales of inference (default: autolabel.scales)",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average with the mirrored image",
    )
    parser.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="label the I-th (from 0) of N parts: for independent array jobs",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only check the finished labels in --output, to the last pixel",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data",
    )
    arguments = parse_with_overrides(parser, argv)
    if not arguments.verify and arguments.checkpoint is None:
        parser.error("--checkpoint is needed: the teacher")
    if (
        not arguments.verify
        and arguments.images is None
        and arguments.list is None
        and arguments.split is None
    ):
        parser.error("one of --images, --list and --split is needed: what to label")
    return arguments


import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import DataError, Files, LabelPolicy, image_files, normalise
from hmsa.network import ModelError
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.png import write_file
from hmsa.utils.files.prefetch import prefetch
from hmsa.utils.labelling.autolabel_check import problems_of
from hmsa.utils.labelling.autolabels import (
    AutolabelError,
    agreement_of,
    compile_tree,
    encode_label,
    failure_path,
    fingerprint,
    write_failure,
)
from hmsa.utils.labelling.thresholds import (
    BINS,
    HardLabel,
    confidence_histogram,
    hard_label,
    quantile_thresholds,
)
from hmsa.utils.labelling.work_tree import alone, claim, one_at_a_time, sweep, write_once
from hmsa.utils.processes import Processes, join, recorded
from hmsa.utils.report.report import write_report
from hmsa.utils.runtime import prepare_runtime
from hmsa.utils.training.logbook import logger, start_logging
from hmsa.utils.training.progress import progress_bar
from hmsa.utils.training.run_folder import make_writable

from . import build as assemble
from .build import Inference, Loaded
from .label_images import Job, human_label, report

USER_ERRORS = (*assemble.USER_ERRORS, AutolabelError)
DAY = (
    24 * 60.0
)  # minutes: how long the processes of a job wait for the slowest, which may have large images


def set_up(arguments: argparse.Namespace, processes: Processes) -> Job:
    """Load the teacher, find the images, settle everything but thresholds that must be measured."""
    make_writable(arguments.output, setting="--output DIR")
    dataset, _, split = (arguments.split or "").rpartition(":")
    overrides = (
        [f"data.dataset={dataset}", *arguments.overrides] if dataset else arguments.overrides
    )
    loaded = assemble.load_model(
        arguments.checkpoint,
        config_file=arguments.config,
        overrides=overrides,
        device=processes.device,
    )
    section, runtime = loaded.config.autolabel, loaded.config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
    policy = LabelPolicy(classes=section.policy)
    for name in section.policy:
        loaded.spec.index_of(name)
    files = find_files(arguments, split, loaded, policy)
    inference = Inference.of(section, scales=arguments.scales, flip=arguments.flip)
    threshold = section.threshold if arguments.threshold is None else arguments.threshold
    if not 0 <= threshold <= 1:
        raise AutolabelError(
            f"--threshold: {threshold:g} is no probability; choose one from 0 to 1, e.g. 0.9"
        )
    settings = {
        "checkpoint_sha256": loaded.sha256,
        "scales": list(inference.scales),
        "flip": inference.flip,
        "combine": inference.combine,
        "over": inference.over,
        "precision": inference.precision,
        "parameters": str(next(loaded.model.parameters()).dtype),
        "tile": inference.tile,
        "overlap": inference.overlap,
        "threshold": threshold,
        "keep_share": section.keep_share,
        "label_ids": section.label_ids,
        "confidence": section.confidence,
        "policy": dict(section.policy),
        "compared_with_human": files.labels is not None,
        "classes": loaded.spec.to_dict(),
    }
    job = Job(loaded, files, inference, policy, arguments.output, np.zeros(0), settings)
    require_distinct(job, arguments.images or ())
    return job.with_thresholds(np.full(loaded.spec.num_classes, threshold))


def find_files(
    arguments: argparse.Namespace, split: str, loaded: Loaded, policy: LabelPolicy
) -> Files:
    """The images, with the labels that people drew of them where the split has any."""
    if split:
        try:
            files = assemble.split_files(loaded.config, split, expected=loaded.spec)
        except DataError as error:
            if policy.needs_human or error.kind not in ("missing", "pairs"):
                raise
            files = assemble.split_files(loaded.config, split, expected=loaded.spec, labels="none")
            logger.info("not compared with labels drawn by people: %s", error)
        if policy.needs_human:
            files.require_labels()
        return files
    if policy.needs_human:
        raise AutolabelError(
            "autolabel.policy takes classes from labels drawn by people, which only a --split has; use --split, or drop the policy"
        )
    if arguments.list is not None and arguments.list.suffix != ".txt":
        raise AutolabelError(f"--list: {arguments.list} must be a .txt file with one image a line")
    return image_files(
        arguments.images or [arguments.list],
        spec=loaded.spec,
        max_pixels=loaded.config.data.max_pixels,
    )


def require_distinct(job: Job, inputs: Sequence[str]) -> None:
    """AutolabelError where a label would take the place of an image or of another label, or would be found among the images the next time."""
    output = job.output.resolve()
    inside = next(
        (
            place
            for place in inputs
            if Path(place).is_dir() and output.is_relative_to(Path(place).resolve())
        ),
        None,
    )
    if inside is not None or any(
        job.files.image_path(index).is_relative_to(output) for index in range(len(job.files))
    ):
        raise AutolabelError(
            f"--output: {job.output} and the images share a folder, and labels would be taken for images; choose another --output"
        )
    taken: set[str] = set()
    for entry in job.entries():
        for name in (entry.label, entry.confidence):
            if name in taken:
                raise AutolabelError(
                    f"{entry.image}: its label and that of another image would both be called {name}; rename one of the images"
                )
            if name is not None:
                taken.add(name)


def predictions(
    job: Job, indices: Sequence[int], *, what: str, show: bool
) -> Iterator[tuple[int, tuple[Tensor, Tensor] | Exception]]:
    """(index, (label uint8 [H, W], confidence [H, W]) on the device) of every image; a user error stands where an image could not be predicted.

    Images are decoded ahead, and nothing waits for a GPU: its results are on their way while the next image is sent there.
    """
    parameter = next(job.loaded.model.parameters())

    def read(index: int) -> Tensor:
        image = torch.from_numpy(job.files.read_image(index))[None]
        return image.pin_memory() if parameter.is_cuda else image

    with progress_bar(total=len(indices), desc=what, unit="image", show=show) as bar:
        for index, image in prefetch(read, indices, workers=job.loaded.config.autolabel.workers):
            try:
                if isinstance(image, Exception):
                    raise image
                tensor = normalise(
                    image.to(parameter.device, non_blocking=True), dtype=parameter.dtype
                )
                label, confidence = job.inference.label(
                    job.loaded.model, tensor, with_confidence=True, on_fallback=warn
                )
                assert confidence is not None
                yield index, (label[0], confidence[0])
            except (DataError, ModelError) as error:
                yield index, error
            bar.update()


def warn(sentence: str) -> None:
    logger.warning("%s", sentence)


@torch.inference_mode()
def measured_thresholds(job: Job, processes: Processes) -> np.ndarray:
    """Thresholds [C] that keep autolabel.keep_share of each class, from images evenly spread over all; measured once for all jobs."""
    section, classes = job.loaded.config.autolabel, job.loaded.spec.num_classes
    assert section.keep_share is not None
    count = min(section.keep_share_images, len(job.files))
    sample = [position * len(job.files) // count for position in range(count)]
    path, made_with = (
        job.output / "thresholds.json",
        fingerprint({**job.settings, "sample": [job.files.name(index) for index in sample]}),
    )
    if not processes.gather(path.is_file())[0]:
        histogram = torch.zeros(classes, BINS, dtype=torch.int64, device=processes.device)
        for _, found in predictions(
            job,
            sample[processes.rank :: processes.world_size],
            what="thresholds",
            show=processes.is_main,
        ):
            if not isinstance(found, Exception):
                histogram += confidence_histogram(*found, classes=classes)
        at_most = np.full(classes, job.settings["threshold"])
        thresholds = quantile_thresholds(
            processes.sum(histogram).cpu().numpy(), keep_share=section.keep_share, at_most=at_most
        )
        content = {
            "made_with": made_with,
            "images": count,
            "thresholds": dict(zip(job.loaded.spec.names, thresholds.tolist(), strict=True)),
        }
        if processes.is_main:
            write_once(path, (json.dumps(content, indent=2) + "\n").encode())
        processes.barrier()
    with processes.agreement(*USER_ERRORS):
        content = json.loads(path.read_bytes())
        if content["made_with"] != made_with:
            raise AutolabelError(
                f"{path}: was measured with other settings; choose another --output, or delete the folder"
            )
    return np.array([content["thresholds"][name] for name in job.loaded.spec.names])


@torch.inference_mode()
def label_images(job: Job, indices: Sequence[int], *, show: bool) -> int:
    """Label these images; returns how many of them could not be labelled."""
    failed: list[int] = []
    thresholds = torch.from_numpy(job.thresholds).to(
        next(job.loaded.model.parameters()).device, torch.float32
    )
    with ImageWriter() as writer:
        for index, found in predictions(job, indices, what="label", show=show):
            if isinstance(found, Exception):
                failed.append(index)
                note_failure(job, index, str(found))
            else:
                hard = hard_label(
                    *found, thresholds=thresholds, ignore_label=job.loaded.spec.ignore_label
                )
                writer.call(write_label, job, index, hard.to_host(), failed.append)
    return len(failed)


def write_label(job: Job, index: int, hard: HardLabel, on_failure: Callable[[int], None]) -> None:
    """Write one label; the confidence image goes first, since the label file is what says that an image is done. Runs in a thread of the writer."""
    hard.wait()
    spec, entry, label = job.loaded.spec, job.entry(index), hard.label.numpy()
    human, problem = human_label(job, index, (label.shape[0], label.shape[1]))
    wrong = int(hard.not_numbers)
    if wrong:
        problem = f"{job.files.image_path(index)}: the network's answer is not a number at {wrong} pixels; try autolabel.precision=fp32"
    if problem is not None and (job.policy.needs_human or wrong):
        on_failure(index)
        note_failure(job, index, problem)
        return
    if problem is not None:
        warn(problem)
    merged = (
        label
        if job.policy.is_neutral
        else job.policy.merge(label, spec=spec, human=human, confidence=None)
    )
    record: dict[str, Any] = {
        "made_with": job.fingerprint,
        "image": entry.image,
        "image_bytes": job.image_bytes(index),
        "mean_confidence": hard.mean_confidence,
        "predicted": hard.predicted.tolist(),
        "counts": np.bincount(merged.reshape(-1), minlength=256)[: spec.num_classes].tolist(),
    }
    if not job.policy.is_neutral:
        record["kept"] = hard.kept.tolist()
    if job.files.labels is not None:
        record["human"] = (
            None
            if human is None
            else np.bincount(human.reshape(-1), minlength=256)[: spec.num_classes].tolist()
        )
        record["agreement"] = (
            [] if human is None else agreement_of(human, label, classes=spec.num_classes)
        )
    if entry.confidence is not None:
        write_file(
            job.output / entry.confidence,
            encode_label(hard.confidence.numpy(), {"made_with": job.fingerprint}),
        )
    ids = spec.to_raw[merged] if job.settings["label_ids"] == "raw" else merged
    write_file(job.output / entry.label, encode_label(ids, record))
    failure_path(job.output / entry.label).unlink(missing_ok=True)


def note_failure(job: Job, index: int, why: str) -> None:
    """Say and note why an image has no label; one it may have from before is of another image."""
    warn(why)
    label = job.output / job.entry(index).label
    label.unlink(missing_ok=True)
    write_failure(label, made_with=job.fingerprint, why=why)


def finish(job: Job) -> bool:
    """Compile manifest.json, images.jsonl and report.html from the label files; false when some are still missing."""
    with one_at_a_time(job.output):
        tree = compile_tree(job.output, job.settings, job.entries(), job.loaded.spec.names)
        if tree.manifest["complete"]:
            sweep(job.output)
        tree.write(job.output)
        write_report(job.output / "report.html", report(job, tree))
    content = tree.manifest
    logger.info(
        "%d of %d images labelled, %.1f %% of the pixels kept at %s: %s",
        content["labelled"],
        len(job.files),
        100 * content["kept_share"],
        job.inference.describe(),
        job.output / "report.html",
    )
    logger.info("%-22s%12s%14s%10s", "class", "threshold", "pixels kept", "kept %")
    for (name, row), threshold in zip(content["per_class"].items(), job.thresholds, strict=True):
        share = "-" if row["kept_share"] is None else f"{100 * row['kept_share']:.1f}"
        logger.info("%-22s%12.3g%14d%10s", name, threshold, row["kept"], share)
    for failure in content["failures"][:10]:
        logger.warning("not labelled: %s (%s)", failure["image"], failure["why"])
    return bool(content["complete"])


def parse_shard(text: str) -> tuple[int, int]:
    """--shard I/N."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise AutolabelError(f"--shard: '{text}' is not I/N with I from 0 to N-1, e.g. 3/16")
    return int(index), int(count)


def verify(folder: Path) -> int:
    """Check the finished labels in `folder`; status 1 when something is wrong with them."""
    start_logging(main=True)
    labels, problems = problems_of(folder)
    for problem in problems[:50]:
        warn(problem)
    logger.info(
        "%d labels checked, %s",
        labels,
        f"{len(problems)} problems found" if problems else "all as they should be",
    )
    return 1 if problems else 0


def main(arguments: argparse.Namespace) -> int:
    """Label what this job is given and is not done yet; then compile the manifest. Status 1 when an image could not be labelled."""
    if arguments.verify:
        return verify(arguments.output)
    with ExitStack() as held, join(timeout_minutes=DAY) as processes:
        start_logging(main=processes.is_main)
        with processes.agreement(*USER_ERRORS):
            shard, shards = parse_shard(arguments.shard)
            job = set_up(arguments, processes)
        if job.settings["keep_share"] is not None:
            job = job.with_thresholds(measured_thresholds(job, processes))
        with processes.agreement(*USER_ERRORS):
            if processes.is_main:
                claim(
                    job.output, job.settings, (job.output / entry.label for entry in job.entries())
                )
                held.enter_context(alone(job.output, shard, shards))
        own, made_with = (
            range(shard + shards * processes.rank, len(job.files), shards * processes.world_size),
            job.fingerprint,
        )
        undone = processes.gather([index for index in own if not job.is_done(index, made_with)])
        rest = sorted(
            index for of_rank in undone for index in of_rank
        )  # shared out anew, so that all ranks end together
        failed = sum(
            processes.gather(
                label_images(
                    job, rest[processes.rank :: processes.world_size], show=processes.is_main
                )
            )
        )
        complete = finish(job) if processes.is_main else True
        return 0 if complete or (shards > 1 and not failed) else 1


def command(argv: list[str] | None = None) -> int:
    """The command line: parse, run, and end with one sentence and status 2 where the user is mistaken."""
    arguments = parse_arguments(argv)
    return run_door(recorded(lambda: main(arguments)), user_errors=lambda: USER_ERRORS)
