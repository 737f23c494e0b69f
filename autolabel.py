"""Label images with a trained network: hard labels where it is sure enough, ignore elsewhere (paper, section 4).

    python autolabel.py --checkpoint teacher.pt --images DIR --output DIR --threshold 0.9
    torchrun --nproc-per-node 8 autolabel.py --checkpoint teacher.pt --split train_extra data.root=/data/cityscapes --output DIR

The job may be killed and started again at any moment: finished labels are kept when they were made with the same checkpoint and settings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.cli import parse_with_overrides, run_door


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help answers at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the teacher: a checkpoint of train.py, or weights with --config")
    parser.add_argument("--config", type=Path, help="YAML configuration, for weights that carry none")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="PATH", help="folders, files or globs of images")
    source.add_argument("--list", type=Path, metavar="FILE", help="a text file with one image a line")
    source.add_argument("--split", help="a split of the configuration's data set, e.g. train_extra")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the labels and manifest.json go")
    parser.add_argument("--threshold", type=float, help="keep a pixel at this probability or above (default: autolabel.threshold)")
    parser.add_argument("--scales", nargs="+", type=float, metavar="S", help="scales of inference (default: autolabel.scales)")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="average with the mirrored image")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="label the I-th (from 0) of N parts: for independent array jobs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the configuration, e.g. data.root=/data")
    return parse_with_overrides(parser, argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the slow imports below

import fcntl  # noqa: E402
import json  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import assemble  # noqa: E402
from assemble import Inference, Loaded  # noqa: E402
from datasets import DataError, Files, image_files, normalise  # noqa: E402
from network.inference import label_and_confidence  # noqa: E402
from utils.autolabels import (  # noqa: E402
    AutolabelError,
    apply_thresholds,
    confidence_name,
    encode_label,
    fingerprint,
    label_name,
    manifest,
    read_record,
)
from utils.checkpoint import write_atomically  # noqa: E402
from utils.image_writer import ImageWriter  # noqa: E402
from utils.logbook import logger, start_logging  # noqa: E402
from utils.png import write_file  # noqa: E402
from utils.prefetch import prefetch  # noqa: E402
from utils.processes import Processes, join, recorded  # noqa: E402
from utils.progress import progress_bar  # noqa: E402
from utils.run_folder import make_writable  # noqa: E402
from utils.runtime import prepare_runtime  # noqa: E402

USER_ERRORS = (*assemble.USER_ERRORS, AutolabelError)


@dataclass(frozen=True)
class Job:
    """One labelling: what is labelled with what, into where. `settings` is everything the labels depend on."""

    loaded: Loaded
    files: Files
    inference: Inference
    thresholds: np.ndarray
    label_ids: str
    with_confidence: bool
    output: Path
    settings: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    def label_path(self, index: int) -> Path:
        return self.output / label_name(self.files.name(index), label_ids=self.label_ids)

    def confidence_path(self, index: int) -> Path:
        return self.output / confidence_name(self.files.name(index))

    def is_done(self, index: int) -> bool:
        """Whether a whole label made with these settings is there already."""
        record = read_record(self.label_path(index))
        there = record is not None and record["made_with"] == self.fingerprint
        return there and (not self.with_confidence or read_record(self.confidence_path(index)) is not None)


def set_up(arguments: argparse.Namespace, processes: Processes) -> Job:
    """Load the teacher, find the images, settle thresholds."""
    make_writable(arguments.output, setting="--output DIR")
    loaded = assemble.load_model(arguments.checkpoint, config_file=arguments.config, overrides=arguments.overrides, device=processes.device)
    section, runtime = loaded.config.autolabel, loaded.config.runtime
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
    if arguments.split:
        files = assemble.split_files(loaded.config, arguments.split, expected=loaded.spec, labels="none")
    else:
        files = image_files(arguments.images or [arguments.list], spec=loaded.spec)
    inference = Inference.of(section, scales=arguments.scales, flip=arguments.flip)
    threshold = section.threshold if arguments.threshold is None else arguments.threshold
    if not 0 <= threshold <= 1:
        raise AutolabelError(f"--threshold: {threshold:g} is no probability; choose one from 0 to 1, e.g. 0.9")
    thresholds = np.full(loaded.spec.num_classes, threshold)
    for name, value in section.class_thresholds.items():
        thresholds[loaded.spec.index_of(name)] = value
    settings = {"checkpoint_sha256": loaded.sha256, "scales": list(inference.scales), "flip": inference.flip, "combine": inference.combine,
                "over": inference.over, "precision": inference.precision, "tile": inference.tile, "threshold": threshold,
                "class_thresholds": dict(zip(loaded.spec.names, thresholds.tolist(), strict=True)), "label_ids": section.label_ids,
                "confidence": section.confidence, "classes": loaded.spec.to_dict()}  # fmt: skip
    return Job(loaded, files, inference, thresholds, section.label_ids, section.confidence, arguments.output, settings)


def claim(job: Job) -> None:
    """Refuse a tree that was made with other settings; otherwise note ours in it."""
    path = job.output / "settings.json"
    ours = (json.dumps(job.settings, indent=2, sort_keys=True) + "\n").encode()
    if path.is_file() and path.read_bytes() != ours:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in sorted(job.settings.keys() | theirs.keys()) if job.settings.get(key) != theirs.get(key)]
        raise AutolabelError(f"{job.output}: holds labels made with other settings ({', '.join(differing)}); "
                             "choose another --output, or delete the folder")
    if not path.is_file():
        write_atomically(path, ours)


@contextmanager
def alone(output: Path, part: int, parts: int) -> Iterator[None]:
    """Hold the lock of one part of the tree, so that the same job is not run twice at once."""
    with open(output / f".lock-{part}-of-{parts}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AutolabelError(f"{output}: another job is writing part {part} of {parts} right now; wait for it, or choose "
                                 "another --output") from error
        yield


def parse_shard(text: str) -> tuple[int, int]:
    """--shard I/N."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise AutolabelError(f"--shard: '{text}' is not I/N with I from 0 to N-1, e.g. 3/16")
    return int(index), int(count)


