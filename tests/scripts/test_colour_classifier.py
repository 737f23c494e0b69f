"""The classifier of colours: exact scores, the best table, and one sentence for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hmsa.datasets import build_files, read_image, read_label
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts import colour_classifier
from scripts.make_demo_data import main as make_demo_data


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    counts = ["--train", "4", "--val", "2", "--test", "0", "--extra", "0"]
    assert make_demo_data([str(folder), *counts, "--size", "64", "128", "--workers", "1"]) == 0
    return folder


def test_scores_equal_those_of_labels_predicted_pixel_by_pixel(demo: Path) -> None:
    torch = pytest.importorskip("torch")
    train, val = (
        build_files(dataset="cityscapes", root=demo, split=split) for split in ("train", "val")
    )
    scores = colour_classifier.evaluate_classifier(train, val)
    halves = [colour_classifier.colour_histogram(train, range(start, 4, 2)) for start in (0, 1)]
    classifier = colour_classifier.fit((halves[0], halves[1]))
    matrix = ConfusionMatrix(val.spec.num_classes)
    for index in range(len(val)):
        image = read_image(val.image_path(index)).astype(np.int64) >> (8 - classifier.bits)
        levels = 1 << classifier.bits
        predicted = classifier.table[
            (image[..., 0] * levels + image[..., 1]) * levels + image[..., 2]
        ]
        label = read_label(val.label_path(index), spec=val.spec)
        matrix.update(torch.from_numpy(predicted), torch.from_numpy(label).long())
    assert scores["miou"] == pytest.approx(matrix.miou(), abs=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-12)


def test_separable_colours_are_told_apart() -> None:
    counts = np.zeros((32**3, 3), np.int64)
    counts[:1000, 0], counts[5000:9000, 1], counts[20000:20100, 2] = 5, 7, 90
    classifier = colour_classifier.fit_table(counts, bits=5, power=0.5)
    matrix = classifier.confusion(counts)
    assert np.array_equal(matrix, np.diag([5000, 28000, 9000]))


def test_power_favours_rare_classes() -> None:
    counts = np.zeros((32**3, 2), np.int64)
    counts[0] = [60, 40]
    counts[32**3 - 1] = [900, 0]
    common = colour_classifier.fit_table(counts, bits=5, power=0.0)
    rare = colour_classifier.fit_table(counts, bits=5, power=1.0)
    assert common.table[0] == 0 and rare.table[0] == 1


def test_class_that_training_lacks_is_never_predicted() -> None:
    counts = np.zeros((32**3, 3), np.int64)
    counts[100:200, 0], counts[300:400, 1] = 5, 5
    for power in colour_classifier.POWERS:
        assert not (colour_classifier.fit_table(counts, bits=4, power=power).table == 2).any()


def test_coarser_keeps_every_pixel() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (32**3, 2))
    small = colour_classifier.coarser(counts, 3)
    assert small.shape == (8**3, 2)
    red, green, blue = 3, 7, 1
    cells = counts.reshape(32, 32, 32, 2)[
        red * 4 : red * 4 + 4, green * 4 : green * 4 + 4, blue * 4 : blue * 4 + 4
    ]
    assert np.array_equal(small[(red * 8 + green) * 8 + blue], cells.sum(axis=(0, 1, 2)))


def test_prints_the_network_beside_it_and_writes_json(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = build_files(dataset="cityscapes", root=demo, split="val").spec.names
    metrics = tmp_path / "metrics.json"
    metrics.write_text(
        json.dumps(
            {"miou": 0.625, "per_class": {name: None if name == "train" else 0.5 for name in names}}
        )
    )
    assert (
        colour_classifier.main(
            [str(demo), "--metrics", str(metrics), "--json", str(tmp_path / "colour.json")]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["class", "colour", "network", "gap"]
    mean = printed.splitlines()[-1].split()
    written = json.loads((tmp_path / "colour.json").read_text())
    assert mean == [
        "mean",
        f"{100 * written['miou']:.1f}",
        "62.5",
        f"{62.5 - 100 * written['miou']:.1f}",
    ]
    assert set(written["per_class"]) == set(names)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"miou": 0.5}', '{"miou": 0.5, "per_class": {"zebra": 0.1}}']
)
def test_wrong_metrics_are_one_sentence(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    assert colour_classifier.main([str(demo), "--metrics", str(tmp_path / "metrics.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "metrics.json" in error and len(error.splitlines()) == 1


def test_missing_folder_and_single_image_are_one_sentence(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert colour_classifier.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    single = tmp_path / "single"
    assert (
        make_demo_data(
            [
                str(single),
                "--train",
                "1",
                "--val",
                "1",
                "--test",
                "0",
                "--extra",
                "0",
                "--size",
                "64",
                "64",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert colour_classifier.main([str(single)]) == 2
    assert "single image" in capsys.readouterr().err


def test_damaged_image_is_one_sentence(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for path in demo.rglob("*.png"):
        target = copy / path.relative_to(demo)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    broken = next((copy / "leftImg8bit" / "val").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:500])
    assert colour_classifier.main([str(copy)]) == 2
    assert broken.name in capsys.readouterr().err
