"""Every recipe builds and learns.

First on the meta device in full, then one training step on a miniature tree with only sizes and
paths changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hmsa.engine import build
from hmsa.engine.step import TrainingStep
from hmsa.utils.config import load_config
from hmsa.utils.processes import join
from tests.datasets.trees import make_auto_labels, make_cityscapes, make_mapillary

ROOT = Path(__file__).resolve().parents[1]
TABLE = json.loads((ROOT / "tests" / "data" / "paper_values.json").read_text(encoding="utf-8"))
# Table 2's rows are the single, teacher and student recipes recombined, and a release teacher is a
# teacher.
RECIPES = sorted(
    name for name in (*TABLE["recipes"], *TABLE["deviations"]) if "/table2/" not in name
)
# The published checkpoints' parameters, with 19 classes.
PARAMETERS = {
    "ocr hierarchical release": 72_143_430,
    "ocr single release": 70_372_678,
}


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Miniatures of Cityscapes with coarse labels, a teacher's labels, and Mapillary Vistas 1.2."""
    folder = tmp_path_factory.mktemp("recipes")
    cities = {
        "train": {"aachen": 3, "bremen": 2},
        "val": {"lindau": 1},
        "train_extra": {"bayreuth": 3},
    }
    names = [f"bayreuth/bayreuth_{number:06d}_000019_leftImg8bit" for number in range(3)]
    return {
        "cityscapes": make_cityscapes(folder / "cityscapes", cities),
        "autolabels": make_auto_labels(
            folder / "autolabels", names, form="ids", manifest=True, complete=True, label_ids="raw"
        ),
        "mapillary": make_mapillary(
            folder / "mapillary", version="1.2", splits={"training": 4, "validation": 1}
        ),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_in_full_on_the_meta_device(name: str) -> None:
    config = load_config(ROOT / name)
    with torch.device("meta"):
        model = build.model_from(config, num_classes=19, trunk_weights=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    kind = f"{config.model.decoder} {config.model.multiscale} {config.model.head}"
    assert count == PARAMETERS.get(kind, count) and count > 25e6
    assert tuple(model.train_scales) == config.model.train_scales


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_a_training_step(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    family = load_config(ROOT / name).data.dataset
    overrides = [
        f"data.root={trees[family]}",
        f"experiment.output={tmp_path}",
        f"data.cache_dir={tmp_path}",
        "data.workers=0",
    ]
    overrides += [
        "model.trunk_weights=null",
        "model.init_from=null",
        "data.crop=[64, 96]",
        "data.class_uniform.tile=16",
    ]
    plain = load_config(ROOT / name)
    if plain.data.long_edge is not None:
        overrides.append("data.long_edge=40")
    if plain.data.extra is not None and plain.data.extra.labels == "auto":
        overrides.append(f"data.extra.root={trees['autolabels']}")
    config = load_config(ROOT / name, overrides)
    processes = join(device="cpu", timeout_minutes=1.0)
    files = build.split_files(config, config.data.train_split)
    loader = build.train_loader(config, files, processes)
    state = build.training_state(config, files, processes)
    criterion = build.criterion(config, files)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]

    step = TrainingStep(config, state, criterion, processes)
    found = step.gradients([next(iter(loader.epoch(0, start_step=0)))])
    assert step.update(found) == [False]
    processes.close()

    assert all(torch.isfinite(term) for term in found.terms.values())
    assert {"rmi", "bce"} <= set(found.terms)
    wanted = (
        []
        if config.model.multiscale == "single"
        else [f"attention_{scale:g}" for scale in config.model.train_scales]
    )
    assert list(found.attention) == wanted and (
        not wanted or float(sum(found.attention.values())) == pytest.approx(1, abs=1e-3)
    )
    assert ("aux" in found.terms) == (config.model.decoder == "ocr")
    assert len([term for term in found.terms if term.startswith("scale_")]) == (
        len(config.model.train_scales) if config.loss.scale_weight else 0
    )
    moved = sum(
        not torch.equal(old, new) for old, new in zip(before, state.model.parameters(), strict=True)
    )
    assert moved > 0.9 * len(before)


@pytest.mark.parametrize(("what", "compiled"), [("off", []), ("trunk", ["trunk"]), ("model", [""])])
def test_compiling_in_place_keeps_the_keys(what: str, compiled: list[str]) -> None:
    config = load_config(
        ROOT / "configs/mapillary/deeplabv3plus_r50_hierarchical.yaml", ["model.trunk_weights=null"]
    )
    with torch.device("meta"):
        model = build.model_from(config, num_classes=3, trunk_weights=False)
    keys = list(model.state_dict())
    build.compile_in_place(model, what)
    assert list(model.state_dict()) == keys
    assert [
        name for name, module in model.named_modules() if module._compiled_call_impl is not None
    ] == compiled