@torch.inference_mode()
def label_images(job: Job, indices: list[int], *, show: bool) -> dict[str, str]:
    """Label the images that are not done yet; returns image name -> reason for those that failed."""
    failures: dict[str, str] = {}
    parameter = next(job.loaded.model.parameters())
    with ImageWriter() as writer, progress_bar(total=len(indices), desc="label", unit="image", show=show) as bar:
        for index, image in prefetch(job.files.read_image, indices, workers=job.loaded.config.autolabel.workers):
            bar.update()
            if isinstance(image, Exception):
                if not isinstance(image, DataError):
                    raise image
                failures[job.files.name(index)] = str(image)
                logger.warning("%s", image)
                continue
            tensor = normalise(torch.from_numpy(image)[None].to(parameter.device), dtype=parameter.dtype)
            logits = job.inference.predict(job.loaded.model, tensor, on_fallback=lambda sentence: logger.warning("%s", sentence)).logits
            label, confidence = (result[0].cpu().numpy() for result in label_and_confidence(logits))
            writer.call(write_label, job, index, label, confidence)
    return failures


def write_label(job: Job, index: int, label: np.ndarray, confidence: np.ndarray) -> None:
    """Threshold one prediction and write it; the confidence image goes first, since the label file is what says that an image is done."""
    spec = job.loaded.spec
    hard = apply_thresholds(label, confidence, thresholds=job.thresholds, ignore_label=spec.ignore_label)
    record = {"made_with": job.fingerprint, "image": f"{job.files.name(index)}{job.files.image_path(index).suffix}",
              "mean_confidence": round(float(confidence.mean(dtype=np.float64)), 6),
              "predicted": np.bincount(label.reshape(-1), minlength=256)[: spec.num_classes].tolist(),
              "counts": np.bincount(hard.reshape(-1), minlength=256)[: spec.num_classes].tolist()}  # fmt: skip
    if job.with_confidence:
        write_file(job.confidence_path(index), encode_label((confidence * 255).astype(np.uint8), {"made_with": job.fingerprint}))
    ids = spec.to_raw[hard] if job.label_ids == "raw" else hard
    write_file(job.label_path(index), encode_label(ids, record))


def finish(job: Job, failures: dict[str, str]) -> bool:
    """Compile manifest.json and images.jsonl from the label files; false when some are still missing."""
    records, lines, missing = [], [], []
    for index in range(len(job.files)):
        record = read_record(job.label_path(index))
        name = job.files.name(index)
        if record is None or record["made_with"] != job.fingerprint:
            missing.append({"image": name, "why": failures.get(name, "not labelled yet")})
            continue
        records.append(record)
        pixels = sum(record["predicted"])
        confidence = job.confidence_path(index).relative_to(job.output).as_posix() if job.with_confidence else None
        lines.append({"image": record["image"], "label": job.label_path(index).relative_to(job.output).as_posix(), "confidence": confidence,
                      "kept": round(sum(record["counts"]) / pixels, 6), "mean_confidence": record["mean_confidence"],
                      "counts": dict(zip(job.loaded.spec.names, record["counts"], strict=True))})
    content = manifest(job.settings, records, missing, job.loaded.spec.names)
    write_atomically(job.output / "images.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    write_atomically(job.output / "manifest.json", (json.dumps(content, indent=2) + "\n").encode())
    logger.info("%d of %d images labelled, %.1f %% of the pixels kept at %s", len(records), len(job.files), 100 * content["kept_share"],
                job.inference.describe())  # fmt: skip
    logger.info("%-22s%14s%10s", "class", "pixels kept", "kept %")
    for name, row in content["per_class"].items():
        logger.info("%-22s%14d%10s", name, row["kept"], "-" if row["kept_share"] is None else f"{100 * row['kept_share']:.1f}")
    for failure in missing[:10]:
        logger.warning("not labelled: %s (%s)", failure["image"], failure["why"])
    return not missing


def main(arguments: argparse.Namespace) -> int:
    """Label this process's part; the main rank then compiles the manifest. Status 1 when an image could not be labelled."""
    with join() as processes:
        start_logging(main=processes.is_main)
        with processes.agreement(*USER_ERRORS):
            shard, shards = parse_shard(arguments.shard)
            job = set_up(arguments, processes)
            claim(job)
        part, parts = shard * processes.world_size + processes.rank, shards * processes.world_size
        with alone(job.output, part, parts):
            own = [index for index in range(part, len(job.files), parts) if not job.is_done(index)]
            failures = label_images(job, own, show=processes.is_main)
        gathered = {name: why for of_rank in processes.gather(failures) for name, why in of_rank.items()}
        complete = finish(job, gathered) if processes.is_main else True
        return 0 if complete or (shards > 1 and not gathered) else 1


if __name__ == "__main__":
    sys.exit(run_door(recorded(lambda: main(ARGUMENTS)), user_errors=lambda: USER_ERRORS))
