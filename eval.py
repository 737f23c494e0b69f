"""Evaluate a checkpoint on a split, or predict any images with a checkpoint alone.

    python eval.py --checkpoint runs/x/checkpoints/best.pt [--split val] [--scales 0.5 1.0 2.0] [--flip] [--output DIR]
    python eval.py --checkpoint best.pt --images DIR_OR_FILES --output DIR

Runs alone or under torchrun, on CPU or GPUs, from the same command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.cli import parse_with_overrides, run_door

SAVES = ("labels", "colour", "overlay", "attention", "confidence", "probabilities", "scales")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help and a mistyped option answer at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="a checkpoint of train.py, or published weights together with --config")
    parser.add_argument("--config", type=Path, help="YAML configuration, for weights that carry none")
    parser.add_argument("--split", help="split to score (default: data.val_split of the configuration)")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="folders, files, globs, a .txt list or a video: predict these instead of a split")
    parser.add_argument("--scales", nargs="+", type=float, metavar="S", help="scales of inference (default: eval.scales)")
    parser.add_argument("--compare", nargs="+", default=[], metavar="LIST", help="further scale lists to score beside it, e.g. 1 0.5,1 0.25,0.5,1,2")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="average with the mirrored image (default: eval.flip)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where metrics.json, report.html and the pictures go")
    parser.add_argument("--save", nargs="+", default=None, choices=SAVES, metavar="KIND",
                        help=f"pictures to write for every image: {', '.join(SAVES)} (default: labels colour overlay with --images, none on a split)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the configuration, e.g. data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)
    if arguments.images and arguments.output is None:
        parser.error("--images needs --output DIR for the predictions")
    if arguments.images and arguments.split:
        parser.error("--images and --split exclude each other")
    return arguments


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the slow imports below

import json  # noqa: E402
import math  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import assemble  # noqa: E402
from assemble import Inference, Loaded  # noqa: E402
from datasets import DataError, DatasetSpec, Files, image_files, normalise  # noqa: E402
from network import Prediction  # noqa: E402
from network.inference import label_and_confidence, predicted_label  # noqa: E402
from network.multiscale import MultiScale  # noqa: E402
from utils.checkpoint import write_atomically  # noqa: E402
from utils.image_writer import ImageWriter  # noqa: E402
from utils.logbook import logger, start_logging  # noqa: E402
from utils.metrics import ConfusionMatrix, category_iou, iou_of, mean_of  # noqa: E402
from utils.processes import Processes, join, recorded  # noqa: E402
from utils.progress import progress_bar  # noqa: E402
from utils.report import ComparedRow, EvaluationReport, Example, Picture, write_report  # noqa: E402
from utils.run_folder import make_writable  # noqa: E402
from utils.runtime import prepare_runtime  # noqa: E402
from utils.visualise import colorize, error_map, heat, overlay, panel, scale_map, scale_shares  # noqa: E402

OnImage = Callable[[dict[str, Any], int, Prediction], None]


@dataclass
class Evaluation:
    """What one pass over a split found, the same on every rank."""

    matrix: ConfusionMatrix
    images: int
    loss: float | None
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    shares: np.ndarray | None = None


@dataclass
class _Tally:
    """What one rank has counted so far."""

    matrix: ConfusionMatrix
    shares: np.ndarray
    pixels: np.ndarray
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)


def predictions(model: MultiScale, loader: Iterable[dict[str, Any]], *, inference: Inference, processes: Processes, images: int,
                keep_scales: bool = False, show: bool = True) -> Iterable[tuple[dict[str, Any], int, Prediction]]:
    """(batch, position in it, prediction [1, C, H, W]) for every image this rank is given, with a progress bar for all of them."""
    parameter = next(model.parameters())
    with progress_bar(total=images, desc=inference.describe(), unit="image", show=show and processes.is_main, leave=False) as bar:
        for batch in loader:
            image = normalise(batch["image"].to(parameter.device, non_blocking=True), dtype=parameter.dtype)
            found = inference.predict(model, image, keep_scales=keep_scales, on_fallback=lambda sentence: logger.warning("%s", sentence))
            for position in range(len(batch["names"])):
                yield batch, position, at(found, position)
            bar.update(min(len(batch["names"]) * processes.world_size, images - bar.n))


def at(prediction: Prediction, position: int) -> Prediction:
    """The prediction of one image of a batch, still with a batch dimension of one."""
    take = slice(position, position + 1)
    scales = None if prediction.scales is None else {scale: at(inner, position) for scale, inner in prediction.scales.items()}
    attention = None if prediction.attention is None else prediction.attention[take]
    return Prediction(logits=prediction.logits[take], attention=attention, scales=scales)


@torch.inference_mode()
def evaluate(model: MultiScale, loader: Iterable[dict[str, Any]], *, spec: DatasetSpec, inference: Inference, processes: Processes, images: int,
             criterion: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None, attention: bool = False, show: bool = True,
             on_image: OnImage | None = None) -> Evaluation:
    """Score `model` on every image of `loader` once; image by image the result has the same bits for any number of ranks.

    `images` is how many there are over all ranks: a lost or doubled one raises. `criterion(logits, label)` gives the terms of the validation
    loss (mean over images). `attention` adds how much each scale counts per class. `on_image(batch, position, prediction)` sees each image.
    """
    was_training = model.training
    model.eval()
    matrix = ConfusionMatrix(spec.num_classes, ignore_label=spec.ignore_label, device=processes.device)
    tally = _Tally(matrix, np.zeros((len(inference.scales), spec.num_classes)), np.zeros(spec.num_classes))
    found = predictions(model, loader, inference=inference, processes=processes, images=images, keep_scales=attention, show=show)
    for batch, position, prediction in found:
        label = batch["label"][position : position + 1].to(processes.device)
        if prediction.logits.shape[-2:] != label.shape[-2:]:  # scoring at the label's native size was asked for
            logits = nn.functional.interpolate(prediction.logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
            prediction = prediction._replace(logits=logits)
        index = int(batch["index"][position])
        own = ConfusionMatrix(spec.num_classes, ignore_label=spec.ignore_label, device=processes.device)
        own.update(predicted_label(prediction.logits), label)
        tally.matrix.merge(own)
        tally.per_image[index] = own.numpy()
        if criterion is not None:
            tally.losses[index] = float(torch.stack(list(criterion(prediction.logits, label).values())).sum())
        if attention:
            _add_shares(tally, prediction, label[0].cpu().numpy(), inference.scales)
        if on_image is not None:
            on_image(batch, position, prediction)
    model.train(was_training)
    return _join(tally, processes=processes, images=images, attention=attention)


def _add_shares(tally: _Tally, prediction: Prediction, label: np.ndarray, scales: Sequence[float]) -> None:
    weights, scored, classes = share_maps(prediction), label < len(tally.pixels), len(tally.pixels)
    for row, scale in enumerate(scales):
        tally.shares[row] += np.bincount(label[scored], weights=weights[scale][scored], minlength=classes)
    tally.pixels += np.bincount(label[scored], minlength=classes)


def share_maps(prediction: Prediction) -> dict[float, np.ndarray]:
    """How much each scale counts at each pixel, float [H, W]; over the scales these weights sum to one (paper, figure 3)."""
    assert prediction.scales is not None
    height, width = prediction.logits.shape[-2:]
    attentions = {scale: None if inner.attention is None else inner.attention[0, 0].float().cpu().numpy()
                  for scale, inner in prediction.scales.items()}
    return scale_shares(attentions, (height, width))


def _join(tally: _Tally, *, processes: Processes, images: int, attention: bool) -> Evaluation:
    tally.matrix.reduce(processes.sum)
    gathered = processes.gather((tally.per_image, tally.losses, tally.shares, tally.pixels))
    scored = sum(len(of_rank[0]) for of_rank in gathered)
    per_image = {index: matrix for of_rank in gathered for index, matrix in of_rank[0].items()}
    losses = {index: loss for of_rank in gathered for index, loss in of_rank[1].items()}
    if not scored == len(per_image) == images:
        raise RuntimeError(f"{scored} images were scored, {len(per_image)} different ones, where the split has {images}: the result is void")
    pixels = sum(of_rank[3] for of_rank in gathered)
    shares = sum(of_rank[2] for of_rank in gathered) / np.maximum(pixels, 1) if attention else None
    loss = math.fsum(losses[index] for index in sorted(losses)) / len(losses) if losses else None
    return Evaluation(matrix=tally.matrix, images=scored, loss=loss, per_image=per_image, shares=shares)


def per_class(spec: DatasetSpec, matrix: ConfusionMatrix) -> dict[str, float | None]:
    """Class name -> IoU as a fraction, None where the class occurs neither in labels nor in predictions."""
    return {name: None if math.isnan(value) else value for name, value in zip(spec.names, matrix.iou().tolist(), strict=True)}


def iou_table(spec: DatasetSpec, evaluation: Evaluation) -> str:
    """The result of a split as text: a line per class, then the mean."""
    matrix = evaluation.matrix
    share = matrix.counts / max(int(matrix.counts.sum()), 1)
    rows = zip(spec.names, matrix.iou(), matrix.precision(), matrix.recall(), share, strict=True)
    lines = [f"{'class':<22}{'IoU %':>8}{'precision %':>13}{'recall %':>10}{'pixels %':>10}"]
    lines += [f"{name:<22}" + "".join(f"{'-' if math.isnan(value) else format(100 * value, '.1f'):>{width}}"
                                      for value, width in zip(values, (8, 13, 10, 10), strict=True)) for name, *values in rows]
    lines.append(f"{'mean':<22}{100 * matrix.miou():>8.1f}   pixel accuracy {100 * matrix.pixel_accuracy():.1f} %, {evaluation.images} images")
    if matrix.absent():
        lines.append("absent, not in the mean: " + ", ".join(spec.names[index] for index in matrix.absent()))
    return "\n".join(lines)


@torch.inference_mode()
def pictures_of(model: MultiScale, files: Files, inference: Inference, index: int) -> dict[str, np.ndarray]:
    """Caption -> uint8 RGB picture of one image of a split: image, label, prediction, error, attention per scale, which scale counts where."""
    was_training, parameter = model.training, next(model.parameters())
    image = files.read_image(index)
    tensor = normalise(torch.from_numpy(image)[None].to(parameter.device), dtype=parameter.dtype)
    chained = is_chained(model) and inference.tile is None and len(inference.scales) > 1
    prediction = inference.predict(model.eval(), tensor, keep_scales=chained)
    model.train(was_training)
    predicted = predicted_label(prediction.logits)[0].cpu().numpy()
    found = {"image": image}
    if files.labels is not None:
        label = files.read_label(index)
        found["label"] = colorize(label, files.spec.palette)
        found["error"] = error_map(predicted, label, files.spec.ignore_label, image)
    found["prediction"] = colorize(predicted, files.spec.palette)
    if chained and prediction.scales is not None:
        for scale, inner in sorted(prediction.scales.items()):
            if inner.attention is not None:
                found[f"attention {scale:g}x"] = heat(inner.attention[0, 0].float().cpu().numpy())
        found["scale trusted"] = scale_map(share_maps(prediction))
    return found


def example_panel(model: MultiScale, files: Files, inference: Inference, *, index: int = 0) -> np.ndarray:
    """image | label | prediction | attention per scale of one image of a split, as one picture."""
    found = pictures_of(model, files, inference, index)
    return panel([(caption, picture) for caption, picture in found.items() if caption not in ("error", "scale trusted")], columns=3)


def is_chained(model: MultiScale) -> bool:
    """Whether the model combines its scales by hierarchical attention, so that each pixel has a share of each scale."""
    return str(model.multiscale).startswith("hierarchical")


class Pictures:
    """Writes what --save names for every image, in the background: one file a kind, under the image's own name and at its own size."""

    def __init__(self, output: Path, kinds: Sequence[str], spec: DatasetSpec, writer: ImageWriter) -> None:
        self.output = output
        self.kinds = kinds
        self.spec = spec
        self.writer = writer
        self.written = 0

    def add(self, batch: dict[str, Any], position: int, prediction: Prediction) -> None:
        """Queue the pictures of one image."""
        name = batch["names"][position]
        label_tensor, confidence = label_and_confidence(prediction.logits)
        label = label_tensor[0].cpu().numpy()
        image = batch["image"][position].permute(1, 2, 0).contiguous().numpy()
        if "labels" in self.kinds:
            self._put("labels", name, self.spec.to_raw[label])
        if "colour" in self.kinds:
            self._put("colour", name, colorize(label, self.spec.palette))
        if "overlay" in self.kinds:
            self._put("overlay", name, overlay(image, label, self.spec.palette))
        if "confidence" in self.kinds:
            self._put("confidence", name, (confidence[0] * 255).byte().cpu().numpy())
        if "probabilities" in self.kinds:
            probabilities = prediction.logits[0].float().softmax(0).half().cpu().numpy()
            path = self.output / "probabilities" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, probabilities)
        for scale, inner in (prediction.scales or {}).items():
            if "attention" in self.kinds and inner.attention is not None:
                self._put("attention", f"{name}_{scale:g}x", (inner.attention[0, 0].float() * 255).byte().cpu().numpy())
            if "scales" in self.kinds:
                self._put("scales", f"{name}_{scale:g}x", colorize(predicted_label(inner.logits)[0].cpu().numpy(), self.spec.palette))
        self.written += 1

    def _put(self, kind: str, name: str, array: np.ndarray) -> None:
        self.writer.submit(self.output / kind / f"{name}.png", array)


