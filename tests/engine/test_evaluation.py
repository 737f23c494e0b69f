"""`hmsa eval`: exact on any number of processes, equal to the official scripts, complete.

Most tests run it in this process on a network that reads classes from colours, so that every
prediction is known.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from PIL import Image
from torch import Tensor, nn

from hmsa.datasets import CITYSCAPES, DataError, DatasetSpec, Files, build_eval_loader, build_files
from hmsa.datasets.augment.normalisation import MEAN, STD
from hmsa.engine import build
from hmsa.engine import evaluate as evaluation
from hmsa.engine.arguments import parse_eval
from hmsa.engine.build import Loaded, OpenedCheckpoint
from hmsa.engine.evaluate import evaluate
from hmsa.engine.pictures import Needs, infer, pictures_of
from hmsa.engine.video_output import VideoError
from hmsa.network import (
    InferenceOptions,
    ModelError,
    MultiScaleModel,
    Prediction,
    build_model,
)
from hmsa.utils.config import Config
from hmsa.utils.labelling.submission import SubmissionError
from hmsa.utils.metrics.confusion import ImageScores
from hmsa.utils.processes import Processes, join
from hmsa.utils.words import UserError
from tests.datasets.trees import make_mapillary, save
from tests.engine.conftest import Command, draw
from tests.programs import free_port, run_ranks

VOID = "{} images were scored, {} different ones, where the split has 13: the result is void"
ALONE = Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

# --- exactness ---


@functools.cache
def tiny_network() -> MultiScaleModel:
    """A network that says all three classes somewhere; one for all, not to be changed."""
    torch.manual_seed(5)
    model = build_model(
        trunk="resnet18",
        decoder="fcn",
        multiscale="hierarchical",
        num_classes=3,
        output_stride=16,
        attention_channels=8,
    )
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.8, 1.2)
    classifier, seen = model.decoder.head.output, []
    handle = classifier.register_forward_pre_hook(
        lambda part, inputs: seen.append(inputs[0].mean(dim=(0, 2, 3)))
    )
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 64, 80))
    handle.remove()
    usual = seen[0] / seen[0].norm()  # without this direction no class is the answer everywhere
    classifier.weight.data -= torch.einsum(
        "cf,f,g->cg", classifier.weight.data[:, :, 0, 0], usual, usual
    )[:, :, None, None]
    return model.eval()


def first_of(files: Files, indices: Sequence[int]) -> Files:
    """The files with these indices alone."""
    assert files.labels is not None
    chosen = list(indices)
    return replace(
        files,
        images=files.images[chosen],
        labels=files.labels[chosen],
        names=files.names[chosen],
    )


class Losing:
    """A loader that forgets its first batch, or gives it twice."""

    def __init__(self, loader: Iterable[dict[str, Any]], times: int) -> None:
        self.loader, self.times = loader, times

    def __iter__(self) -> Any:
        for number, batch in enumerate(self.loader):
            for _ in range(self.times if number == 0 else 1):
                yield batch


def score(
    files: Files, processes: Processes, *, batch: int, image_by_image: bool, times: int = 1
) -> dict[str, Any]:
    """Everything evaluation finds, as bytes that can be compared."""
    loader = build_eval_loader(
        files, batch_size=batch, rank=processes.rank, world_size=processes.world_size
    )
    spec = files.spec
    scores = ImageScores(
        names=spec.names,
        to_train=spec.to_train,
        categories=[None] * 3,
        ignore_label=spec.ignore_label,
        with_instances=False,
    )
    result = evaluate(
        tiny_network(),
        Losing(loader, times) if processes.rank == processes.world_size - 1 else loader,
        spec=spec,
        processes=processes,
        options=InferenceOptions((0.5, 1.0)),
        images=len(files),
        attention=True,
        image_by_image=image_by_image,
        show=False,
        criterion=lambda logits, label: {
            "loss": nn.functional.cross_entropy(
                logits, label.long(), ignore_index=spec.ignore_label
            )
        },
        on_maps=lambda index, predicted, label: scores.update(predicted, label),
    )
    scores.load(processes.gather(scores.state()))
    assert result.shares is not None and result.loss is not None
    return {
        "matrix": result.matrix.numpy().tobytes(),
        "loss": result.loss.hex(),
        "shares": result.shares.tobytes(),
        "boundary": scores.boundary.scores().tobytes(),
        "images": result.images,
        "per_image": b"".join(
            result.per_image[index].tobytes() for index in sorted(result.per_image)
        ),
    }


def score_everything(root: Path, processes: Processes) -> dict[Any, Any]:
    torch.set_num_threads(1)
    everything = build_files(dataset="folder", root=root, split="val")
    found: dict[Any, Any] = {}
    for count in (10, 11, 13):
        for batch in (1, 2, 3):
            found[count, batch] = score(
                first_of(everything, range(count)), processes, batch=batch, image_by_image=True
            )
    found["batched"] = score(everything, processes, batch=3, image_by_image=False)["matrix"]
    for times in (0, 2):
        try:
            score(everything, processes, batch=1, image_by_image=True, times=times)
        except RuntimeError as error:
            found["wrong", times] = str(error)
    return found


def _rank(rank: int, root: Path, world_size: int, port: int, results: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    processes = join(device="cpu", timeout_minutes=5)
    results[rank] = score_everything(root, processes)
    processes.close()


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen images of two sizes, so that every number of processes cuts other batches."""
    root = draw(tmp_path_factory.mktemp("thirteen"), train=0, val=13, size=(64, 80))
    for number in (1, 4, 5, 9):
        for kind in ("images", "labels"):
            path = str(root / kind / "val" / f"val_{number}.png")
            cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[:48])
    return root


