"""Calibrating and attaching attention by the commands, and which images fit and judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmsa.engine import attach, build, calibrate
from hmsa.engine.arguments import parse_attach
from hmsa.engine.attach import epochs_of, short_training
from hmsa.engine.calibrate import (
    CalibrationError,
    Judge,
    choose_images,
    recording_of,
    spread_place,
)
from hmsa.engine.reporting import suggest_calibration
from hmsa.network import InferenceOptions
from hmsa.network.calibration import KeptMaps, fuse_kept, scales_switched_off, switched_off
from hmsa.network.model import PairBias
from hmsa.network.prediction import Prediction
from hmsa.utils.config import Config, load_config
from hmsa.utils.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.engine.conftest import Command, configuration
from tests.network.test_calibration import kept_with_wrong_attention, small_model

PAIR = (0.5, 1.0)
THREE = PairBias((3.0,))


class Names:
    """Stands for the files of a split, of which only the names matter here."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]


@pytest.mark.parametrize(
    ("name", "recording"),
    [
        ("val/aachen_000001_000019_leftImg8bit.png", "val/aachen_000001"),
        ("train/0016E5_07959.jpg", "train/0016E5"),
        ("holiday.png", "holiday.png"),
    ],
)
def test_the_recording_is_the_name_without_its_last_number(name: str, recording: str) -> None:
    assert recording_of(name) == recording


def test_a_recording_fits_or_judges_as_a_whole() -> None:
    names = [f"a/x_{n}.png" for n in range(5)] + [f"a/y_{n}.png" for n in range(4)] + ["a/z_0.png"]
    files: Any = Names(*names)
    fitting, judging = choose_images(files, count=10)
    assert sorted(fitting + judging) == list(range(10)) and len(fitting) == len(judging) == 5
    sides = [{recording_of(names[index]) for index in side} for side in (fitting, judging)]
    assert not sides[0] & sides[1]

    # A single recording is cut in the middle: neighbours are much alike.
    alone: Any = Names(*(f"x_{n}.png" for n in range(9)))
    assert choose_images(alone, count=6) == ([0, 1, 3], [4, 6, 7])
    with pytest.raises(CalibrationError, match="too few"):
        choose_images(files, count=3)


def judge_of(images: list[KeptMaps]) -> Judge:
    model = small_model()
    model.fuse_at = "features"
    return Judge(model, images, ignore_label=255)


def test_a_bias_is_kept_where_it_helps_and_only_there() -> None:
    wrong = judge_of([kept_with_wrong_attention(-3.0) for _ in range(8)])
    assert wrong.keep_what_helps({PAIR: THREE}) == {PAIR: THREE}
    right = judge_of([kept_with_wrong_attention(0.0) for _ in range(8)])
    assert right.keep_what_helps({PAIR: THREE}) == {}
    assert right.keep_what_helps({PAIR: PairBias((0.1,))}) == {}


def test_the_lowest_scale_is_switched_off_where_it_does_not_help() -> None:
    """0.5x and 1x are right where attention takes them; 0.25x is wrong and has a fifth."""
    kept = kept_with_wrong_attention(0.0)
    label = kept.label.long()[None, None]
    wrong = torch.full_like(kept.scales[0.5].logits, -4.0).scatter_(1, 1 - label, 40.0)
    lowest = Prediction(logits=wrong, attention=torch.full((1, 1, 16, 16), 0.2))
    scales, pair = {0.25: lowest, **kept.scales}, (0.25, 0.5)

    judge = judge_of([KeptMaps(scales, kept.label) for _ in range(4)])
    found = judge.keep_what_helps({pair: PairBias((0.5,))})
    assert found == {pair: switched_off()} and scales_switched_off(found) == [0.25]
    assert judge.miou(found) == 1.0 > judge.miou({})

    # Evaluation says so, and what is left is what the other scales give alone.
    judge.model.attention_bias = dict(found)
    described = build.describe_inference(judge.model, InferenceOptions(scales=tuple(scales)))
    assert "0.25x switched off" in described
    others = KeptMaps({scale: scales[scale] for scale in PAIR}, kept.label)
    fused = fuse_kept(judge.model, KeptMaps(scales, kept.label), found)
    assert torch.allclose(fused, fuse_kept(judge.model, others, {}), atol=1e-6)


