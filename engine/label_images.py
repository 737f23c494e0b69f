"""An auto-labelling job: its images, settings and thresholds, and the page about its labels."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hmsa.datasets import DataError, Files, LabelPolicy, read_label
from hmsa.network import InferenceOptions
from hmsa.network.model import Hierarchical
from hmsa.utils.files.image_places import STILL_IMAGE, ImagePlace
from hmsa.utils.labelling.answers import answers_of
from hmsa.utils.labelling.autolabels import (
    Entry,
    LabelTree,
    confidence_name,
    fingerprint,
    label_name,
    read_record,
    soft_label_seconds,
)
from hmsa.utils.labelling.label_record import file_sha256, is_label_of
from hmsa.utils.report.report import AutolabelReport, Example, Picture
from hmsa.utils.report.visualise import colorize, heat

from .build import Loaded

PANELS = 6  # images shown in the report
TIMED_READS = 8  # labels read to measure how long one takes

# What decides which pixels of an answer are kept, and so may change where answers are kept.
THRESHOLD_SETTINGS = ("threshold", "class_thresholds", "keep_share")
# What an answer does not depend on: how it is cut, joined with other labels and written.
_AFTER_THE_ANSWER = (
    *THRESHOLD_SETTINGS,
    *("label_ids", "confidence", "policy", "compared_with_human", "classes"),
)


@dataclass(frozen=True)
class LabellingJob:
    """What is labelled with what, and where the labels go.

    `settings` is everything the labels depend on, thresholds included.
    """

    loaded: Loaded
    files: Files
    options: InferenceOptions
    policy: LabelPolicy
    output: Path
    thresholds: np.ndarray  # float64 [C]
    settings: dict[str, Any]
    keeps_answers: bool = False

    def with_thresholds(self, thresholds: np.ndarray) -> LabellingJob:
        """The same with these thresholds [C], but for those that the configuration sets."""
        spec, chosen = self.loaded.spec, thresholds.astype(np.float64)
        for name, value in self.loaded.config.autolabel.class_thresholds.items():
            chosen[spec.index_of(name)] = value
        by_class = dict(zip(spec.names, chosen.tolist(), strict=True))
        settings = {**self.settings, "class_thresholds": by_class}
        return replace(self, thresholds=chosen, settings=settings)

    @property
    def fingerprint(self) -> str:
        """A hash of the settings, which every label carries."""
        return fingerprint(self.settings)

    @property
    def answers_fingerprint(self) -> str:
        """A hash of all that the network's answers depend on."""
        return fingerprint(
            {key: value for key, value in self.settings.items() if key not in _AFTER_THE_ANSWER}
        )

    def answer_path(self, index: int) -> Path:
        """Where the answer for an image is kept."""
        return answers_of(self.output) / f"{self.files.output_name(index)}.png"

    def image_place(self, index: int) -> ImagePlace:
        """The file of an image, and its frame where that is a video."""
        frame = STILL_IMAGE
        if self.files.frames is not None:
            frame = int(self.files.frames[index])
        return ImagePlace(self.files.image_path(index), frame)

    def entry(self, index: int) -> Entry:
        """The names of one image and its files."""
        name, section = self.files.output_name(index), self.loaded.config.autolabel
        return Entry(
            image=f"{self.files.name(index)}{self.files.image_path(index).suffix}",
            label=label_name(name, label_ids=section.label_ids),
            confidence=confidence_name(name) if section.confidence else None,
        )

    def entries(self) -> list[Entry]:
        """Those of all images."""
        return [self.entry(index) for index in range(len(self.files))]

    def is_done(self, index: int, made_with: str) -> bool:
        """Whether a whole label of this image, made with these settings, is there already."""
        entry = self.entry(index)
        record = read_record(self.output / entry.label)

        # Images are hashed only where there is a label that may be theirs.
        if record is None or record.get("made_with") != made_with:
            return False
        image_sha256 = self.image_sha256(index)
        if not is_label_of(
            record, made_with=made_with, image=entry.image, image_sha256=image_sha256
        ):
            return False

        # A damaged answer costs no more than its inference, when it is needed.
        if self.keeps_answers and not self.answer_path(index).is_file():
            return False
        if entry.confidence is None:
            return True
        beside = read_record(self.output / entry.confidence)
        return beside is not None and beside["made_with"] == made_with

    def image_sha256(self, index: int) -> str:
        """Hash of the image's file, by which a replaced one shows itself; "" without a file."""
        path = self.files.image_path(index)
        try:
            state = path.stat()
        except OSError:
            return ""
        return _sha256_of_state(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _sha256_of_state(path: Path, size: int, changed_ns: int, inode: int) -> str:
    """The hash of a file in this state; a video is hashed once for all of its frames."""
    return file_sha256(path) or ""


def human_label(
    job: LabellingJob, index: int, size: tuple[int, int]
) -> tuple[np.ndarray | None, str | None]:
    """The label that people drew of an image, uint8 [H, W] train ids, and what is wrong with it.

    Either is None where there is none.
    """
    if job.files.labels is None:
        return None, None
    try:
        return job.files.read_label(index, image_size=size), None
    except DataError as error:
        return None, str(error)


def labelling_report(job: LabellingJob, tree: LabelTree) -> AutolabelReport:
    """The page about a tree of labels."""
    spec, content = job.loaded.spec, tree.manifest
    facts = {"mean confidence": f"{content['mean_confidence']:.3f}"}
    if tree.agreement is not None and tree.agreement.sum():
        agreement = 100 * np.trace(tree.agreement) / tree.agreement.sum()
        facts["agrees with people %"] = f"{agreement:.1f}"

    # What the page shows beside the labels is read from what the job has left.
    from .label_curve import threshold_curve

    miou = job.loaded.validation.get("miou")
    by_class = job.loaded.validation.get("iou")
    teacher_iou = None
    if isinstance(by_class, dict):
        scores = [by_class.get(name) for name in spec.names]
        teacher_iou = np.array([math.nan if iou is None else iou for iou in scores], dtype=float)

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
        panels=label_panels(job, tree),
        panels_rule="The images are evenly spread over all that have a label.",
        teacher_iou=teacher_iou,
        teacher_miou=miou,
        teacher_was_calibrated=isinstance(job.loaded.model, Hierarchical)
        and bool(job.loaded.model.attention_bias),
        curve=threshold_curve(job, tree),
        failed=[(failure["image"], failure["why"]) for failure in content["failures"]],
    )


