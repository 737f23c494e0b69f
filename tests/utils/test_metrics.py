"""Scores against golden numbers, brute force, and the official Cityscapes evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.utils.metrics import (
    BoundaryF,
    ConfusionMatrix,
    InstanceIoU,
    MetricsError,
    category_iou,
    iou_of,
    mean_of,
)
from hmsa.utils.metrics.boundary_f import boundary_f, outline
from hmsa.utils.metrics.instance_iou import CITYSCAPES_AVERAGE_SIZES, instances_path, read_instances

BYTES, WIDE = torch.uint8, torch.int64


def counted(
    predicted: np.ndarray, label: np.ndarray, num_classes: int, dtype: torch.dtype = BYTES
) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(torch.as_tensor(predicted).to(dtype), torch.as_tensor(label).to(dtype))
    return matrix


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())


@pytest.mark.parametrize("dtype", [BYTES, WIDE])
@pytest.mark.parametrize("case", ["tiny3", "absent5"])
def test_golden_matrices_and_scores(golden: dict[str, Any], case: str, dtype: torch.dtype) -> None:
    wanted = golden[case]
    matrix = counted(np.array(wanted["pred"]), np.array(wanted["gt"]), len(wanted["hist"]), dtype)
    assert matrix.numpy().tolist() == wanted["hist"]
    np.testing.assert_allclose(
        matrix.iou(), [math.nan if x is None else x for x in wanted["iou"]], rtol=1e-15
    )
    assert matrix.miou() == pytest.approx(wanted["mean_iou_nanmean"], rel=1e-15)
    assert matrix.pixel_accuracy() == pytest.approx(wanted["acc"], rel=1e-15)
    accuracy_of_classes = wanted.get("acc_cls", wanted.get("acc_cls_nanmean"))
    assert mean_of(matrix.recall()) == pytest.approx(accuracy_of_classes, rel=1e-15)


def test_golden_nineteen_classes_equal_the_official_script(golden: dict[str, Any]) -> None:
    official = golden["synth19"]["cityscapesScripts"]
    iou = iou_of(np.array(golden["synth19"]["hist"]))
    np.testing.assert_allclose(iou, official["iou"], rtol=1e-14)
    assert mean_of(iou) == pytest.approx(official["averageScoreClasses"], rel=1e-14)


def test_precision_and_recall_are_not_swapped() -> None:
    label, predicted = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    matrix = counted(predicted, label, 3)
    np.testing.assert_array_equal(matrix.precision(), [1, 1 / 3, np.nan])
    np.testing.assert_array_equal(matrix.recall(), [1 / 3, 1, np.nan])
    assert matrix.counts.tolist() == [3, 1, 0]


def test_absent_classes_are_listed_and_left_out_of_the_mean() -> None:
    label, predicted = np.array([0, 0, 3, 255]), np.array([0, 0, 1, 2])
    matrix = counted(predicted, label, 5)
    assert matrix.absent() == [2, 4], (
        "a class that is predicted only on ignored pixels is absent; class 1 scores 0"
    )
    assert matrix.miou() == pytest.approx(1 / 3)


def test_nothing_counted_has_no_score() -> None:
    matrix = counted(np.zeros(4), np.full(4, 255), 2)
    assert (
        math.isnan(matrix.miou())
        and math.isnan(matrix.pixel_accuracy())
        and matrix.absent() == [0, 1]
    )
    matrix.update(torch.zeros(0, dtype=BYTES), torch.zeros(0, dtype=BYTES))
    assert matrix.numpy().sum() == 0


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    num_classes = draw(st.sampled_from([1, 2, 7, 19, 66, 127, 128, 200]))
    ignore = draw(st.integers(num_classes, 255))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = rng.integers(0, num_classes, 300)
    label[rng.random(300) < 0.2] = ignore
    return rng.integers(0, num_classes, 300), label, num_classes, ignore


@given(labelled())
def test_matrix_equals_brute_force_for_any_dtype(
    case: tuple[np.ndarray, np.ndarray, int, int],
) -> None:
    predicted, label, num_classes, ignore = case
    wanted = np.zeros((num_classes, num_classes), dtype=np.int64)
    for p, t in zip(predicted.tolist(), label.tolist(), strict=True):
        if t != ignore:
            wanted[t, p] += 1
    for dtypes in [(BYTES, BYTES), (WIDE, WIDE), (BYTES, WIDE), (torch.int32, BYTES)]:
        matrix = ConfusionMatrix(num_classes, ignore_label=ignore)
        matrix.update(
            torch.as_tensor(predicted).to(dtypes[0]), torch.as_tensor(label).to(dtypes[1])
        )
        np.testing.assert_array_equal(matrix.numpy(), wanted)


@pytest.mark.parametrize("ignore", [255, -1, -100, 1000])
def test_ignore_label_may_be_any_value_outside_the_classes(ignore: int) -> None:
    matrix = ConfusionMatrix(3, ignore_label=ignore)
    matrix.update(torch.tensor([0, 1, 2]), torch.tensor([0, ignore, 1]))
    assert matrix.numpy().tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [BYTES, WIDE])
@pytest.mark.parametrize("value", [3, 7, 254])
def test_label_outside_the_classes_is_named_and_nothing_is_counted(
    dtype: torch.dtype, value: int
) -> None:
    matrix = ConfusionMatrix(3)
    label = torch.tensor([0, 1, 255, value]).to(dtype)
    with pytest.raises(
        MetricsError, match=f"label value {value} is none of the 3 classes nor the ignore label 255"
    ):
        matrix.update(torch.zeros(4).to(dtype), label)
    assert matrix.numpy().sum() == 0


def test_negative_label_and_prediction_outside_the_classes_are_named() -> None:
    with pytest.raises(MetricsError, match="label value -3 is"):
        ConfusionMatrix(3).update(torch.tensor([0, 0]), torch.tensor([0, -3]))
    for dtype in (BYTES, WIDE):
        with pytest.raises(MetricsError, match="predicted value 3 is none of the 3 classes"):
            ConfusionMatrix(3).update(
                torch.tensor([0, 3]).to(dtype), torch.tensor([0, 1]).to(dtype)
            )


def test_any_split_into_parts_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 5, (6, 10, 11)), rng.integers(0, 5, (6, 10, 11))
    whole = counted(predicted, label, 5)
    for parts in ([0], [0, 3], [0, 1, 2, 5]):
        ranks = [
            counted(p, t, 5)
            for p, t in zip(np.split(predicted, parts), np.split(label, parts), strict=True)
        ]
        merged = ConfusionMatrix(5)
        for rank in ranks:
            merged.merge(rank)
        total = torch.stack([rank.matrix for rank in ranks]).sum(dim=0)
        ranks[-1].reduce(lambda own, total=total: total)  # type: ignore[misc]
        assert torch.equal(merged.matrix, whole.matrix) and torch.equal(
            ranks[-1].matrix, whole.matrix
        )
    whole.reduce(None)
    assert torch.equal(merged.matrix, whole.matrix)


def test_counts_beyond_float32_stay_exact() -> None:
    matrix = ConfusionMatrix(2)
    matrix.matrix += torch.tensor([[2**40 + 1, 0], [0, 1]])
    matrix.update(torch.tensor([0, 1], dtype=BYTES), torch.tensor([0, 0], dtype=BYTES))
    assert matrix.numpy().tolist() == [[2**40 + 2, 1], [0, 1]]
    with pytest.raises(AssertionError, match="int64"):
        matrix.reduce(lambda own: own.float())


def test_without_categories_there_is_no_category_score() -> None:
    assert category_iou(np.eye(2, dtype=np.int64), [None, None]) == {}


def test_category_score_forgives_mistakes_inside_a_category() -> None:
    matrix = np.array([[5, 2, 1], [3, 4, 0], [0, 1, 6]])
    scores = category_iou(torch.as_tensor(matrix), ["vehicle", "vehicle", None])
    assert scores == {"vehicle": 14 / 16}


# --- the official evaluation ---


def made_up_tree(folder: Path, *, images: int, seed: int, lone: bool) -> list[tuple[Path, Path]]:
    """Files of predictions, labels and instance maps in raw ids, half with ignored ids."""
    rng = np.random.default_rng(seed)
    raw = [7, 8, 11, 17, 21, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    background = raw + [0, 4, 29, 30]  # caravan and trailer have instances but are not scored
    pairs = []
    for number in range(images):
        label = np.repeat(np.repeat(rng.choice(background, (8, 16)), 8, axis=0), 8, axis=1).astype(
            np.uint8
        )
        instances = label.astype(np.int32)
        for count in range(int(rng.integers(3, 9))):
            raw_id = int(rng.choice([24, 25, 26, 27, 28, 29, 31, 32, 33]))
            top, left = rng.integers(0, 50), rng.integers(0, 100)
            height, width = (1, 1) if lone and count == 0 else rng.integers(3, 30, 2)
            window = (slice(top, top + height), slice(left, left + width))
            label[window], instances[window] = raw_id, raw_id * 1000 + count
        predicted = np.where(np.isin(label, raw), label, 7).astype(np.uint8)
        wrong = rng.random(label.shape) < 0.3
        predicted[wrong] = rng.choice(raw, int(wrong.sum()))
        stem = f"aachen_{number:06d}_{seed:06d}"
        files = [
            folder / f"{stem}{end}.png"
            for end in ("_pred", "_gtFine_labelIds", "_gtFine_instanceIds")
        ]
        for file, array in zip(files, (predicted, label, instances.astype(np.uint16)), strict=True):
            Image.fromarray(array).save(file)
        pairs.append((files[0], files[1]))
    return pairs


@pytest.mark.parametrize(("seed", "lone"), [(1, False), (2, True), (3, False)])
def test_all_scores_equal_cityscapes_scripts(
    tmp_path: Path, official: ModuleType, seed: int, lone: bool
) -> None:
    from cityscapesscripts.helpers.labels import labels

    pairs = made_up_tree(tmp_path, images=3, seed=seed, lone=lone)
    wanted = official.evaluateImgLists(
        [str(p) for p, _ in pairs], [str(t) for _, t in pairs], official.args
    )
    classes = [label for label in labels if not label.ignoreInEval]
    to_train = np.full(256, 255, dtype=np.uint8)
    for index, label in enumerate(classes):
        to_train[label.id] = index
    names, categories = [label.name for label in classes], [label.category for label in classes]
    matrix = ConfusionMatrix(len(classes))
    instance = InstanceIoU(names=names, to_train=to_train, categories=categories)
    for predicted_file, label_file in pairs:
        predicted, label = (
            to_train[np.array(Image.open(file))] for file in (predicted_file, label_file)
        )
        matrix.update(torch.from_numpy(predicted), torch.from_numpy(label))
        instances = instances_path(label_file)
        assert instances is not None
        instance.update(predicted, read_instances(instances))

    def equal(ours: dict[str, float], theirs: dict[str, float]) -> None:
        valid = {name: score for name, score in theirs.items() if not math.isnan(score)}
        assert {
            name: score for name, score in ours.items() if not math.isnan(score)
        } == pytest.approx(valid, abs=1e-9)

    equal(dict(zip(names, matrix.iou(), strict=True)), wanted["classScores"])
    equal(category_iou(matrix.numpy(), categories), wanted["categoryScores"])
    equal(instance.iiou(matrix.numpy()), wanted["classInstScores"])
    equal(instance.category_iiou(matrix.numpy()), wanted["categoryInstScores"])
    assert matrix.miou() == pytest.approx(wanted["averageScoreClasses"], abs=1e-9)
    mean_iiou = mean_of(np.array(list(instance.iiou(matrix.numpy()).values())))
    assert mean_iiou == pytest.approx(wanted["averageScoreInstClasses"], abs=1e-9)
    assert set(CITYSCAPES_AVERAGE_SIZES) <= set(names)


def test_instance_sums_do_not_depend_on_how_images_are_shared() -> None:
    rng = np.random.default_rng(0)
    to_train = np.full(256, 255, dtype=np.uint8)
    to_train[24] = 0
    to_train[7] = 1

    def metric() -> InstanceIoU:
        return InstanceIoU(
            names=["person", "road"], to_train=to_train, categories=["human", "flat"]
        )

    images = [
        (rng.integers(0, 2, (9, 9)), np.where(rng.random((9, 9)) < 0.5, 24_000 + n, 7))
        for n in range(7)
    ]
    matrix = np.array([[50, 3], [4, 60]])
    whole = metric()
    ranks = [metric() for _ in range(3)]
    for number, (predicted, instances) in enumerate(images):
        whole.update(predicted, instances)
        ranks[number % 3].update(predicted, instances)
    gathered = metric()
    gathered.load([rank.state() for rank in ranks])
    assert gathered.iiou(matrix) == whole.iiou(matrix) and list(whole.iiou(matrix)) == ["person"]
    assert gathered.category_iiou(matrix) == whole.category_iiou(matrix)
    assert list(whole.category_iiou(matrix)) == ["human"]


def test_instance_faults_are_named(tmp_path: Path) -> None:
    metric = InstanceIoU(names=["person"], to_train=np.zeros(256, dtype=np.uint8))
    with pytest.raises(MetricsError, match=r"\(2, 2\) where the prediction is \(2, 3\)"):
        metric.update(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(MetricsError, match="instance value 300000"):
        metric.update(np.zeros((1, 1), dtype=np.uint8), np.full((1, 1), 300_000))
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("rgb.png", "broken.png", "missing.png"):
        with pytest.raises(MetricsError, match=name):
            read_instances(tmp_path / name)
    assert (
        instances_path(tmp_path / "x_gtFine_labelIds.png") is None
        and instances_path(tmp_path / "rgb.png") is None
    )


# --- boundary F ---


def slow_boundary_f(found: np.ndarray, wanted: np.ndarray, radius: int) -> float:
    """The definition, pixel by pixel."""

    def edges(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if any(
                y + dy < height and x + dx < width and mask[y, x] != mask[y + dy, x + dx]
                for dy, dx in ((0, 1), (1, 0), (1, 1))
            )
        ]

    def matched(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in some]
        return sum(near) / len(near)

    a, b = edges(found), edges(wanted)
    if not a or not b:
        return float(not a and not b)
    precision, recall = matched(a, b), matched(b, a)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_boundary_f_equals_its_definition(seed: int, radius: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [np.kron(rng.random((3, 4)) < 0.4, np.ones((3, 3), dtype=bool)) for _ in range(2)]
    assert boundary_f(*masks, radius=radius) == pytest.approx(
        slow_boundary_f(*masks, radius), abs=1e-12
    )


@given(st.integers(0, 2**32 - 1))
def test_boundary_scores_of_whole_images_equal_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted = (
        np.kron(rng.integers(0, 3, (4, 5)), np.ones((4, 4), dtype=int)) for _ in range(2)
    )
    label[rng.random(label.shape) < 0.1] = 255
    metric = BoundaryF(3, threshold=0.08)
    metric.update(predicted, label)
    radius = math.ceil(0.08 * math.hypot(*label.shape))
    valid = label != 255
    wanted = [slow_boundary_f((predicted == c) & valid, label == c, radius) for c in range(3)]
    np.testing.assert_allclose(metric.scores(), wanted, atol=1e-12)


def test_images_without_the_class_are_skipped_and_lone_outlines_score_nothing() -> None:
    block = np.zeros((20, 20), dtype=np.uint8)
    block[5:12, 5:12] = 1
    empty = np.zeros_like(block)
    metric = BoundaryF(3)
    metric.update(block, block)
    metric.update(empty, empty)
    np.testing.assert_array_equal(metric.scores(), [1, 1, np.nan])
    metric.update(block, empty)
    np.testing.assert_array_equal(metric.scores(), [2 / 3, 1 / 2, np.nan])


def test_boundary_tolerance_is_a_share_of_the_diagonal() -> None:
    label, predicted = np.zeros((300, 400), dtype=np.uint8), np.zeros((300, 400), dtype=np.uint8)
    label[:, 200:], predicted[:, 205:] = 1, 1
    for threshold, score in ((0.0099, 1.0), (0.008, 0.0)):  # 5 pixels of a diagonal of 500, and 4
        metric = BoundaryF(2, threshold=threshold)
        metric.update(predicted, label)
        np.testing.assert_array_equal(metric.scores(), [score, score])


def test_boundary_state_travels_exactly() -> None:
    rng = np.random.default_rng(0)
    metrics = [BoundaryF(4) for _ in range(3)]
    for number in range(7):
        label, predicted = (
            np.kron(rng.integers(0, 4, (4, 5)), np.ones((7, 7), dtype=int)) for _ in range(2)
        )
        metrics[0].update(predicted, label)
        metrics[1 + number % 2].update(predicted, label)
    gathered = BoundaryF(4)
    gathered.load([metrics[2].state(), metrics[1].state()])
    np.testing.assert_array_equal(gathered.scores(), metrics[0].scores())


def test_outline_is_one_pixel_on_the_upper_left_side() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[2:, 2:] = True
    assert outline(mask).astype(int).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 1],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
    ]


@pytest.mark.gpu
def test_gpu_counts_the_same() -> None:
    rng = np.random.default_rng(0)
    label, predicted = (
        torch.from_numpy(rng.integers(0, 19, (500, 700)).astype(np.uint8)) for _ in range(2)
    )
    label[:20] = 255
    matrices = [ConfusionMatrix(19, device=device) for device in ("cpu", "cuda")]
    for matrix in matrices:
        matrix.update(predicted, label)
    np.testing.assert_array_equal(matrices[0].numpy(), matrices[1].numpy())
    assert matrices[1].matrix.is_cuda