def test_a_scale_that_helps_within_the_error_is_switched_off() -> None:
    """0.25x has nearly all of the result; it is right in five images of nine, or in all of them."""

    def image(right: bool) -> KeptMaps:
        kept = kept_with_wrong_attention(-3.0)
        label = kept.label.long()[None, None]
        logits = torch.full_like(kept.scales[0.5].logits, -40.0)
        logits.scatter_(1, label if right else 1 - label, 40.0)
        lowest = Prediction(logits=logits, attention=torch.full((1, 1, 16, 16), 0.9))
        return KeptMaps({0.25: lowest, **kept.scales}, kept.label)

    pair, pairs = (0.25, 0.5), [(0.25, 0.5), PAIR]
    off = {pair: switched_off()}
    judge = judge_of([image(right) for right in [True] * 5 + [False] * 4])
    gain, error = judge.gain({}, off)
    assert 0 < gain < error
    found = judge.without_idle_scales({}, pairs)
    assert found[pair] == off[pair]

    # The highest scale stays, whatever the others are worth.
    assert 1.0 not in scales_switched_off(found)
    helped = judge_of([image(True)] * 9).without_idle_scales({}, pairs)
    assert 0.25 not in scales_switched_off(helped)


def test_the_average_of_the_scales_is_scored_beside_attention() -> None:
    # The lower scale is right on the left half, and so sure that averaging follows it everywhere.
    kept = kept_with_wrong_attention(0.0)
    part = kept.scales[0.5]
    lower = Prediction(logits=3 * part.logits, attention=part.attention)
    judge = judge_of([KeptMaps({**kept.scales, 0.5: lower}, kept.label)])
    assert judge.miou({}) == 1.0
    assert judge.average().miou() == pytest.approx((0.5 + 0.0) / 2)


def test_a_gain_within_its_error_is_no_gain() -> None:
    # What helps five images harms three others as much.
    offsets = [-3.0] * 5 + [0.0] * 3
    judge = judge_of([kept_with_wrong_attention(offset) for offset in offsets])
    bias = PairBias((2.5,))
    gain, error = judge.gain({PAIR: bias}, {})
    assert 0 < gain < error
    assert judge.keep_what_helps({PAIR: bias}) == {}


