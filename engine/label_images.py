"""What an auto-labelling job is, and the page that tells what came of it. A helper of autolabel.py, like assemble.py."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hmsa.datasets import DataError, Files, LabelPolicy, read_label
from hmsa.utils.labelling.autolabels import (
    Entry,
    Tree,
    confidence_name,
    fingerprint,
    label_name,
    read_record,
    soft_label_seconds,
)
from hmsa.utils.report.report import AutolabelReport, Example, Picture
from hmsa.utils.report.visualise import colorize

from .build import Inference, Loaded

PANELS = 6  # images shown in the report


@dataclass(frozen=True)
class Job:
    """One labelling: what is labelled with what, into where. `settings` is everything the labels depend on, thresholds [C] included."""

    loaded: Loaded
    files: Files
    inference: Inference
    policy: LabelPolicy
    output: Path
    thresholds: np.ndarray
    settings: dict[str, Any]

    def with_thresholds(self, thresholds: np.ndarray) -> Job:
        """The same with these thresholds, but for those of single classes that the configuration sets."""
        spec, chosen = self.loaded.spec, thresholds.astype(np.float64)
        for name, value in self.loaded.config.autolabel.class_thresholds.items():
            chosen[spec.index_of(name)] = value
        return replace(
            self,
            thresholds=chosen,
            settings={
                **self.settings,
                "class_thresholds": dict(zip(spec.names, chosen.tolist(), strict=True)),
            },
        )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    def entry(self, index: int) -> Entry:
        """The names of one image and its files."""
        name, section = self.files.name(index), self.loaded.config.autolabel
        return Entry(
            image=f"{name}{self.files.image_path(index).suffix}",
            label=label_name(name, label_ids=section.label_ids),
            confidence=confidence_name(name) if section.confidence else None,
        )

    def entries(self) -> list[Entry]:
        return [self.entry(index) for index in range(len(self.files))]

    def is_done(self, index: int, made_with: str) -> bool:
        """Whether a whole label of this image, made with these settings, is there already."""
        entry, size = self.entry(index), self.image_bytes(index)
        record = read_record(self.output / entry.label)
        if record is None or (record["made_with"], record["image"], record["image_bytes"]) != (
            made_with,
            entry.image,
            size,
        ):
            return False
        beside = None if entry.confidence is None else read_record(self.output / entry.confidence)
        return entry.confidence is None or (beside is not None and beside["made_with"] == made_with)

    def image_bytes(self, index: int) -> int:
        """Size of the image's file, by which a file that was replaced shows itself; -1 where there is none."""
        try:
            return self.files.image_path(index).stat().st_size
        except OSError:
            return -1


def human_label(
    job: Job, index: int, size: tuple[int, int]
) -> tuple[np.ndarray | None, str | None]:
    """The label that people drew of an image, in train ids uint8 [H, W], where there is one, or what is wrong with it."""
    if job.files.labels is None:
        return None, None
    try:
        return job.files.read_label(index, image_size=size), None
    except DataError as error:
        return None, str(error)


def report(job: Job, tree: Tree) -> AutolabelReport:
    """The page of a tree."""
    spec, content = job.loaded.spec, tree.manifest
    facts = {"mean confidence": f"{content['mean_confidence']:.3f}"}
    if tree.agreement is not None and tree.agreement.sum():
        facts["agrees with people %"] = (
            f"{100 * np.trace(tree.agreement) / tree.agreement.sum():.1f}"
        )
    return AutolabelReport(
        title=f"Automatic labels: {job.files.split}",
        names=spec.names,
        colors=spec.palette,
        images=content["labelled"],
        kept=tree.counts,
        predicted=tree.predicted,
        pixels=content["pixels"],
        thresholds=job.settings["class_thresholds"],
        threshold=job.settings["threshold"],
        checkpoint_sha256=job.loaded.sha256,
        settings={key: value for key, value in job.settings.items() if key != "classes"},
        facts=facts,
        human=tree.human,
        agreement=tree.agreement,
        hard_bytes=content["bytes"]["labels"],
        confidence_bytes=content["bytes"]["confidence"],
        reading_seconds=reading_seconds(job, tree),
        panels=panels(job, tree),
        failed=[(failure["image"], failure["why"]) for failure in content["failures"]],
    )


def panels(job: Job, tree: Tree) -> list[Example]:
    """image | coarse | auto-label, as in figure 4, of images evenly spread over those that have a label."""
    spec, lines = job.loaded.spec, {line["image"]: line for line in tree.lines}
    done = [
        (index, lines[entry.image])
        for index, entry in enumerate(job.entries())
        if entry.image in lines
    ]
    found = []
    for index, line in done[:: -(-len(done) // PANELS) or 1]:
        try:
            image = job.files.read_image(index)
        except DataError:  # it was there when it was labelled
            continue
        human, _ = human_label(job, index, (image.shape[0], image.shape[1]))
        pictures = [Picture.photo("image", image)]
        if human is not None:
            pictures.append(Picture.drawing("drawn by people", colorize(human, spec.palette)))
        pictures.append(
            Picture.drawing(
                "automatic label", colorize(read_back(job, line["label"]), spec.palette)
            )
        )
        found.append(Example(line["image"], pictures, f"{100 * line['kept']:.1f} % kept"))
    return found


def read_back(job: Job, label: str) -> np.ndarray:
    """A label of the tree as training reads it, uint8 [H, W] train ids."""
    return read_label(
        job.output / label,
        spec=job.loaded.spec,
        label_ids=job.settings["label_ids"],
        max_pixels=job.loaded.config.data.max_pixels,
    )


def reading_seconds(job: Job, tree: Tree) -> dict[str, float]:
    """Measured seconds to read the label of an image in training: hard as written here, and soft, float32 for each class."""
    if not tree.lines:
        return {}
    taken = []
    for line in tree.lines[:8]:
        begin = time.perf_counter()
        read_back(job, line["label"])
        taken.append(time.perf_counter() - begin)
    values = tree.manifest["pixels"] // len(tree.lines) * job.loaded.spec.num_classes
    found: dict[str, float | None] = {
        "hard label (PNG), decoded to train ids": statistics.median(taken),
        "soft label (float32), from the page cache": soft_label_seconds(job.output, values=values),
    }
    return {name: seconds for name, seconds in found.items() if seconds is not None}