@torch.inference_mode()
def predict_images(loaded: Loaded, files: Files, inference: Inference, processes: Processes, kinds: Sequence[str], output: Path) -> int:
    """Predict images without labels; returns how many were written over all ranks, which is how many there are."""
    loader = assemble.split_loader(loaded.config, files, processes, with_label=False)
    keep = loaded.model.multiscale != "single" and bool({"attention", "scales"} & set(kinds))
    with ImageWriter() as writer:
        pictures = Pictures(output, kinds, loaded.spec, writer)
        for found in predictions(loaded.model, loader, inference=inference, processes=processes, images=len(files), keep_scales=keep):
            pictures.add(*found)
    written = sum(processes.gather(pictures.written))
    if written != len(files):
        raise RuntimeError(f"{written} predictions were written for {len(files)} images: the result is void")
    return written


def score_split(loaded: Loaded, files: Files, inferences: Sequence[Inference], processes: Processes, kinds: Sequence[str],
                output: Path | None) -> list[Evaluation]:
    """Evaluate the first of `inferences` with pictures, the others for comparison."""
    criterion = assemble.criterion(loaded.config, files).main
    chained = is_chained(loaded.model)
    results = []
    for number, inference in enumerate(inferences):
        loader = assemble.split_loader(loaded.config, files, processes)
        attention = chained and number == 0 and inference.tile is None and output is not None and len(inference.scales) > 1
        with ImageWriter() if number == 0 and kinds and output is not None else nullcontext() as writer:
            on_image = None if writer is None or output is None else Pictures(output, kinds, loaded.spec, writer).add
            results.append(evaluate(loaded.model, loader, spec=loaded.spec, inference=inference, processes=processes, images=len(files),
                                    criterion=criterion, attention=attention, on_image=on_image))
    return results


