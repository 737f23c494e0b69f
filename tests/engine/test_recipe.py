"""What a configuration of one's own images leaves open follows from data and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.engine import recipe
from hmsa.engine.arguments import train_command
from hmsa.engine.recipe import DataFacts, Machine, recipe_for, suited
from hmsa.engine.run_summary import too_short_for
from hmsa.utils.config import Config, load_config
from hmsa.utils.config.lookup import SHIPPED
from tests.datasets.trees import make_folder

TWO_CORES = Machine(cores=2, has_gpu=False, has_bf16=True)
SHIPPED_FOLDERS = [
    path
    for path in sorted(SHIPPED.rglob("*.yaml"))
    if path.name != "classes.yaml" and load_config(path).data.dataset == "folder"
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipe, "this_machine", lambda: TWO_CORES)
    names = [f"n{number}" for number in range(5)]
    return make_folder(tmp_path / "mine", {"train": names, "val": ["v"]})


def four_lines(root: Path, *overrides: str) -> Config:
    path = root.parent / "four.yaml"
    path.write_text(f"data:\n  dataset: folder\n  root: {root}\n  classes: {root}/classes.yaml\n")
    return load_config(path, overrides)


def test_four_lines_train_a_small_network(root: Path) -> None:
    config, said = suited(four_lines(root))
    assert config.model.decoder == "deeplabv3plus" and config.data.crop == (32, 32)
    assert (config.data.batch_size, config.data.workers, config.optim.epochs) == (5, 1, 200)
    assert config.eval.scales == config.autolabel.scales == (0.5, 1.0)
    assert said is not None and "chosen for 5 images and 2 cores: data.crop=[32,32]" in said


def test_named_values_stay(root: Path) -> None:
    given = ("optim.epochs=7", "data.crop=[64,64]", "eval.scales=[1.0]", "data.blur=gaussian")
    config, said = suited(four_lines(root, *given))
    assert (config.optim.epochs, config.data.crop, config.eval.scales) == (7, (64, 64), (1.0,))
    assert config.data.blur == "gaussian" and config.optim.optimizer == "adamw"
    assert said is not None and "optim.epochs" not in said and "data.crop" not in said

    # A rate means nothing without its optimiser: both are the user's, or both are chosen.
    config, _ = suited(four_lines(root, "optim.lr=0.05"))
    assert (config.optim.optimizer, config.optim.lr, config.optim.epochs) == ("sgd", 0.05, 200)

    # With a network of the user's, crop and batch follow from the images, and nothing else.
    config, _ = suited(four_lines(root, "model.trunk=resnet34"))
    assert config.model.trunk == "resnet34" and config.data.crop == (32, 32)
    assert (config.optim.epochs, config.optim.optimizer, config.data.blur) == (
        175,
        "sgd",
        "gaussian",
    )


def test_a_short_training_has_a_warm_up_and_an_average_that_suit_it(root: Path) -> None:
    facts = DataFacts(32, [(96, 128)] * 5)
    whole, short = recipe_for(facts, TWO_CORES), recipe_for(facts, TWO_CORES, epochs=2)
    assert (whole.values["optim"]["warmup_steps"], whole.values["optim"]["ema_decay"]) == (40, 0.99)
    optim = short.values["optim"]
    assert (optim["epochs"], optim["warmup_steps"], optim["ema_decay"]) == (2, 0, None)

    # Four lines that name the epochs are the same wish.
    config, _ = suited(four_lines(root, "optim.epochs=2"))
    assert (config.optim.epochs, config.optim.warmup_steps) == (2, 0)
    assert config.optim.ema_decay is None

    # Of a file that was made for more, the training says what it lacks.
    made = Config.from_dict({"optim": {"epochs": 2, "warmup_steps": 40, "ema_decay": 0.99}})
    warm_up, average = too_short_for(made, steps=8)
    assert "warmed up for 40 steps" in warm_up and "optim.warmup_steps=0" in warm_up
    assert "still holds 92 % of the initial" in average and "optim.ema_decay=null" in average
    assert too_short_for(made, steps=800) == []


@pytest.mark.parametrize("path", SHIPPED_FOLDERS, ids=lambda path: path.stem)
def test_shipped_configurations_keep_their_numbers(path: Path) -> None:
    config = load_config(path)
    assert suited(config) == (config, None)
    assert suited(Config()) == (Config(), None)


def test_the_resolved_configuration_is_printed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four_lines(root)
    assert train_command([str(root.parent / "four.yaml"), "--print-config"]) == 0
    assert "decoder: deeplabv3plus" in capsys.readouterr().out


def test_recipes_follow_images_and_machine() -> None:
    """Crops within the images, large photographs made smaller, more on a GPU."""
    camvid = recipe_for(DataFacts(367, [(360, 480)] * 9), TWO_CORES)
    assert camvid.values["data"]["crop"] == [224, 288] and camvid.values["optim"]["epochs"] == 24
    assert 10 * 60 < camvid.seconds < 30 * 60
    assert camvid.values["runtime"]["calibrate"]
    assert not recipe_for(DataFacts(9, [(360, 480)]), TWO_CORES).values["runtime"]["calibrate"]

    phone = DataFacts(200, [(3000, 4000)] * 5)
    small = recipe_for(phone, TWO_CORES).values["data"]
    assert small["long_edge"] == 960 and small["crop"] == [256, 320]
    large = recipe_for(phone, Machine(cores=16, has_gpu=True, has_bf16=True)).values
    assert large["data"]["long_edge"] == 2048 and large["eval"]["scales"] == [0.5, 1.0, 2.0]
    assert recipe_for(DataFacts(1, [(20, 20)]), TWO_CORES).values["data"]["crop"] == [32, 32]