@pytest.mark.parametrize(("judged_offset", "kept"), [(-3.0, True), (0.0, False)])
def test_images_that_were_not_fitted_decide_what_is_written(
    judged_offset: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention is off by 3 on the fitted images, and on those that judge perhaps is not."""
    maps = {
        "train": [kept_with_wrong_attention(-3.0) for _ in range(8)],
        "val": [kept_with_wrong_attention(judged_offset) for _ in range(8)],
    }
    sides = tuple(SimpleNamespace(split=split, indices=range(8)) for split in maps)
    model = small_model()
    model.fuse_at = "features"
    loaded = SimpleNamespace(
        config=Config.from_dict({}), model=model, spec=SimpleNamespace(ignore_label=255)
    )
    monkeypatch.setattr(build, "build_loaded", lambda opened, device: loaded)
    monkeypatch.setattr(calibrate, "labelled_images", lambda *_, **__: sides)
    monkeypatch.setattr(calibrate, "kept_maps", lambda side, *_, **__: maps[side.split])

    weights: dict[str, Any] = {"model": {}, "config": {}, "spec": {}}
    opened: Any = SimpleNamespace(path=tmp_path / "best.pt", weights=weights)
    images = calibrate.CalibrationImages(split="train", judge="val")
    options: dict[str, Any] = {"output": opened.path, "device": torch.device("cpu")}
    calibrate.calibrate(opened, scales=PAIR, images=images, **options)
    content = load_checkpoint(opened.path).content
    assert bool(content["attention_bias"]) == kept
    if kept:
        written = build.attention_bias_of(content)
        assert [len(numbers) for numbers in written[PAIR]] == [model.num_classes] * 2
        judge = judge_of(maps["val"])
        assert judge.miou(written) > judge.miou({}) + 0.2


@pytest.mark.slow
def test_calibrating_writes_biases_and_evaluation_uses_them(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    checkpoint = run / "checkpoints" / "best.pt"
    weights = load_checkpoint(checkpoint).content["model"]
    words = ["-m", "hmsa", "calibrate", "--checkpoint", run, "--scales", "0.5", "1", "--images"]
    done = command(*words, "6", "--judge", "train")
    assert "attention bias" in done.stdout and "that were not fitted" in done.stdout
    evidence = load_checkpoint(checkpoint).content["calibration"]
    assert evidence["images_fitted"] == evidence["images_judged"] == 3
    assert f"averaging the same scales gives {100 * evidence['miou_averaged']:.1f} %" in done.stdout

    # By default images that training did not see judge.
    command(*words, "4")
    content = load_checkpoint(checkpoint).content
    evidence = content["calibration"]
    assert evidence["split"] == "train" and evidence["judged_by"] == "val"
    assert evidence["images_fitted"] == 2 and evidence["images_judged"] == 3
    assert all(torch.equal(content["model"][key], weights[key]) for key in weights)

    # A bias that certainly changes the result, as a calibration writes it.
    save_checkpoint(checkpoint, {**content, "attention_bias": [[0.5, 1.0, 6.0]]})
    found = {}
    for name, words in {"auto": [], "off": ["eval.calibration=off"]}.items():
        out = tmp_path / name
        done = command(
            "eval.py", "--checkpoint", run, "--output", out, "--scales", "0.5", "1", *words
        )
        assert ("attention calibrated for 0.5-1" in done.stdout) == (name == "auto")
        found[name] = json.loads((out / "metrics.json").read_text())
    assert found["auto"]["attention_bias"] == [[0.5, 1.0, [6.0], [0.0]]]
    assert not found["off"]["attention_bias"]
    assert found["auto"]["loss"] != found["off"]["loss"]


@pytest.mark.slow
def test_attaching_trains_attention_alone(command: Command, street: Path, tmp_path: Path) -> None:
    single: dict[str, Any] = {
        "model": {"multiscale": "single"},
        "eval": {"scales": [1.0]},
        "autolabel": {"scales": [1.0]},
    }
    command("train.py", configuration(tmp_path, street, **single))
    run = tmp_path / "run"
    before = load_checkpoint(run / "checkpoints" / "best.pt").content["model"]

    command("-m", "hmsa", "attach", "--checkpoint", run, "--scales", "0.5", "1", "optim.epochs=1")
    content = load_checkpoint(tmp_path / "run_attention" / "checkpoints" / "best.pt").content
    assert all(torch.equal(content["model"][key], before[key]) for key in before)
    attention = [key for key in content["model"] if key not in before]
    assert attention and all(key.startswith("attention.") for key in attention)
    assert content["config"]["model"]["multiscale"] == "hierarchical"
    assert content["calibration"]["scales"] == [0.5, 1.0]

    taken = ["--output", tmp_path / "config.yaml"]
    refused = command("-m", "hmsa", "calibrate", "--checkpoint", run, *taken, check=2)
    assert "config.yaml is there already" in refused.stderr
    refused = command("-m", "hmsa", "calibrate", "--checkpoint", run, check=2)
    assert "only hierarchical ones" in refused.stderr and "Traceback" not in refused.stderr
    again = ["-m", "hmsa", "attach", "--checkpoint", tmp_path / "run_attention"]
    refused = command(*again, check=2)
    assert "has attention already" in refused.stderr and "Traceback" not in refused.stderr


def test_images_too_few_to_calibrate_do_not_spoil_a_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_few(*arguments: object, **options: object) -> None:
        raise CalibrationError("split val has 1 images, too few for a calibration")

    monkeypatch.setattr(calibrate, "calibrate", too_few)
    monkeypatch.setattr(
        build, "open_checkpoint", lambda *_, **__: SimpleNamespace(weights={}, path=Path("x"))
    )
    with caplog.at_level("WARNING"):
        calibrate.calibrate_run(Config.from_dict({}), device=torch.device("cpu"))
    assert "not calibrated: split val has 1 images" in caplog.text


@pytest.mark.parametrize(
    ("runtime", "scales"), [({}, (0.5, 1.0, 2.0)), ({"calibrate_scales": [0.25, 1]}, (0.25, 1.0))]
)
def test_a_training_calibrates_for_its_scales_of_evaluation_or_for_others(
    runtime: dict[str, Any], scales: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **options: used.append(options))
    monkeypatch.setattr(
        build, "open_checkpoint", lambda *_, **__: SimpleNamespace(weights={}, path=Path("x"))
    )
    config = Config.from_dict({"runtime": runtime})
    calibrate.calibrate_run(config, device=torch.device("cpu"))
    assert used[0]["scales"] == scales


def test_pairs_that_nothing_was_fitted_to_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    loaded: Any = SimpleNamespace(config=Config.from_dict({}), model=model, path=Path("best.pt"))
    ways = [InferenceOptions(scales=scales) for scales in ((1.0,), (0.5, 1.0), (0.5, 1.0, 2.0))]

    def said(content: dict[str, Any], count: int = 3) -> str:
        caplog.clear()
        with caplog.at_level("INFO"):
            suggest_calibration(loaded, ways[:count], content)
        return caplog.text

    assert "between 1x and 2x; this may help: hmsa calibrate --checkpoint best.pt" in said({})
    assert "--scales 0.5 1 2" in said({})

    # What was trained, calibrated, or looked at by a calibration that kept nothing, is known.
    assert said({}, 2) == ""
    assert said({"calibration": {"scales": [0.5, 1.0, 2.0]}}) == ""
    model.attention_bias = {(1.0, 2.0): PairBias((2.4,))}
    assert said({}) == ""


@pytest.mark.parametrize(("images", "epochs"), [(0, 768), (10, 77), (192, 4), (768, 1), (2975, 1)])
def test_a_head_sees_some_hundred_crops_whatever_the_data(images: int, epochs: int) -> None:
    assert epochs_of(images) == epochs


def test_attaching_lists_the_images_once_before_it_trains(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set of a million images takes minutes to list."""
    single: dict[str, Any] = {
        "model": {"multiscale": "single"},
        "optim": {"ema_decay": 0.999},
        "runtime": {"calibrate_scales": [0.5, 1.0, 2.0]},
    }
    config = load_config(configuration(tmp_path, street, **single), [])
    spec = build.split_files(config, "train").spec
    save_checkpoint(
        tmp_path / "best.pt", {"config": config.to_dict(), "spec": spec.to_dict(), "model": {}}
    )
    listed, trained = [], []
    split_files = build.split_files

    def noted(config: Config, split: str, **keywords: Any) -> Any:
        listed.append(split)
        return split_files(config, split, **keywords)

    monkeypatch.setattr(build, "split_files", noted)
    monkeypatch.setattr(attach.train, "main", lambda config, resume: trained.append(config) or 0)
    assert attach.main(parse_attach(["--checkpoint", str(tmp_path / "best.pt")])) == 0
    assert listed == ["train"]

    # Six images, 128 epochs of three steps: an average over all of them.
    (given,) = trained
    assert given.model.freeze == ("trunk", "decoder")
    assert given.optim.epochs == epochs_of(6) == 128 and given.optim.ema_decay == 0.9922

    # It is calibrated for the scales of the head, whatever a recipe of its trunk's had.
    assert given.runtime.calibrate and given.runtime.calibrate_scales is None


def test_the_schedule_of_a_long_training_suits_a_short_one() -> None:
    published = {"schedule": "scl_poly", "warmup_steps": 1000}
    own = Config.from_dict({"optim": published}).optim
    assert short_training(own, epochs=1) == [
        "optim.epochs=1",
        "optim.warmup_steps=20",
        "optim.schedule=poly",
    ]
    assert short_training(Config.from_dict({}).optim, epochs=4) == [
        "optim.epochs=4",
        "optim.warmup_steps=0",
    ]


def test_windows_of_many_images_see_all_of_the_scene() -> None:
    places = np.array([spread_place(number) for number in range(48)])
    cells = np.floor(places * 4).astype(int)
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert counts.min() >= 2 and counts.max() <= 4


def test_the_average_of_an_attached_head_forgets_its_random_weights() -> None:
    """Five epochs of 61 steps: a decay of 0.995 would leave a fifth of them."""
    for decay, expected in ((0.995, 0.9902), (0.99, 0.99), (None, None)):
        optim = {"epochs": 5, "ema_decay": decay}
        config = Config.from_dict({"data": {"batch_size": 6}, "optim": optim})
        fitting = attach.with_fitting_average(config, images=367)
        assert fitting.optim.ema_decay == expected
        assert fitting.data == config.data and fitting.optim.epochs == 5
    assert 0.9902**305 < 0.051 < 0.2 < 0.995**305


@pytest.mark.parametrize(
    "rows",
    [
        [[0.5, 1.0]],
        [[1.0, 0.5, 2.0]],
        [["a", 1.0, 2.0]],
        [[0.5, 1.0, float("nan")]],
        [[0.5, 1.0, [1.0, float("inf")], [0.0]]],
        [[0.5, 1.0, [], [0.0]]],
        [[0.5, 1.0, [1.0], [1.0], [1.0]]],
        [[0.5, 1.0, ["a"], [1.0]]],
        [3],
    ],
)
def test_biases_that_are_none_are_one_sentence(rows: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="calibrate the checkpoint again"):
        build.attention_bias_of({"attention_bias": rows})


def test_biases_are_read_as_they_were_written_and_as_older_calibrations_did() -> None:
    biases = {(0.25, 0.5): PairBias((1.0, -2.0), (0.5, 0.0)), PAIR: THREE}
    rows = json.loads(json.dumps(build.rows_of_bias(biases)))
    assert build.attention_bias_of({"attention_bias": rows}) == biases
    assert build.attention_bias_of({"attention_bias": [[0.5, 1.0, 3.0]]}) == {PAIR: THREE}
    with pytest.raises(CheckpointError, match="3 classes"):
        build.attention_bias_of({"attention_bias": rows}, classes=3)
