"""Every data set of the paper, in miniature and in its true layout, goes through all parts.

It is loaded, sampled, trained on and evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmsa.datasets import CITYSCAPES, DataError
from hmsa.engine import build, train
from hmsa.engine.evaluate import evaluate
from hmsa.utils.config import Config
from hmsa.utils.processes import join
from hmsa.utils.runtime import prepare_runtime
from tests.datasets.trees import (
    OFFICIAL,
    RELEASE,
    label,
    make_auto_labels,
    make_cityscapes,
    make_mapillary,
    photo,
    save,
)

CITIES = {"train": {"aachen": 3, "bremen": 2}, "val": {"lindau": 2}, "train_extra": {"bayreuth": 4}}
AUTO = [f"bayreuth/bayreuth_{number:06d}_000019_leftImg8bit" for number in range(4)]
EXTRA = "extra"


def official(folder: Path) -> dict[str, Any]:
    return {"dataset": "cityscapes", "root": str(make_cityscapes(folder, CITIES, layout=OFFICIAL))}


def release(folder: Path) -> dict[str, Any]:
    return {"dataset": "cityscapes", "root": str(make_cityscapes(folder, CITIES, layout=RELEASE))}


def city_split(folder: Path) -> dict[str, Any]:
    """Ten cities, of which cross-validation holds out three of train.

    The coarse labels join by the boosted pools of the release.
    """
    cities = {**CITIES, "train": {f"city{number}": 3 for number in range(9)}}
    extra = {"labels": "coarse", "mode": "boost", "boost_classes": ["road", "sidewalk", "building"]}
    uniform = {"fraction": 1.0, "tile": 16}
    return {
        "dataset": "cityscapes",
        "root": str(make_cityscapes(folder, cities)),
        "cv": 1,
        "class_uniform": uniform,
        EXTRA: extra,
    }


def coarse(folder: Path) -> dict[str, Any]:
    return {**release(folder), EXTRA: {"labels": "coarse"}}


def auto_by_manifest(folder: Path) -> dict[str, Any]:
    """A teacher's labels, cut at a confidence, with a class from the coarse labels.

    The border is masked.
    """
    place = make_auto_labels(folder / "labels", AUTO, form="ids", manifest=True)
    extra = {
        "root": str(place),
        "labels": "auto",
        "confidence_threshold": 0.9,
        "policy": {"road": "union", "car": "drop"},
        "mask_border": True,
    }
    return {**official(folder), EXTRA: extra}


def auto_by_folder(folder: Path) -> dict[str, Any]:
    """Labels as the release's zip holds them, found by their names alone."""
    place = make_auto_labels(folder / "any_name" / "train_extra", AUTO, form="release")
    return {
        **release(folder),
        EXTRA: {"root": str(place.parent), "labels": "auto", "confidence_threshold": 0.5},
    }


def mapillary_1(folder: Path) -> dict[str, Any]:
    return {
        "dataset": "mapillary",
        "root": str(make_mapillary(folder, version="1.2", splits={"training": 5, "validation": 2})),
        "long_edge": 60,
    }


def mapillary_2(folder: Path) -> dict[str, Any]:
    return {
        "dataset": "mapillary",
        "root": str(make_mapillary(folder, version="2.0", splits={"training": 5, "validation": 2})),
    }


def camvid(folder: Path) -> dict[str, Any]:
    """By the class list that comes with this project; void is 255."""
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            save(
                folder / "images" / split / f"0001TP_{number:06d}.jpg", photo((36, 48), seed=number)
            )
            save(
                folder / "labels" / split / f"0001TP_{number:06d}.png",
                label((36, 48), values=(*range(11), 255), seed=number),
            )
    return {"dataset": "folder", "root": str(folder), "classes": "configs/camvid/classes.yaml"}


# layout -> (how to make it, classes, images of train, of val, of the second source)
LAYOUTS: dict[str, tuple[Callable[[Path], dict[str, Any]], int, int, int, int]] = {
    "cityscapes": (official, 19, 5, 2, 0),
    "cityscapes as the release keeps it": (release, 19, 5, 2, 0),
    "cityscapes by city": (city_split, 19, 20, 9, 4),
    "cityscapes with coarse": (coarse, 19, 5, 2, 4),
    "automatic labels by manifest": (auto_by_manifest, 19, 5, 2, 4),
    "automatic labels by folder": (auto_by_folder, 19, 5, 2, 4),
    "mapillary 1.2": (mapillary_1, 65, 5, 2, 0),
    "mapillary 2.0": (mapillary_2, 123, 5, 2, 0),
    "camvid": (camvid, 11, 5, 2, 0),
}


