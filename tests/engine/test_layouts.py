"""Every data set of the paper, in miniature and in its true layout, goes through the doors' parts: load, sample, train a step, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmsa.datasets import CITYSCAPES, DataError
from hmsa.engine import build as assemble
from hmsa.engine import train
from hmsa.engine.evaluate import evaluate
from hmsa.utils.config import Config
from hmsa.utils.processes import join
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
    """Ten cities, of which cross-validation holds out three of train; the coarse labels join by the boosted pools of the release."""
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
    """A teacher's labels, cut at a confidence, with a class from the coarse labels and the border masked."""
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
            "optim": {
                "lr": 1e-4
            },  # two images of two by two features: batch norm makes gradients large
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32"},
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
    processes = join(device="cpu", timeout_minutes=1.0)
    job = train.set_up(config, processes, resume=False, write=False)
    assert job.model.num_classes == job.validation.spec.num_classes == classes
    assert len(job.loader) == trained // 2 and len(job.validation) == validated
    batches = [batch for (batch,) in train.micro_batches(job)]
    assert {int(value) for batch in batches for value in batch["label"].unique()} <= {
        *range(classes),
        255,
    }
    seen = torch.cat([batch["index"] for batch in batches])
    assert bool((seen >= trained).any()) == bool(extra) and int(seen.max()) < trained + extra

    before = [parameter.detach().clone() for parameter in job.model.parameters()]
    totals = train.take_step(job, (batches[0],))[0]
    assert all(term.isfinite() for term in totals.values())
    assert any(
        not torch.equal(old, new) for old, new in zip(before, job.model.parameters(), strict=True)
    )

    result = evaluate(
        job.model,
        assemble.split_loader(config, job.validation, processes),
        spec=job.validation.spec,
        inference=assemble.Inference.of(config.eval),
        processes=processes,
        images=validated,
        criterion=job.criterion.main,
        show=False,
    )
    processes.close()
    assert (
        result.images == validated and 0 <= result.matrix.miou() <= 1 and np.isfinite(result.loss)
    )
    labels = [job.validation.read_label(index) for index in range(validated)]
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
    files = assemble.split_files(config, "train")
    with pytest.raises(
        DataError, match=r"bayreuth_000002_000019_gtAuto_labelIds\.png: label value 77"
    ):
        assemble.verify(config, files)
    save(path, CITYSCAPES.to_raw[label((24, 48), values=(0, 2, 13))])
    assemble.verify(config, files)
    image = (
        tmp_path / "data/leftImg8bit/train_extra/bayreuth/bayreuth_000001_000019_leftImg8bit.png"
    )
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(
        DataError, match=r"bayreuth_000001_000019_leftImg8bit\.png: image is truncated"
    ):
        assemble.verify(config, files)
