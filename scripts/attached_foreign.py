"""Attention attached to models of other libraries, trained on the drawn streets of Table 1.

    python scripts/attached_foreign.py [--data data/table1] [--models unet segformer]
                                       [--steps 1500] [--head-steps 180]
                                       [--output results/attached_foreign]

A model that its own library builds (Unet of segmentation_models_pytorch on a pre-trained
EfficientNet-Lite0; SegFormer of transformers, small, random weights) is trained at one scale. Then
attention is attached, its head alone is trained, and calibrated: fitted on training images, judged
by validation images. The test split serves for the figures only: each list of scales averaged, by
attention, and by calibrated attention, all with the same weights of the model. The JSON file holds
what the figures depend on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.datasets import Files
from hmsa.engine import build
from hmsa.engine.calibrate import ChosenImages, Judge, evenly_spread, kept_maps
from hmsa.engine.command_line import at_least, run_command
from hmsa.network import AttachedAttention, attach_attention
from hmsa.network.calibration import KeptMaps, fit_attention_bias, fuse_kept
from hmsa.network.foreign_models import logits_of
from hmsa.network.layers import resize
from hmsa.network.model import PairBiases
from hmsa.network.weights.files import read_tensors
from hmsa.network.weights.pretrained import resolve_weights
from hmsa.utils.config import Config, load_config
from hmsa.utils.files.writing import write_file
from hmsa.utils.metrics.confusion import ConfusionMatrix, iou_of, mean_of
from hmsa.utils.processes import Processes
from hmsa.utils.runtime import seed_step
from scripts.tables.runs import commit

ROOT = Path(__file__).resolve().parents[1]
LISTS = ((1.0,), (0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
ALL = LISTS[-1]
LR, HEAD_LR = 2e-3, 6e-3
# Images of a calibration: fewer than `hmsa calibrate` takes, of training and of val.
FITTED, JUDGED = 24, 40


@dataclass(frozen=True)
class ForeignModel:
    """A model of another library, as its users build it, and the layer that attention reads."""

    build: Callable[[int], nn.Module]
    features: str


def unet(classes: int) -> nn.Module:
    """Unet of segmentation_models_pytorch on EfficientNet-Lite0, pre-trained on ImageNet."""
    import segmentation_models_pytorch as smp

    model = smp.Unet(
        "timm-tf_efficientnet_lite0",
        encoder_weights=None,
        decoder_channels=(128, 64, 48, 32, 16),
        classes=classes,
    )
    weights = resolve_weights("imagenet", trunk="timm:tf_efficientnet_lite0")

    # The file of the package has names of its own, in the same order, with a classifier at the end.
    own = model.encoder.state_dict()
    given = [tensor for name, tensor in read_tensors(weights).items() if not name.startswith("_fc")]
    assert [tensor.shape for tensor in given] == [tensor.shape for tensor in own.values()]
    model.encoder.load_state_dict(dict(zip(own, given, strict=True)))
    return model


def segformer(classes: int) -> nn.Module:
    """SegFormer of transformers, smaller than its B0, random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 48, 96, 128],
        decoder_hidden_size=96,
    )
    config.num_labels = classes
    return SegformerForSemanticSegmentation(config)