def configuration(data: dict[str, Any], folder: Path) -> Config:
    """The smallest training with class-uniform sampling on that data."""
    return Config.from_dict(
        {
            "experiment": {"output": str(folder / "run")},
            "data": {
                "crop": [32, 32],
                "batch_size": 2,
                "workers": 0,
                "cache_dir": str(folder),
                "class_uniform": {"fraction": 0.5, "tile": 16},
                **data,
            },
            "model": {
                "trunk": "resnet18",
                "decoder": "fcn",
                "output_stride": 16,
                "decoder_channels": 16,
                "attention_channels": 8,
            },
            "loss": {"main": "cross_entropy"},
            # Two images of two by two features: batch norm makes gradients large.
            "optim": {"lr": 1e-4, "epochs": 1},
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32", "log_every": 1},
            "eval": {"scales": [0.5, 1.0], "workers": 0},
        }
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_loaded_sampled_trained_on_and_evaluated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.chdir(root)
    make, classes, trained, validated, extra = LAYOUTS[name]
    config = configuration(make(tmp_path / "data"), tmp_path)

    # Loaded and sampled: every source gives images, and labels hold classes or ignore alone.
    processes = join(device="cpu", timeout_minutes=1.0)
    files = build.split_files(config, config.data.train_split)
    validation = build.split_files(config, config.data.val_split)
    build.verify(config, files, validation)
    loader = build.train_loader(config, files, processes)
    assert files.spec.num_classes == validation.spec.num_classes == classes
    assert len(loader) == trained // 2 and len(validation) == validated
    batches = list(loader.epoch(0))
    assert {int(value) for batch in batches for value in batch["label"].unique()} <= {
        *range(classes),
        255,
    }
    seen = torch.cat([batch["index"] for batch in batches])
    assert bool((seen >= trained).any()) == bool(extra) and int(seen.max()) < trained + extra

    # Trained: the weights are no longer those that the training began with.
    prepare_runtime(seed=config.experiment.seed)
    before = build.training_state(config, files, processes).model
    processes.close()
    assert train.main(config) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == trained // 2 and all(np.isfinite(row["loss"]) for row in steps)
    last = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert any(
        not torch.equal(parameter, last[key]) for key, parameter in before.named_parameters()
    )
    assert before.num_classes == classes

    # Evaluated: by the training, and by the parts.
    (row,) = (row for row in rows if row["kind"] == "val")
    before.load_state_dict(last)
    result = evaluate(
        before,
        build.split_loader(config, validation, processes),
        spec=validation.spec,
        options=build.inference_options(config.eval),
        processes=processes,
        images=validated,
        criterion=build.criterion(config, files).main,
        show=False,
    )
    assert result.images == validated and 0 <= result.matrix.miou() <= 1
    assert result.loss is not None and np.isfinite(result.loss)
    # A validation folds batch norms, which this evaluation does not: equal to rounding.
    assert row["miou"] == result.matrix.miou()
    assert row["loss"] == pytest.approx(result.loss, rel=1e-6)
    labels = [validation.read_label(index) for index in range(validated)]
    if config.data.long_edge is None:  # else scored at that size
        assert result.matrix.numpy().sum() == sum(int((values != 255).sum()) for values in labels)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_faults_of_the_second_source_are_found_before_training(
    tmp_path: Path, fraction: float
) -> None:
    """With class-uniform sampling, which reads every label, and without it."""
    data = auto_by_manifest(tmp_path / "data")
    path = tmp_path / "data/labels/bayreuth/bayreuth_000002_000019_gtAuto_labelIds.png"
    save(path, np.full((24, 48), 77, np.uint8))
    config = configuration({**data, "class_uniform": {"fraction": fraction, "tile": 16}}, tmp_path)
    files = build.split_files(config, "train")
    with pytest.raises(
        DataError, match=r"bayreuth_000002_000019_gtAuto_labelIds\.png: label value 77"
    ):
        build.verify(config, files)
    save(path, CITYSCAPES.to_raw[label((24, 48), values=(0, 2, 13))])
    build.verify(config, files)
    image = (
        tmp_path / "data/leftImg8bit/train_extra/bayreuth/bayreuth_000001_000019_leftImg8bit.png"
    )
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(
        DataError, match=r"bayreuth_000001_000019_leftImg8bit\.png: image is truncated"
    ):
        build.verify(config, files)