def label_panels(job: LabellingJob, tree: LabelTree) -> list[Example]:
    """image | drawn by people | automatic label | confidence, as in figure 4 of the paper.

    The images are evenly spread over those that have a label.
    """
    from .label_curve import sureness_of

    palette, lines = job.loaded.spec.palette, {line["image"]: line for line in tree.lines}
    labelled = [
        (index, lines[entry.image])
        for index, entry in enumerate(job.entries())
        if entry.image in lines
    ]
    step = max(1, math.ceil(len(labelled) / PANELS))

    panels = []
    for index, line in labelled[::step]:
        # The image was there when it was labelled, and may be gone by now.
        try:
            image = job.files.read_image(index)
        except DataError:
            continue

        pictures = [Picture.photo("image", image)]
        human, _ = human_label(job, index, (image.shape[0], image.shape[1]))
        if human is not None:
            pictures.append(Picture.drawing("drawn by people", colorize(human, palette)))
        automatic = colorize(read_back(job, line["label"]), palette)
        pictures.append(Picture.drawing("automatic label", automatic))
        sureness = sureness_of(job, index, line)
        if sureness is not None:
            caption = "confidence, 0.3 (dark) to 1 (bright)"
            pictures.append(Picture.drawing(caption, heat(sureness[1], low=0.3)))
        path = str(job.files.image_path(index))
        remark = f"{100 * line['kept']:.1f} % kept"
        panels.append(Example(line["image"], pictures, remark, path=path))
    return panels


def read_back(job: LabellingJob, label: str) -> np.ndarray:
    """A label of the tree as training reads it, uint8 [H, W] train ids."""
    return read_label(
        job.output / label,
        spec=job.loaded.spec,
        label_ids=job.settings["label_ids"],
        max_pixels=job.loaded.config.data.max_pixels,
    )


def reading_seconds(job: LabellingJob, tree: LabelTree) -> dict[str, float]:
    """Measured seconds to read the label of one image in training.

    Hard labels are read as written here; soft ones would be float32 for each class.
    """
    if not tree.lines:
        return {}

    hard = []
    for line in tree.lines[:TIMED_READS]:
        begin = time.perf_counter()
        read_back(job, line["label"])
        hard.append(time.perf_counter() - begin)

    values = tree.manifest["pixels"] // len(tree.lines) * job.loaded.spec.num_classes
    soft = soft_label_seconds(job.output, values=values)
    measured = {"hard label (PNG), decoded to train ids": statistics.median(hard)}
    if soft is not None:
        measured["soft label (float32), from the page cache"] = soft
    return measured