def metrics(loaded: Loaded, arguments: argparse.Namespace, split: str, inferences: Sequence[Inference],
            results: Sequence[Evaluation]) -> dict[str, Any]:
    """What metrics.json holds; IoUs are fractions."""
    first, evaluation = inferences[0], results[0]
    compared = [{"scales": list(inference.scales), "flip": inference.flip, "combine": inference.combine, "miou": result.matrix.miou()}
                for inference, result in zip(inferences, results, strict=True)]
    return {
        "miou": evaluation.matrix.miou(),
        "pixel_accuracy": evaluation.matrix.pixel_accuracy(),
        "per_class": per_class(loaded.spec, evaluation.matrix),
        "classes_absent": [loaded.spec.names[index] for index in evaluation.matrix.absent()],
        "images": evaluation.images,
        "loss": evaluation.loss,
        "categories": category_iou(evaluation.matrix.numpy(), [item.category for item in loaded.spec.classes]),
        "scales": list(first.scales),
        "flip": first.flip,
        "combine": first.combine,
        "over": first.over,
        "precision": first.precision,
        "split": split,
        "dataset": loaded.spec.name,
        "checkpoint": str(arguments.checkpoint),
        "checkpoint_sha256": loaded.sha256,
        "compared": compared,
    }


def worst_images(evaluation: Evaluation, *, of_class: int | None = None) -> list[int]:
    """Indices of the images with the lowest IoU, the worst first: mean over the classes in them, or of one class where it is in the label."""
    scores = {}
    for index, matrix in evaluation.per_image.items():
        there = matrix.sum(1) > 0
        if there.any() and (of_class is None or there[of_class]):
            scores[index] = mean_of(iou_of(matrix)[there]) if of_class is None else float(iou_of(matrix)[of_class])
    return sorted(scores, key=lambda index: (scores[index], index))