@pytest.fixture(scope="module")
def alone(thirteen: Path) -> dict[Any, Any]:
    return score_everything(thirteen, ALONE)


def test_batches_forwarded_image_by_image_leave_every_bit_alone(alone: dict[Any, Any]) -> None:
    for count in (10, 11, 13):
        assert alone[count, 1] == alone[count, 2] == alone[count, 3]
        assert alone[count, 1]["images"] == count
    assert len({alone[count, 1]["matrix"] for count in (10, 11, 13)}) == 3
    assert np.frombuffer(alone[13, 1]["matrix"], np.int64).reshape(3, 3).any(axis=0).sum() > 1, (
        "more than one class is predicted"
    )


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_processes_finds_the_same_bits_and_a_lost_image_fails(
    world_size: int, thirteen: Path, alone: dict[Any, Any]
) -> None:
    with mp.Manager() as manager:
        results = manager.dict()
        run_ranks(_rank, (thirteen, world_size, free_port(), results), processes=world_size)
        ranks = [dict(results[rank]) for rank in range(world_size)]
    for found in ranks:
        for count in (10, 11, 13):
            for batch in (1, 2, 3):
                assert found[count, batch] == alone[count, batch]
        assert found["wrong", 0] == VOID.format(12, 12)
        assert found["wrong", 2] == VOID.format(14, 13)
        ours, theirs = (np.frombuffer(one["batched"], np.int64) for one in (found, alone))
        assert np.abs(ours - theirs).sum() <= 2e-4 * theirs.sum()


def test_a_lost_and_a_doubled_image_fail_alone(alone: dict[Any, Any]) -> None:
    assert alone["wrong", 0] == VOID.format(12, 12)
    assert alone["wrong", 2] == VOID.format(14, 13)


def test_batched_forward_passes_agree(
    thirteen: Path, alone: dict[Any, Any], record_property: Any
) -> None:
    files = build_files(dataset="folder", root=thirteen, split="val")
    images = torch.stack(
        [torch.from_numpy(files.read_image(index)).permute(2, 0, 1) for index in (0, 2, 3)]
    )
    model, needs = tiny_network(), Needs(logits=True)
    together = infer(model, images, InferenceOptions((0.5, 1.0)), needs, size=(64, 80))
    assert together.prediction is not None
    for number in range(3):
        one = infer(
            model, images[number : number + 1], InferenceOptions((0.5, 1.0)), needs, size=(64, 80)
        )
        assert one.prediction is not None
        torch.testing.assert_close(
            together.prediction.logits[number], one.prediction.logits[0], atol=1e-4, rtol=0
        )
    exact, batched = (
        np.frombuffer(matrix, np.int64) for matrix in (alone[13, 1]["matrix"], alone["batched"])
    )
    share = float(np.abs(exact - batched).sum() / 2 / exact.sum())
    record_property("share of pixels that batching changes", share)
    assert share <= 1e-4


# --- a network whose predictions are known ---


