"""High scales where attention asks for them, from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmsa.engine import build
from hmsa.engine.arguments import autolabel_command, eval_command
from hmsa.engine.costs import relative_flops
from hmsa.network import InferenceOptions
from hmsa.network.inference import RefinedArea
from tests.engine.conftest import configuration, draw
from tests.engine.test_autolabel import make_teacher, tree_of

THREE = ["--scales", "0.5", "1", "2"]

ROOT = Path(__file__).resolve().parents[2]

# Auto-labelling that kills its process when the label of the second image is about to appear.
KILLED_AT_A_LABEL = """
import os, signal, sys
from hmsa.engine.arguments import autolabel_command

own = os.replace

def replace(source, target):
    if os.path.basename(target) == "train_1.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return own(source, target)

os.replace = replace
autolabel_command(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that are large enough for several blocks."""
    return draw(tmp_path_factory.mktemp("data"), train=3, val=2, size=(96, 144))


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hierarchical model that was never trained."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_teacher(folder, configuration(folder, data))


def test_an_evaluation_says_what_each_way_costs(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(checkpoint), *THREE, "--output", str(tmp_path / "out")]
    ways = ["1", "0.5,1", "0.5,1,2+refine=1", "0.5,1,2+refine=auto+flip"]
    assert eval_command([*command, "--refine", "0.3", "--compare", *ways]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, one, two, whole, flipped = metrics["compared"]
    assert metrics["refine"] == first["refine"] == 0.3 and flipped["refine"] == "auto"
    assert whole["refine"] == 1 and "2x on 30 %" in capsys.readouterr().out

    # Operations over those of one pass at scale 1; heads of attention come on top of the pixels.
    assert one["flops_relative"] == 1 and 1.25 <= two["flops_relative"] < 1.5
    assert 5.25 <= whole["flops_relative"] < 5.6
    assert two["flops_relative"] < first["flops_relative"] < whole["flops_relative"]
    assert [row["refined_share"] for row in (one, two, whole)] == [None, None, None]
    assert 0 < first["refined_share"] <= 0.3 and 0 <= flipped["refined_share"] <= 1
    assert all(row["seconds_per_image"] > 0 for row in metrics["compared"])


def test_the_page_shows_attention_at_the_longest_list(checkpoint: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert eval_command([*command, "--scales", "0.5", "1", "--compare", "0.5,1,2"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2x alone" in page and "attention 2x" in page and "at {0.5, 1, 2}." in page


def test_operations_of_what_was_left_out(checkpoint: Path) -> None:
    loaded = build.load_model(
        checkpoint, config_file=None, overrides=[], device=torch.device("cpu")
    )
    options = InferenceOptions((0.5, 1.0, 2.0), refine=0.3)
    costs = [
        relative_flops(
            loaded.model, options, RefinedArea(100, refined={2.0: 0.0}, computed={2.0: pixels})
        )
        for pixels in (0.0, 50.0, 100.0)
    ]
    none, half, whole = (cost for cost in costs if cost is not None)
    assert whole - none == pytest.approx(4, rel=0.02) and half == pytest.approx((none + whole) / 2)


@pytest.mark.parametrize("share", ["1.5", "some"])
def test_shares_that_are_none_are_one_sentence(
    share: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        eval_command([*command, "--refine", share])
    assert f"'{share}' is no share of the image" in capsys.readouterr().err
    assert eval_command([*command, "--compare", f"0.5,1,2+refine={share}"]) == 2
    error = capsys.readouterr().err
    assert f"'{share}' is no share of the image" in error and "Traceback" not in error


def test_a_model_without_attention_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = make_teacher(tmp_path, configuration(tmp_path, data, model={"multiscale": "single"}))
    for command in (
        lambda words: eval_command([*words, "--output", str(tmp_path / "out")]),
        lambda words: autolabel_command(
            [*words, "--split", "val", "--output", str(tmp_path / "out")]
        ),
    ):
        assert command(["--checkpoint", str(single), *THREE, "--refine", "auto"]) == 2
        error = capsys.readouterr().err
        assert "of the kind single has no attention" in error and "Traceback" not in error


def test_refined_labels_say_so_and_come_out_the_same_again(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    images = ["--images", str(data / "images" / "train"), "--output", str(out)]
    command = ["--checkpoint", str(checkpoint), *THREE, *images, "autolabel.confidence=true"]
    assert autolabel_command([*command, "--refine", "0.4"]) == 0
    before = tree_of(out)
    assert json.loads(before["manifest.json"])["refine"] == 0.4

    # A job that is killed while it writes its second label goes on to the same bytes.
    killed = tmp_path / "killed"
    words = [*command[:-2], str(killed), command[-1], "--refine", "0.4"]
    done = subprocess.run([sys.executable, "-c", KILLED_AT_A_LABEL, *words], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    labels = [name for name in before if name.endswith(".png")]
    assert 0 < len(set(labels) & set(tree_of(killed))) < len(labels)
    assert autolabel_command(words) == 0
    assert tree_of(killed) == before

    # Other shares are other labels.
    capsys.readouterr()
    assert autolabel_command([*command, "--refine", "auto"]) == 2
    assert "refine" in capsys.readouterr().err and tree_of(out) == before
    assert autolabel_command(command) == 2 and tree_of(out) == before
    whole = tmp_path / "whole"
    assert autolabel_command([*command[:-2], str(whole), command[-1]]) == 0
    assert "refine" not in json.loads((whole / "manifest.json").read_text())
    assert tree_of(whole)["train_0_confidence.png"] != before["train_0_confidence.png"]
