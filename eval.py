"""Evaluate a checkpoint on a split, or predict any images with a checkpoint alone.

    python eval.py --checkpoint runs/x/checkpoints/best.pt [--split val] [--scales 0.5 1.0 2.0] [--flip] [--output DIR]
    python eval.py --checkpoint best.pt --images DIR_OR_FILES --output DIR

Runs alone or under torchrun, on CPU or GPUs, from the same command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.cli import run_door

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
    arguments = parser.parse_intermixed_args(argv)
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
from dataclasses import dataclass, field  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from datasets import DataError, DatasetSpec, Files, build_eval_loader, build_files, image_files, normalise  # noqa: E402
from loss import LossError  # noqa: E402
from network import ModelError, Prediction, build_model, load_weights  # noqa: E402
from network.inference import label_and_confidence, predict, predicted_label  # noqa: E402
from utils.checkpoint import CheckpointError, load_checkpoint, sha256_of, write_atomically  # noqa: E402
from utils.config import Config, ConfigError, load_config  # noqa: E402
from utils.image_writer import ImageWriter  # noqa: E402
from utils.metrics import ConfusionMatrix  # noqa: E402
from utils.optimizer import OptimizerError  # noqa: E402
from utils.processes import AgreedError, ProcessError, Processes, join  # noqa: E402
from utils.runtime import autocast_dtype, prepare_runtime  # noqa: E402
from utils.visualise import colorize, heat, overlay, scale_shares  # noqa: E402

USER_ERRORS = (ConfigError, DataError, ModelError, LossError, CheckpointError, OptimizerError, ProcessError, AgreedError)


@dataclass
class Settings:
    """How to infer: the options of network.inference.predict that a configuration or a command line sets."""

    scales: tuple[float, ...]
    flip: bool = False
    combine: str = "average"
    over: str = "logits"
    tile: tuple[int, int] | None = None
    overlap: float = 0.25
    precision: str = "fp32"

    @classmethod
    def of(cls, config: Config, *, scales: Sequence[float] | None = None, flip: bool | None = None) -> Settings:
        """The eval section, with the command line's word on top."""
        section = config.eval
        return cls(scales=tuple(scales or section.scales), flip=section.flip if flip is None else flip, combine=section.combine, over=section.over,
                   tile=None if section.tile is None else (section.tile[0], section.tile[1]), overlap=section.overlap, precision=section.precision)

    def predict(self, model: nn.Module, image: Tensor, *, keep_scales: bool = False, on_fallback: Callable[[str], None] | None = None) -> Prediction:
        """network.inference.predict with these settings."""
        return predict(model, image, scales=self.scales, flip=self.flip, combine=self.combine, over=self.over, tile=self.tile, overlap=self.overlap,
                       keep_scales=keep_scales, autocast_dtype=autocast_dtype(self.precision), on_fallback=on_fallback)

    def describe(self) -> str:
        """Scales and flip as printed beside every number."""
        return "{" + ", ".join(f"{scale:g}" for scale in self.scales) + "}" + (" + flip" if self.flip else "")


@dataclass
class Evaluation:
    """What one pass over a split found, equal on all ranks."""

    matrix: ConfusionMatrix
    images: int
    loss: float | None
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    shares: np.ndarray | None = None


def evaluate(model: nn.Module, loader: Iterable[dict[str, Any]], *, spec: DatasetSpec, settings: Settings, processes: Processes, images: int,
             criterion: Callable[..., dict[str, Tensor]] | None = None, attention: bool = False, progress: bool = True,
             on_prediction: Callable[[dict[str, Any], int, Prediction, Tensor], None] | None = None) -> Evaluation:
    """Score `model` on every image of `loader` once; the result is the same on every rank and, image by image, for any number of ranks.

    `images` is how many there are over all ranks: a dropped or doubled one makes this fail. `criterion` adds the validation loss (mean over
    images). `attention` adds the share of every scale per class (hierarchical models). `on_prediction(batch, position, prediction, label)` is
    called for each image with its prediction [1, C, H, W] and predicted label uint8 [H, W].
    """
    was_training = model.training
    model.eval()
    matrix = ConfusionMatrix(spec.num_classes, ignore_label=spec.ignore_label, device=processes.device)
    per_image: dict[int, np.ndarray] = {}
    losses: dict[int, float] = {}
    shares = np.zeros((len(settings.scales), spec.num_classes)) if attention else None
    pixels = np.zeros(spec.num_classes)
    bar = tqdm(total=images, desc=f"evaluate {settings.describe()}", unit="image", disable=not (progress and processes.is_main), leave=False)
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        for batch in loader:
            image = normalise(batch["image"].to(processes.device, non_blocking=True), dtype=dtype)
            prediction = settings.predict(model, image, keep_scales=attention, on_fallback=lambda sentence: tqdm.write(sentence, file=sys.stderr))
            for position, index in enumerate(batch["index"].tolist()):
                one = at(prediction, position)
                if "label" in batch:
                    label = batch["label"][position : position + 1].to(processes.device)
                    one = _at_size(one, label.shape[-2:])
                    own = ConfusionMatrix(spec.num_classes, ignore_label=spec.ignore_label, device=processes.device)
                    predicted = predicted_label(one.logits)
                    own.update(predicted, label)
                    matrix.merge(own)
                    per_image[index] = own.matrix.cpu().numpy()
                    if criterion is not None:
                        losses[index] = float(sum(criterion(one, label).values()))
                    if shares is not None:
                        _add_shares(shares, pixels, one, label, spec, tuple(settings.scales))
                else:
                    predicted = predicted_label(one.logits)
                    per_image[index] = np.zeros((0, 0), dtype=np.int64)
                if on_prediction is not None:
                    on_prediction(batch, position, one, predicted[0])
            bar.update(len(batch["index"]) * processes.world_size)
    bar.close()
    model.train(was_training)
    return _gather(matrix, per_image, losses, shares, pixels, processes=processes, images=images)