class Colours(nn.Module):
    """The class whose colour is nearest: a convolution of one pixel."""

    multiscale, train_scales, align_corners = "single", (1.0,), False

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        palette = torch.tensor(spec.palette[: spec.num_classes].astype(np.float32)) / 255
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.layer = nn.Conv2d(3, spec.num_classes, 1)
        self.layer.weight.data = (40 * 2 * palette * std)[
            :, :, None, None
        ]  # -|x - p|^2 without |x|^2, where x = mean + std * normalised
        self.layer.bias.data = 40 * (2 * palette @ mean - (palette**2).sum(1))
        self.limit = math.inf

    def forward(self, image: Tensor, **options: object) -> Prediction:
        if image.shape[-2] * image.shape[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Prediction(logits=self.layer(image))


def evaluate_colours(
    patch: pytest.MonkeyPatch,
    spec: DatasetSpec,
    data: dict[str, Any],
    *argv: object,
    limit: float = math.inf,
    **sections: Any,
) -> int:
    """`hmsa eval` in this process with a `Colours` network in place of the checkpoint's."""
    config = Config.from_dict(
        {
            "data": data,
            "eval": {"scales": [1.0], "workers": 0},
            "loss": {"main": "cross_entropy"},
            "model": {"multiscale": "single"},
            **sections,
        }
    )
    model = Colours(spec)
    model.limit = limit

    def open_checkpoint(
        checkpoint: Path, *, config_file: Path | None, overrides: list[str], runs: object
    ) -> OpenedCheckpoint:
        changed = Config.from_dict(config.to_dict(), overrides)
        return OpenedCheckpoint(checkpoint, changed, spec, weights={}, sha256="ab" * 32)

    def build_loaded(opened: OpenedCheckpoint, *, device: torch.device) -> Loaded:
        network: Any = model.eval()
        return Loaded(network, opened.config, spec, sha256=opened.sha256, path=opened.path)

    patch.setattr(build, "open_checkpoint", open_checkpoint)
    patch.setattr(build, "build_loaded", build_loaded)
    return evaluation.main(parse_eval(["--checkpoint", "colours.pt", *map(str, argv)]))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start `hmsa eval` in this process with a `Colours` network."""
    return partial(evaluate_colours, monkeypatch)


def in_colours(root: Path, folder: Path) -> dict[str, Any]:
    """The data section of the same images with labels in colours, ignored pixels in white."""
    shutil.copytree(root, folder)
    content = yaml.safe_load((folder / "classes.yaml").read_text())
    palette = np.full((256, 3), 255, np.uint8)
    for item in content["classes"]:
        palette[item.pop("id")] = item["color"]
    content.update(labels="colors", ignore=[[255, 255, 255]])
    (folder / "classes.yaml").write_text(yaml.safe_dump(content))
    for path in (folder / "labels").rglob("*.png"):
        save(path, palette[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)])
    return {"dataset": "folder", "root": str(folder), "classes": str(folder / "classes.yaml")}


def _rank_of_colours(rank: int, port: int, data: dict[str, Any], output: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    spec = build_files(dataset="folder", root=data["root"], split="val").spec
    assert evaluate_colours(pytest.MonkeyPatch(), spec, data, "--output", output) == 0


def test_labels_in_colours_are_scored_by_two_processes_as_ids_are_by_one(
    thirteen: Path, tmp_path: Path, run: Any
) -> None:
    spec = build_files(dataset="folder", root=thirteen, split="val").spec
    by_id = {"dataset": "folder", "root": str(thirteen)}
    assert run(spec, by_id, "--output", tmp_path / "one") == 0

    data = in_colours(thirteen, tmp_path / "data")
    run_ranks(_rank_of_colours, (free_port(), data, tmp_path / "two"), processes=2)

    # All that is not a time or a place.
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    compared = ("miou", "per_class", "pixel_accuracy", "boundary_f", "images", "confusion_matrix")
    assert one["images"] == 13 and 0.9 < one["miou"] < 1
    assert {name: two.get(name) for name in compared} == {name: one.get(name) for name in compared}
    assert (tmp_path / "two" / "report.html").is_file()


def cityscapes_tree(
    root: Path,
    *,
    split: str = "val",
    count: int = 3,
    size: tuple[int, int] = (64, 128),
    labels: bool = True,
) -> Path:
    """Images painted in the colours of their classes, a fifth of the blocks in a wrong one.

    Labels and instance maps are in raw ids.
    """
    rng = np.random.default_rng(3)
    train_ids = np.arange(19)
    for number in range(count):
        blocks = rng.choice(np.append(train_ids, 255), (size[0] // 8, size[1] // 8))
        label = np.kron(blocks, np.ones((8, 8), int)).astype(np.uint8)
        raw = CITYSCAPES.to_raw[label]
        instances = raw.astype(np.int32)
        for instance in range(9):
            raw_id = int(rng.choice([24, 25, 26, 27, 28, 31, 32, 33]))
            top, left = int(rng.integers(0, size[0] - 20)), int(rng.integers(0, size[1] - 20))
            window = (
                slice(top, top + int(rng.integers(2, 20))),
                slice(left, left + int(rng.integers(2, 20))),
            )
            raw[window], instances[window] = raw_id, 1000 * raw_id + instance
        painted = CITYSCAPES.to_train[raw].copy()
        wrong = np.kron(rng.random((size[0] // 4, size[1] // 4)) < 0.2, np.ones((4, 4), bool))
        painted[wrong | (painted == 255)] = rng.integers(0, 19)
        stem = f"{split}stadt/{split}stadt_{number:06d}_000019"
        save(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", CITYSCAPES.palette[painted])
        if labels:
            save(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", raw)
            save(
                root / "gtFine" / split / f"{stem}_gtFine_instanceIds.png",
                instances.astype(np.uint16),
            )
    return root


def test_scores_and_file_names_are_those_of_cityscapes_scripts(
    tmp_path: Path, run: Any, official: ModuleType, capsys: Any
) -> None:
    root = cityscapes_tree(tmp_path / "data")
    assert (
        run(
            CITYSCAPES,
            {"dataset": "cityscapes", "root": str(root)},
            "--output",
            tmp_path / "out",
            "--submit",
            tmp_path / "val.zip",
        )
        == 0
    )
    with zipfile.ZipFile(tmp_path / "val.zip") as archive:
        archive.extractall(tmp_path / "results")
    official.args.predictionPath, official.args.predictionWalk = str(tmp_path / "results"), None
    labels = sorted(str(path) for path in root.rglob("*_labelIds.png"))
    wanted = official.evaluateImgLists(
        [official.getPrediction(official.args, path) for path in labels], labels, official.args
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())

    def equal(ours: dict[str, float | None], theirs: dict[str, float]) -> None:
        assert {k: v for k, v in ours.items() if v is not None} == pytest.approx(
            {k: v for k, v in theirs.items() if not math.isnan(v)}, abs=1e-6
        )

    equal(metrics["per_class"], wanted["classScores"])
    equal(metrics["categories"], wanted["categoryScores"])
    equal(
        {name: row["iiou"] for name, row in metrics["classes"].items()}, wanted["classInstScores"]
    )
    equal(metrics["category_iious"], wanted["categoryInstScores"])
    for ours, theirs in {
        "miou": "averageScoreClasses",
        "category_iou": "averageScoreCategories",
        "iiou": "averageScoreInstClasses",
        "category_iiou": "averageScoreInstCategories",
    }.items():
        assert (
            metrics[ours] == pytest.approx(wanted[theirs], abs=1e-6) and 0.1 < metrics[ours] < 0.95
        )
    printed = capsys.readouterr().out
    assert f"{100 * metrics['iiou']:.1f}" in printed and "category iIoU" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "category iIoU %" in page and "boundary F %" in page and "nan" not in page
    assert not list(tmp_path.glob(".*.parts")), "the folder of single files is gone"


def test_metrics_hold_every_score_per_class_and_per_way(tmp_path: Path, run: Any) -> None:
    root = cityscapes_tree(tmp_path / "data", count=2)
    run(
        CITYSCAPES,
        {"dataset": "cityscapes", "root": str(root)},
        "--output",
        tmp_path / "out",
        "--scales",
        "0.5",
        "1",
        "--combine",
        "max",
        "--over",
        "probabilities",
        "--compare",
        "1",
        "0.5,1+average",
        "0.5,1+average+logits+flip",
    )
    text = (tmp_path / "out" / "metrics.json").read_text()
    metrics = json.loads(text)
    assert (
        "NaN" not in text
        and metrics["combine"] == "max"
        and metrics["over"] == "probabilities"
        and metrics["scales"] == [0.5, 1.0]
    )
    ways = [
        (row["method"], row["scales"], row["flip"], row["combine"], row["over"])
        for row in metrics["compared"]
    ]
    assert ways == [
        ("max of probabilities", [0.5, 1.0], False, "max", "probabilities"),
        ("single scale", [1.0], False, "max", "probabilities"),
        ("average of probabilities", [0.5, 1.0], False, "average", "probabilities"),
        ("average of logits", [0.5, 1.0], True, "average", "logits"),
    ]
    assert (
        metrics["compared"][0]["per_class"] == metrics["per_class"]
        and len({row["miou"] for row in metrics["compared"]}) == 4
    )
    for row in metrics["compared"]:
        scored = [value for value in row["per_class"].values() if value is not None]
        assert row["miou"] == pytest.approx(np.mean(scored)) and list(row["per_class"]) == list(
            CITYSCAPES.names
        )
    assert set(metrics["classes"]["road"]) == {
        "iou",
        "precision",
        "recall",
        "boundary_f",
        "iiou",
        "pixels",
    }
    columns = {
        key: [row[key] for row in metrics["classes"].values() if row[key] is not None]
        for key in ("iou", "recall", "boundary_f", "iiou")
    }
    means = {
        "miou": "iou",
        "mean_class_accuracy": "recall",
        "boundary_f": "boundary_f",
        "iiou": "iiou",
    }
    assert {name: metrics[name] for name in means} == pytest.approx(
        {name: np.mean(columns[key]) for name, key in means.items()}
    )
    assert (
        metrics["classes"]["road"]["iiou"] is None
        and metrics["loss"] > 0
        and metrics["attention_share"] == {}
    )


def test_instances_are_scored_only_where_every_label_has_them(
    tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cityscapes_tree(tmp_path / "data", count=2)
    next(root.rglob("*_instanceIds.png")).unlink()
    run(CITYSCAPES, {"dataset": "cityscapes", "root": str(root)}, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["iiou"] is None and metrics["category_iious"] == {} and metrics["miou"] > 0
    assert "no iIoU: 1 of 2 labels have an instance map beside them" in capsys.readouterr().out


def test_a_split_without_labels_is_handed_in(
    tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cityscapes_tree(tmp_path / "data", split="test", labels=False)
    data = {"dataset": "cityscapes", "root": str(root)}
    run(CITYSCAPES, data, "--split", "test", "--submit", tmp_path / "deep" / "test.zip")
    said = capsys.readouterr().out
    wrong = {
        "has no labels to score it by; give --output": [],
        "no scores to compare": ["--submit", tmp_path / "x.zip", "--compare", "1"],
    }
    for why, argv in wrong.items():
        with pytest.raises(DataError, match=why):
            run(CITYSCAPES, data, "--split", "test", *argv)
    assert (
        "split 'test' has no labels: predictions only, no metrics" in said
        and "the official cityscapes test split has 1525" in said
    )
    with zipfile.ZipFile(tmp_path / "deep" / "test.zip") as archive:
        assert archive.namelist() == [
            f"teststadt_{number:06d}_000019_labelIds.png" for number in range(3)
        ]
        for name in archive.namelist():
            with archive.open(name) as file:
                ids = np.array(Image.open(file))
            painted = cv2.imread(
                str(root / "leftImg8bit/test/teststadt" / name.replace("labelIds", "leftImg8bit"))
            )[..., ::-1]
            wanted = CITYSCAPES.to_raw[
                np.abs(painted[:, :, None].astype(int) - CITYSCAPES.palette[None, None, :19])
                .sum(-1)
                .argmin(-1)
            ]
            np.testing.assert_array_equal(ids, wanted)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["test.zip"]


def test_mapillary_is_handed_in_at_native_size_from_resized_images(
    tmp_path: Path, run: Any
) -> None:
    root = make_mapillary(
        tmp_path / "data", version="1.2", splits={"testing": 2, "validation": 1}, size=(30, 40)
    )
    data = {"dataset": "mapillary", "root": str(root), "long_edge": 64}
    spec = build_files(dataset="mapillary", root=root, split="val").spec
    for split in (
        "test",
        "val",
    ):  # val is scored at the size of 48 x 64, and handed in at its own all the same
        run(
            spec,
            data,
            "--split",
            split,
            "--submit",
            tmp_path / f"{split}.zip",
            "--output",
            tmp_path / split,
            "--save",
            "overlay",
            "confidence",
        )
        images = (root / {"test": "testing", "val": "validation"}[split] / "images").iterdir()
        sizes = {path.stem: cv2.imread(str(path)).shape[:2] for path in images}
        with zipfile.ZipFile(tmp_path / f"{split}.zip") as archive:
            assert archive.namelist() == sorted(f"{name}.png" for name in sizes)
            for name in archive.namelist():
                with archive.open(name) as file:
                    assert np.array(Image.open(file)).shape == sizes[Path(name).stem]
        for kind in ("overlay", "confidence"):
            assert {
                path.stem: cv2.imread(str(path)).shape[:2]
                for path in (tmp_path / split / kind).iterdir()
            } == sizes
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["images"] == 1


def test_what_cannot_be_handed_in_is_said_before_anything_is_inferred(
    tmp_path: Path, run: Any
) -> None:
    root = draw(tmp_path / "data", train=0, val=2)
    files = build_files(dataset="folder", root=root, split="val")
    (root / "images/val/val_0.png").unlink()
    (root / "labels/val/val_0.png").unlink()
    cityscapes = DatasetSpec(**{**files.spec.__dict__, "name": "cityscapes"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "split_files", lambda *a, **k: Files(**{**files.__dict__, "spec": cityscapes})
        )
        with pytest.raises(SubmissionError, match="val_0: is no Cityscapes name"):
            run(
                cityscapes, {"dataset": "folder", "root": str(root)}, "--submit", tmp_path / "x.zip"
            )
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--images", "a.png", "--output", "o", "--submit", "x.zip"], "--images goes with neither"),
        (["--submit", "x.tar"], "must end in .zip"),
        (["--images", "a.png", "--output", "o", "--compare", "1"], "--compare compares scores"),
        (["--save", "labels"], "--save needs --output"),
        (["--combine", "median"], "invalid choice"),
    ],
)
def test_command_lines_that_make_no_sense(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_eval(["--checkpoint", "x.pt", *argv])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_ways_to_compare_are_read_or_refused() -> None:
    first = InferenceOptions((1.0,), flip=True, combine="average")
    assert evaluation.compared_way("0.5,2+noflip+max", first) == InferenceOptions(
        (0.5, 2.0), flip=False, combine="max"
    )
    assert evaluation.compared_way("1+probabilities", first) == InferenceOptions(
        (1.0,), flip=True, over="probabilities"
    )
    for wrong, said in (
        ("0.5;1", "not a list of scales"),
        ("0,1", "not a list of scales"),
        ("1+mirror", "'mirror' in '1+mirror'"),
    ):
        with pytest.raises(DataError, match=said.replace("+", r"\+")):
            evaluation.compared_way(wrong, first)


# --- tiles and memory ---


def test_tiles_and_the_fall_back_find_the_same_and_say_so(
    tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cityscapes_tree(tmp_path / "data", count=2)
    data = {"dataset": "cityscapes", "root": str(root)}
    found = {}
    for name, options in {
        "whole": {},
        "tiles": {"eval": {"scales": [1.0], "workers": 0, "tile": [48, 64]}},
        "fallback": {"limit": 70 * 70},
    }.items():
        run(CITYSCAPES, data, "--output", tmp_path / name, **options)
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert ("memory ran out with 64 x 128 pixels" in capsys.readouterr().out) == (
            name == "fallback"
        )
    for name in ("tiles", "fallback"):
        assert (
            found[name]["classes"] == found["whole"]["classes"]
            and found[name]["miou"] == found["whole"]["miou"]
        )
    assert found["tiles"]["loss"] is None and found["fallback"]["loss"] == pytest.approx(
        found["whole"]["loss"]
    )
    assert found["tiles"]["tile"] == [48, 64]


def test_a_loss_that_does_not_fit_into_memory_costs_no_scores(
    thirteen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = first_of(build_files(dataset="folder", root=thirteen, split="val"), [0, 1])

    def hungry(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        if logits.shape[-2] > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"loss": logits.mean()}

    logging.getLogger("hmsa").addHandler(caplog.handler)
    result = evaluate(
        tiny_network(),
        build_eval_loader(files),
        spec=files.spec,
        processes=ALONE,
        options=InferenceOptions((1.0,)),
        images=2,
        criterion=hungry,
        show=False,
    )
    logging.getLogger("hmsa").removeHandler(caplog.handler)
    assert (
        result.loss is None
        and result.images == 2
        and "memory ran out over the validation loss of an image of 64 x 80" in caplog.text
    )

    def broken(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(
            tiny_network(),
            build_eval_loader(files),
            spec=files.spec,
            processes=ALONE,
            options=InferenceOptions((1.0,)),
            images=2,
            criterion=broken,
            show=False,
        )


# --- any input ---


def test_a_video_and_a_picture_give_one_output_for_each_image(tmp_path: Path, run: Any) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48)
    )
    for number in range(5):
        writer.write(
            np.full((48, 64, 3), CITYSCAPES.palette[(0, 10)[number % 2], ::-1], np.uint8)
        )  # road and sky by turns
    writer.release()
    cv2.imwrite(
        str(tmp_path / "still.png"), np.full((33, 57, 3), CITYSCAPES.palette[8, ::-1], np.uint8)
    )
    run(
        CITYSCAPES,
        {},
        "--images",
        tmp_path / "clip.avi",
        tmp_path / "still.png",
        "--output",
        tmp_path / "out",
        "--save",
        "labels",
        "confidence",
        "probabilities",
        eval={"scales": [1.0], "workers": 0, "batch_size": 2},
    )
    labels = {
        path.relative_to(tmp_path / "out/labels").with_suffix("").as_posix(): cv2.imread(
            str(path), cv2.IMREAD_UNCHANGED
        )
        for path in (tmp_path / "out" / "labels").rglob("*.png")
    }
    assert {name: label.shape for name, label in labels.items()} == {
        **{f"clip/{n:06d}": (48, 64) for n in range(5)},
        "still": (33, 57),
    }
    assert [int(np.median(labels[f"clip/{number:06d}"])) for number in range(5)] == [
        7,
        23,
        7,
        23,
        7,
    ] and (labels["still"] == 21).all()
    probabilities = np.load(tmp_path / "out" / "probabilities" / "still.npy")
    assert probabilities.shape == (19, 33, 57) and (probabilities.argmax(0) == 8).all()
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert (
        legend[8] == {"name": "vegetation", "id": 21, "train_id": 8, "color": [107, 142, 35]}
        and len(legend) == 19
    )


def test_a_video_becomes_a_video_and_predictions_have_an_index(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(6):
        colour = CITYSCAPES.palette[(0, 10)[number % 2], ::-1]
        writer.write(np.full((48, 64, 3), colour, np.uint8))
    writer.release()
    photos(tmp_path / "album")
    (tmp_path / "album" / "damaged.png").write_bytes(b"x")

    images = ("--images", clip, tmp_path / "album")
    assert run(CITYSCAPES, {}, *images, "--output", tmp_path / "out") == 1
    written = cv2.VideoCapture(str(tmp_path / "out" / "video" / "clip.mp4"))
    assert written.get(cv2.CAP_PROP_FPS) == 12.5
    frames = []
    while True:
        done, frame = written.read()
        if not done:
            break
        frames.append(frame.mean(axis=(0, 1)))
    assert len(frames) == 6
    drawn = cv2.imread(str(tmp_path / "out" / "overlay" / "clip" / "000001.png"))
    assert np.abs(frames[1] - drawn.mean(axis=(0, 1))).max() < 12
    assert np.abs(frames[1] - frames[0]).max() > 40, "frames come in their order"

    page = (tmp_path / "out" / "index.html").read_text()
    assert 'href="video/clip.mp4"' in page and 'href="overlay/clip/000000.png"' in page
    assert "damaged.png: image" in page and "9 images" in page
    assert "<h1>Predictions: clip.avi and 1 more</h1>" in page
    assert "road" in page and "vegetation" in page and "bicycle" not in page

    # Instead of the frames; and a sentence where there is nothing to make a video of or with.
    assert (
        run(CITYSCAPES, {}, "--images", clip, "--output", tmp_path / "two", "--save", "video") == 0
    )
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if path.name[0] != ".") == [
        "classes.json",
        "index.html",
        "video",
    ]
    with pytest.raises(DataError, match="no video is among the images"):
        run(CITYSCAPES, {}, *images[::2], "--output", tmp_path / "three", "--save", "video")
    monkeypatch.setattr("hmsa.engine.video_output.CODECS", ((".mp4", "????"),))
    with pytest.raises(VideoError, match="no codec to write a video.*ffmpeg"):
        run(CITYSCAPES, {}, "--images", clip, "--output", tmp_path / "four", "--save", "video")
    assert run(CITYSCAPES, {}, "--images", clip, "--output", tmp_path / "five") == 0
    assert not (tmp_path / "five" / "video").exists()


def test_metrics_hold_intervals_costs_and_examples(tmp_path: Path, run: Any) -> None:
    root = cityscapes_tree(tmp_path / "data", count=6)
    data = {"dataset": "cityscapes", "root": str(root)}
    run(CITYSCAPES, data, "--output", tmp_path / "out", "--compare", "0.5,1")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, second = metrics["compared"]
    assert first["miou_interval"][0] <= first["miou"] <= first["miou_interval"][1]
    assert first["difference_interval"] == [0, 0] and len(second["difference_interval"]) == 2
    assert sum("recommended" in way for way in metrics["compared"]) == 1
    assert len(metrics["classes"]["road"]["iou_interval"]) == 2
    assert [example["name"] for example in metrics["examples"]] and all(
        (tmp_path / "out" / example[kind]).is_file()
        for example in metrics["examples"]
        for kind in ("image", "label", "prediction")
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "95 % interval" in page and "Typical" in page and str(root) in page
    assert re.search("<h1>\\w+: val</h1>", page), "the run, or its weights, and the split"


# --- what is written where (issue 14, A1) ---


def photos(folder: Path, *, count: int = 2, class_number: int = 8) -> Path:
    """Images of one class each, which `Colours` knows by its colour."""
    folder.mkdir(parents=True)
    for number in range(count):
        colour = CITYSCAPES.palette[class_number, ::-1]
        cv2.imwrite(str(folder / f"{number}.png"), np.full((40, 56, 3), colour, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("images", "output"),
    [("mine/images", "mine"), ("x/labels", "x"), ("album", "album/predictions"), ("a", "a")],
)
def test_an_output_that_meets_an_input_is_refused_and_nothing_is_changed(
    images: str, output: str, tmp_path: Path, run: Any
) -> None:
    """Pictures would replace photographs or drawn labels, or be predicted the next time."""
    photos(tmp_path / images)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match="--output"):
        run(CITYSCAPES, {}, "--images", tmp_path / images, "--output", tmp_path / output)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_only_what_the_command_made_is_replaced(tmp_path: Path, run: Any) -> None:
    words = ("--images", photos(tmp_path / "in"), "--output", tmp_path / "out")
    for _ in range(2):
        run(CITYSCAPES, {}, *words)
    drawn = tmp_path / "out" / "labels" / "1.png"
    cv2.imwrite(str(drawn), np.full((40, 56), 3, np.uint8))
    content = drawn.read_bytes()
    with pytest.raises(UserError, match=r"labels/1\.png"):
        run(CITYSCAPES, {}, *words)
    assert drawn.read_bytes() == content


def test_names_of_a_list_lead_nowhere_else_and_never_to_one_file(tmp_path: Path, run: Any) -> None:
    photos(tmp_path / "far")
    (tmp_path / "lists").mkdir()
    for line in ("../far/0.png", str(tmp_path / "far" / "0.png")):
        (tmp_path / "lists" / "all.txt").write_text(f"{line}\n")
        words = ("--images", tmp_path / "lists" / "all.txt", "--output", tmp_path / "out" / "deep")
        try:
            run(CITYSCAPES, {}, *words)
        except UserError as error:
            assert "0" in str(error)
        outside = [path for path in tmp_path.rglob("*.png") if "out" not in str(path)]
        assert len(outside) == 2
        assert not [path for path in (tmp_path / "out").rglob("*.png") if "deep" not in str(path)]


def test_a_damaged_photograph_ends_nothing(
    tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14, B9: it is named, the others are predicted, and the status says so."""
    folder = photos(tmp_path / "in", count=4)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    assert run(CITYSCAPES, {}, "--images", folder, "--output", tmp_path / "out") == 1
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert labels == ["0.png", "2.png", "3.png"]
    said = capsys.readouterr().out
    assert "3 of 4 images predicted" in said and "not predicted:" in said and "1.png" in said


def test_answers_that_are_no_numbers_are_named_with_their_image(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14, C12: they are neither scored nor drawn as the first class."""
    answer = Colours.forward

    def broken(self: Colours, image: Tensor, **options: object) -> Prediction:
        return Prediction(logits=answer(self, image).logits * math.nan)

    monkeypatch.setattr(Colours, "forward", broken)
    monkeypatch.setattr(evaluation, "prepare_for_inference", lambda model, **options: model)
    root = cityscapes_tree(tmp_path / "data", count=1)
    for tile in (None, [48, 64]):
        way = {"scales": [1.0], "workers": 0, "tile": tile}
        with pytest.raises(ModelError, match="valstadt_000000"):
            run(CITYSCAPES, {"dataset": "cityscapes", "root": str(root)}, eval=way)

    words = ("--images", photos(tmp_path / "in"), "--output", tmp_path / "out")
    assert run(CITYSCAPES, {}, *words) == 1
    assert "0 of 2 images predicted" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.png"))


def test_results_are_there_although_nobody_reads_what_is_printed(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 14, B8: they are written before anything is printed."""

    def gone(*arguments: object, **keywords: object) -> None:
        raise AssertionError("nobody reads this")

    root = cityscapes_tree(tmp_path / "data", count=1)
    monkeypatch.setattr(evaluation, "print_results", gone)
    with pytest.raises(AssertionError, match="nobody reads this"):
        run(CITYSCAPES, {"dataset": "cityscapes", "root": str(root)}, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


# --- attention ---


@pytest.mark.parametrize("multiscale", ["hierarchical", "explicit"])
def test_shares_of_scales_sum_to_one_for_every_kind_of_attention(
    multiscale: str, thirteen: Path
) -> None:
    files = first_of(build_files(dataset="folder", root=thirteen, split="val"), [0, 1])
    torch.manual_seed(1)
    model = build_model(
        trunk="resnet18",
        decoder="fcn",
        multiscale=multiscale,
        num_classes=3,
        output_stride=16,
        train_scales=(0.5, 1.0, 2.0),
    )
    inference = InferenceOptions((0.5, 1.0, 2.0), flip=True)
    result = evaluate(
        model,
        build_eval_loader(files),
        spec=files.spec,
        processes=ALONE,
        options=inference,
        images=2,
        attention=True,
        show=False,
    )
    assert result.shares is not None and result.shares.shape == (3, 3)
    np.testing.assert_allclose(result.shares.sum(0), 1, atol=1e-5)
    assert result.shares.min() > 0 and np.ptp(result.shares) > 1e-4
    shown = pictures_of(model, files, inference, 0)
    expected = [
        "image",
        "label",
        "prediction",
        "error",
        "0.5x alone",
        "1x alone",
        "2x alone",
        "scale trusted",
        "attention 0.5x",
        "attention 1x",
    ]
    assert list(shown) == [*expected, "attention 2x"]
    shrunk = pictures_of(model, files, inference, 0, long_edge=40)
    assert (
        shrunk["image"].shape == shrunk["prediction"].shape == shrunk["label"].shape == (32, 40, 3)
    )


# --- a trained network ---


def test_attention_shares_and_half_precision_of_a_trained_network(
    trained: Path, street: Path, command: Command, tmp_path: Path
) -> None:
    checkpoint = trained / "checkpoints" / "best.pt"
    found = {}
    for name, override in {"fp32": "eval.precision=fp32", "bf16": "eval.precision=bf16"}.items():
        command(
            "eval.py",
            "--checkpoint",
            checkpoint,
            "--output",
            tmp_path / name,
            "--save",
            "attention",
            "scales",
            override,
        )
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    shares = found["fp32"]["attention_share"]
    assert list(shares) == ["0.5", "1"] and list(shares["1"]) == ["sky", "road", "pole"]
    for name in shares["1"]:
        assert (
            shares["0.5"][name] + shares["1"][name] == pytest.approx(1)
            and 0 <= shares["1"][name] <= 1
        )
    assert found["bf16"]["precision"] == "bf16" and found["bf16"]["miou"] == pytest.approx(
        found["fp32"]["miou"], abs=0.01
    )
    names = [f"val_{number}" for number in range(3)]
    labels = np.stack(
        [
            cv2.imread(str(street / "labels" / "val" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            for name in names
        ]
    )
    written = [
        cv2.imread(str(tmp_path / "fp32" / "attention" / f"{name}_0.5x.png"), cv2.IMREAD_UNCHANGED)
        for name in names
    ]
    attention = np.stack([cv2.resize(own, labels.shape[:0:-1]) for own in written]) / 255
    for number, name in enumerate(
        shares["0.5"]
    ):  # the share of the smaller of two scales is its attention
        assert shares["0.5"][name] == pytest.approx(attention[labels == number].mean(), abs=0.02)
    assert (
        max(abs(shares["0.5"][name] - shares["1"][name]) for name in shares["1"]) > 0.06
    )  # else they could be exchanged unseen
    assert sorted(path.name for path in (tmp_path / "fp32/attention").iterdir()) == [
        f"{name}_0.5x.png" for name in names
    ]
    assert sorted(path.name for path in (tmp_path / "fp32/scales").iterdir()) == [
        f"{name}_{scale}x.png" for name in names for scale in ("0.5", "1")
    ]
    page = (tmp_path / "fp32" / "report.html").read_text()
    assert "Scale by class" in page and "scale trusted" in page and "0.5x alone" in page
    refused = command("eval.py", "--checkpoint", checkpoint, "--combine", "max", check=2)
    assert "single-scale models" in refused.stderr and "hierarchical" in refused.stderr