def report(loaded: Loaded, files: Files, content: dict[str, Any], inferences: Sequence[Inference], results: Sequence[Evaluation]) -> EvaluationReport:
    """The page of an evaluation: numbers of the first list of scales, the others beside it, its worst images, what its scales attend to."""
    evaluation, inference, spec = results[0], inferences[0], loaded.spec

    def example(index: int, captions: Sequence[str], remark: str) -> Example:
        found = pictures_of(loaded.model, files, inference, index)
        shown = [caption for caption in found if any(caption.startswith(start) for start in captions)]
        return Example(files.name(index), [Picture.drawing(caption, found[caption], width=400) for caption in shown], remark)

    def score(index: int, of_class: int | None = None) -> str:
        matrix = evaluation.per_image[index]
        value = mean_of(iou_of(matrix)[matrix.sum(1) > 0]) if of_class is None else float(iou_of(matrix)[of_class])
        return f"IoU {100 * value:.1f} %"

    compared = ("image", "label", "prediction", "error")
    ranking = worst_images(evaluation)
    per_class_worst = {name: worst_images(evaluation, of_class=number)[:1] for number, name in enumerate(spec.names)}
    method = str(loaded.model.multiscale)
    attention = ranking[:: max(1, len(ranking) // 4)][:4] if evaluation.shares is not None else []
    return EvaluationReport(
        title=f"{loaded.config.experiment.name}: {content['split']}", names=spec.names, colors=spec.palette, matrix=evaluation.matrix.numpy(),
        images=evaluation.images, split=content["split"], checkpoint=content["checkpoint"], checkpoint_sha256=loaded.sha256,
        settings={"inference": asdict(inference), "configuration": loaded.config.to_dict()},
        facts={} if evaluation.loss is None else {"validation loss": f"{evaluation.loss:.3f}"},
        compared=[ComparedRow(method if method != "single" else f"{method}, {other.combine}", other.scales, other.flip, result.matrix.miou())
                  for other, result in zip(inferences, results, strict=True)],
        categories=category_iou(evaluation.matrix.numpy(), [item.category for item in spec.classes]),
        worst=[example(index, compared, score(index)) for index in ranking[:4]],
        worst_per_class={name: [example(index, compared, score(index, spec.names.index(name))) for index in worst]
                         for name, worst in per_class_worst.items() if worst},
        attention=[example(index, ("image", "prediction", "attention", "scale"), score(index)) for index in attention],
        shares=evaluation.shares, share_scales=inference.scales,
    )  # fmt: skip


def scale_list(text: str) -> tuple[float, ...]:
    """A --compare item such as 0.5,1,2."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or min(scales) <= 0:
        raise DataError(f"--compare: '{text}' is not a list of scales; write e.g. 0.5,1,2")
    return scales


def main(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, then score a split or predict images."""
    with join() as processes:
        start_logging(main=processes.is_main)
        with processes.agreement(*assemble.USER_ERRORS):
            if arguments.output is not None and processes.is_main:
                make_writable(arguments.output, setting="--output DIR")
            loaded = assemble.load_model(arguments.checkpoint, config_file=arguments.config, overrides=arguments.overrides, device=processes.device)
            runtime, section = loaded.config.runtime, loaded.config.eval
            prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32)
            lists = [arguments.scales, *(scale_list(text) for text in arguments.compare)]
            inferences = [Inference.of(section, scales=scales, flip=arguments.flip) for scales in lists]
            split = arguments.split or loaded.config.data.val_split
            if arguments.images:
                files = image_files(arguments.images, spec=loaded.spec)
            else:
                files = assemble.split_files(loaded.config, split, expected=loaded.spec)
                files.require_labels()
        if arguments.images:
            kinds = arguments.save or ["labels", "colour", "overlay"]
            written = predict_images(loaded, files, inferences[0], processes, kinds, arguments.output)
            logger.info("%d images predicted at %s; %s in %s", written, inferences[0].describe(), ", ".join(kinds), arguments.output)
        else:
            results = score_split(loaded, files, inferences, processes, arguments.save or [], arguments.output)
            if processes.is_main:
                show(loaded, arguments, split, files, inferences, results)
        return 0


def show(loaded: Loaded, arguments: argparse.Namespace, split: str, files: Files, inferences: Sequence[Inference],
         results: Sequence[Evaluation]) -> None:
    """Print the tables; with --output write metrics.json and the report."""
    print(iou_table(loaded.spec, results[0]))
    for inference, result in zip(inferences, results, strict=True):
        print(f"{split} mIoU {100 * result.matrix.miou():.1f} % at {inference.describe()}, {result.images} images, checkpoint {loaded.sha256[:12]}")
    if arguments.output is None:
        return
    content = metrics(loaded, arguments, split, inferences, results)
    write_atomically(arguments.output / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())
    write_report(arguments.output / "report.html", report(loaded, files, content, inferences, results))
    logger.info("wrote %s and %s", arguments.output / "metrics.json", arguments.output / "report.html")


if __name__ == "__main__":
    sys.exit(run_door(recorded(lambda: main(ARGUMENTS)), user_errors=lambda: assemble.USER_ERRORS))