def at(prediction: Prediction, position: int) -> Prediction:
    """The prediction of one image of a batch, still with a batch dimension of one."""
    take = slice(position, position + 1)
    scales = None if prediction.scales is None else {scale: at(inner, position) for scale, inner in prediction.scales.items()}
    return Prediction(logits=prediction.logits[take], aux=None, scales=scales,
                      attention=None if prediction.attention is None else prediction.attention[take])


def _at_size(prediction: Prediction, size: torch.Size) -> Prediction:
    """Logits at the label's size: another one than the image's only where scoring at native size was asked for."""
    if prediction.logits.shape[-2:] == size:
        return prediction
    return prediction._replace(logits=nn.functional.interpolate(prediction.logits, size=size, mode="bilinear", align_corners=False))


def _add_shares(shares: np.ndarray, pixels: np.ndarray, prediction: Prediction, label: Tensor, spec: DatasetSpec, scales: tuple[float, ...]) -> None:
    weights = share_maps(prediction, tuple(label.shape[-2:]))
    flat = label.reshape(-1).long().cpu().numpy()
    scored = flat < spec.num_classes
    for row, scale in enumerate(scales):
        shares[row] += np.bincount(flat[scored], weights=weights[scale].reshape(-1)[scored], minlength=spec.num_classes)
    pixels += np.bincount(flat[scored], minlength=spec.num_classes)


def share_maps(prediction: Prediction, size: tuple[int, int]) -> dict[float, np.ndarray]:
    """How much each scale counts at each pixel [H, W]; over the scales these weights sum to one (paper, figure 3)."""
    assert prediction.scales is not None
    attentions = {scale: None if inner.attention is None else inner.attention[0, 0].float().cpu().numpy() for scale, inner in prediction.scales.items()}
    return scale_shares(attentions, size)


def _gather(matrix: ConfusionMatrix, per_image: dict[int, np.ndarray], losses: dict[int, float], shares: np.ndarray | None, pixels: np.ndarray, *,
            processes: Processes, images: int) -> Evaluation:
    matrix.reduce(processes.sum)
    merged: dict[int, np.ndarray] = {}
    all_losses: dict[int, float] = {}
    scored = 0
    for rank_images, rank_losses in processes.gather((per_image, losses)):
        scored += len(rank_images)
        merged.update(rank_images)
        all_losses.update(rank_losses)
    if scored != images or len(merged) != images:
        raise RuntimeError(f"{scored} images were scored ({len(merged)} different ones) where the split has {images}: the result is void")
    if shares is not None:
        totals = processes.sum(torch.from_numpy(np.vstack([shares, pixels[None]])).to(processes.device)).cpu().numpy()
        shares = totals[:-1] / np.maximum(totals[-1], 1)
    loss = math.fsum(all_losses[index] for index in sorted(all_losses)) / len(all_losses) if all_losses else None
    return Evaluation(matrix=matrix, images=scored, loss=loss, per_image=merged, shares=shares)


def split_files(config: Config, split: str) -> Files:
    """The files of a split as the data section describes them."""
    data = config.data
    return build_files(dataset=data.dataset, root=data.root, split=split, classes=data.classes, cv=data.cv)


def model_from(config: Config, *, num_classes: int, trunk_weights: bool = False) -> nn.Module:
    """The network of the model section; ImageNet weights are not looked for unless asked, since a checkpoint overwrites them."""
    section = config.model
    return build_model(trunk=section.trunk, decoder=section.decoder, multiscale=section.multiscale, num_classes=num_classes,
                       output_stride=section.output_stride, align_corners=section.align_corners, fuse_at=section.fuse_at,
                       train_scales=tuple(section.train_scales), trunk_weights=section.trunk_weights if trunk_weights else None,
                       attention_channels=section.attention_channels, attention_dropout=section.attention_dropout, head=section.head,
                       explicit_softmax=section.explicit_softmax, activation_checkpointing=config.runtime.activation_checkpointing)


@dataclass
class Loaded:
    """A checkpoint made ready: the network with its weights, its configuration, its classes (None for foreign weights) and the file's hash."""

    model: nn.Module
    config: Config
    spec: DatasetSpec
    sha256: str


def load_model(checkpoint: Path, *, config_file: Path | None, overrides: Sequence[str], device: torch.device) -> Loaded:
    """Build the network a checkpoint was trained with, or the one `config_file` describes for weights from elsewhere, and load it."""
    if config_file is None:
        content = load_checkpoint(checkpoint)
        config = Config.from_dict(content["config"], overrides)
        spec = DatasetSpec.from_dict(content["spec"])
        source: Any = content
    else:
        config = load_config(config_file, overrides)
        spec = split_files(config, config.data.val_split).spec
        source = checkpoint
    model = model_from(config, num_classes=spec.num_classes)
    load_weights(model, source)
    memory = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return Loaded(model=model.to(device, memory_format=memory).eval(), config=config, spec=spec, sha256=sha256_of(checkpoint))