MODELS = {
    "unet": ForeignModel(unet, "decoder"),
    "segformer": ForeignModel(segformer, "decode_head.activation"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, attach, calibrate and score; returns the exit status."""
    options = build_parser().parse_args(argv)
    return run_command(lambda: measure(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/table1", help="(default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--steps", type=at_least(1), default=1500, help="of the model itself (default: %(default)s)"
    )
    parser.add_argument(
        "--head-steps", type=at_least(1), default=180, help="of its head (default: %(default)s)"
    )
    parser.add_argument("--images", type=at_least(1), default=60, help="of the test split")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results" / "attached_foreign", metavar="DIR"
    )
    return parser


def measure(options: argparse.Namespace) -> int:
    """One JSON file for every model; one that is there is kept."""
    config = load_config(
        ROOT / "configs" / "demo" / "table1.yaml",
        [f"data.root={options.data}", "data.workers=0", "runtime.threads=1", "eval.precision=fp32"],
    )
    torch.set_num_threads(1)
    for name in options.models:
        file = options.output / f"{name}.json"
        if file.exists():
            print(f"{file}: is there")
            continue
        result = measured(name, config, options)
        write_file(file, json.dumps(result, indent=1) + "\n")
        print(f"{file}: {json.dumps(result['miou'])}", flush=True)
    return 0


def measured(name: str, config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model."""
    files = build.split_files(config, "train")
    classes, ignored = files.spec.num_classes, files.spec.ignore_label
    foreign = MODELS[name]
    seed_step(seed=0, step=0, rank=0)
    model = foreign.build(classes)

    # The model as somebody may have it: trained by itself at one scale.
    seconds = {"model": time.process_time()}
    rounds = crops(config, files, steps=options.steps)
    train_steps(
        model, model.parameters(), rounds, lr=LR, steps=options.steps, ignored=ignored, scaled=True
    )

    # Attention on top of it, frozen.
    seconds["head"] = time.process_time()
    attached = attach_attention(
        model, features=foreign.features, train_scales=ALL, attention_channels=32
    )
    rounds = crops(config, files, steps=options.head_steps, epoch=1000)
    train_steps(
        attached,
        attached.parameters_of_heads(),
        rounds,
        lr=HEAD_LR,
        steps=options.head_steps,
        ignored=ignored,
    )

    seconds["calibration"] = time.process_time()
    attached.eval()
    fitted = maps_of(attached, config, "train", count=FITTED)
    judged = maps_of(attached, config, "val", count=JUDGED)
    found = fit_attention_bias(attached, fitted, ignore_label=ignored)
    kept = Judge(attached, judged, ignore_label=ignored).keep_what_helps(found)

    seconds["test"] = time.process_time()
    miou = scores_of_lists(attached, config, kept, count=options.images)
    seconds["end"] = time.process_time()
    moments = list(seconds.values())
    return {
        "model": name,
        "library": type(model).__module__.partition(".")[0],
        "commit": commit(),
        "steps": options.steps,
        "head_steps": options.head_steps,
        "images": options.images,
        "cpu_seconds": {
            part: round(end - start, 1)
            for part, start, end in zip(seconds, moments, moments[1:], strict=False)
        },
        "bias_found": build.rows_of_bias(found),
        "bias_kept": build.rows_of_bias(kept),
        "miou": miou,
    }


def crops(
    config: Config, files: Files, *, steps: int, epoch: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of normalised crops with their labels, by Table 1's augmentation."""
    alone = Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    loader = build.train_loader(config, files, alone)
    done = 0
    while done < steps:
        for batch in loader.epoch(epoch, start_step=0):
            yield build.prepared(config, batch, epoch=epoch, device=alone.device)
            done += 1
            if done == steps:
                return
        epoch += 1


def train_steps(
    model: nn.Module,
    parameters: Any,
    rounds: Iterator[tuple[Tensor, Tensor]],
    *,
    lr: float,
    steps: int,
    ignored: int,
    scaled: bool = False,
) -> None:
    """Cross-entropy, AdamW, a rate that falls to nothing; `scaled` resizes a foreign output."""
    optimizer = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=0.01)
    model.train()
    for step, (image, label) in enumerate(rounds):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * (1 - step / steps)
        output = model(image)
        logits = logits_of(output, count=len(image)) if scaled else output.logits
        logits = resize(logits, label.shape[-2:], align_corners=False)
        loss = functional.cross_entropy(logits.float(), label.long(), ignore_index=ignored)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def maps_of(model: AttachedAttention, config: Config, split: str, *, count: int) -> list[KeptMaps]:
    """What fusing needs of some images of a split, evenly spread."""
    files = build.split_files(config, split)
    chosen = ChosenImages(files, evenly_spread(files, count=count, split=split))
    return kept_maps(chosen, model, config, scales=ALL, advance=lambda: None)


@torch.inference_mode()
def scores_of_lists(
    model: AttachedAttention, config: Config, biases: PairBiases, *, count: int
) -> dict[str, dict[str, float]]:
    """mIoU in percent of every list of scales on the test split, by way of combining."""
    matrices: dict[tuple[str, str], ConfusionMatrix] = {}
    for kept in maps_of(model, config, "test", count=count):
        size = tuple(kept.label.shape)
        for scales in LISTS:
            part = KeptMaps({scale: kept.scales[scale] for scale in scales}, kept.label)
            own = [
                resize(kept.scales[scale].logits.float(), size, align_corners=False)
                for scale in scales
            ]
            ways = {
                "averaged": torch.stack(own).mean(0),
                "attached": fuse_kept(model, part, {}),
                "calibrated": fuse_kept(model, part, biases),
            }
            for way, logits in ways.items():
                key = (way, ",".join(f"{scale:g}" for scale in scales))
                if key not in matrices:
                    matrices[key] = ConfusionMatrix(model.num_classes, ignore_label=255)
                matrices[key].update(logits.argmax(dim=1)[0].to(torch.uint8), kept.label)

    result: dict[str, dict[str, float]] = {}
    for (way, scales_text), matrix in matrices.items():
        value = mean_of(iou_of(matrix.numpy()))
        result.setdefault(way, {})[scales_text] = round(100 * value, 2)
    return result


if __name__ == "__main__":
    sys.exit(main())
