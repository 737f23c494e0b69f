"""Every YAML that is shipped.

It loads, editors find its schema, and what claims to be the paper's holds the paper's values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hmsa.utils.config import Config, load_config
from hmsa.utils.files.yaml_loader import read_yaml
from scripts.write_schema import schemas

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
CLASS_LISTS = sorted(CONFIGS.rglob("classes.yaml"))
EXPERIMENTS = sorted(set(CONFIGS.rglob("*.yaml")) - set(CLASS_LISTS))
PAPER = json.loads((ROOT / "tests" / "data" / "paper_values.json").read_text(encoding="utf-8"))
REQUIRED = [
    *(
        f"configs/mapillary/deeplabv3plus_r50_{kind}.yaml"
        for kind in ("single", "explicit", "hierarchical")
    ),
    *(f"configs/mapillary/hrnet_ocr_{kind}.yaml" for kind in ("single", "hierarchical")),
    *(
        f"configs/cityscapes/hrnet_ocr_{kind}.yaml"
        for kind in ("single", "hierarchical", "teacher", "student", "sota")
    ),
]


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("policy", "class_thresholds"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def resolved(name: str | Path) -> dict[str, Any]:
    return dict(flat(load_config(ROOT / name).to_dict()))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_yaml_loads_and_survives_its_dictionary(path: Path) -> None:
    config = load_config(path)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", [*EXPERIMENTS, *CLASS_LISTS], ids=name_of)
def test_first_line_names_a_schema_that_exists(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    wanted = "classes.schema.json" if path in CLASS_LISTS else "schema.json"
    assert Path(os.path.normpath(path.parent / first.removeprefix(prefix))) == CONFIGS / wanted


def test_schemas_on_disk_are_those_of_the_models() -> None:
    for path, text in schemas().items():
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text), (
            f"{path}: run python scripts/write_schema.py"
        )


def test_schema_names_every_option_with_its_meaning() -> None:
    schema = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))

    def properties(node: dict[str, Any]) -> Iterator[str]:
        for name, entry in node["properties"].items():
            assert name == "base" or entry.get("description"), name
            yield name
            references = [
                entry.get("$ref"),
                *(choice.get("$ref") for choice in entry.get("anyOf", [])),
            ]
            for reference in filter(None, references):
                inner = schema["$defs"][reference.rpartition("/")[2]]
                assert inner["additionalProperties"] is False
                yield from (f"{name}.{part}" for part in properties(inner))

    names = set(properties(schema))
    assert {
        "base",
        "optim.lr",
        "data.extra.policy",
        "data.class_uniform.tile",
        "autolabel.class_thresholds",
    } <= names
    assert {
        name
        for name, _ in flat(
            load_config(CONFIGS / "cityscapes/release/hrnet_ocr_sota.yaml").to_dict()
        )
    } <= names


def test_all_recipes_of_the_paper_are_there() -> None:
    assert set(REQUIRED) <= set(PAPER["recipes"])
    assert all((ROOT / name).is_file() for name in REQUIRED)


@pytest.mark.parametrize("name", sorted(PAPER["recipes"]))
def test_recipe_holds_the_papers_values(name: str) -> None:
    values = resolved(name)
    family = next(folder for folder in PAPER["stated"] if name.startswith(f"{folder}/"))
    wanted = {
        **PAPER["stated"][family],
        **PAPER["not_stated"],
        **PAPER["section_3_1"]["release"],
        **PAPER["recipes"][name],
    }
    assert {key: values.get(key, "absent") for key in wanted} == wanted
    assert values["runtime.precision"] in ("bf16", "fp16"), "mixed precision"


def test_defaults_are_the_papers_values_for_cityscapes() -> None:
    """What no recipe sets is the paper's all the same: a changed default changes every result."""
    of_recipes = {"optim.reference_batch", "runtime.precision", "eval.precision"}
    wanted = {
        **PAPER["stated"]["configs/cityscapes"],
        **PAPER["not_stated"],
        **PAPER["section_3_1"]["release"],
    }
    values = dict(flat(Config().to_dict()))
    assert {key: values[key] for key in wanted if key not in of_recipes} == {
        key: value for key, value in wanted.items() if key not in of_recipes
    }


def test_choices_that_the_paper_leaves_open_are_said_in_the_readme() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    section = text.split("## What the paper does not say")[1]
    section += text.split("## Where the release's network differs")[1]
    for key in [*PAPER["not_stated"], *PAPER["section_3_1"]["release"]]:
        named = key if not key.startswith("loss.rmi.") else "loss.rmi.*"
        silent = key in ("optim.warmup_steps", "optim.clip_norm", "optim.ema_decay")
        group = "`data.class_uniform`" if key.startswith("data.class_uniform.") else f"`{named}`"
        assert silent or group in section, key
    assert "| warm-up, clipping, averaged weights | none |" in section


@pytest.mark.parametrize("name", sorted(PAPER["deviations"]))
def test_variants_of_the_papers_text_have_its_heads_and_fusion(name: str) -> None:
    folder = Path(name).parent.name
    wanted = PAPER["section_3_1"][folder]
    assert {key: resolved(name)[key] for key in wanted} == wanted


def test_training_on_the_validation_images_keeps_the_last_weights() -> None:
    """The mIoU of images that were trained on must not choose the weights."""
    on_val = [
        path for path in EXPERIMENTS if load_config(path).data.train_split in ("trainval", "val")
    ]
    assert len(on_val) == 2
    for path in on_val:
        assert load_config(path).runtime.best_weights == "last", path


@pytest.mark.parametrize("name", sorted(PAPER["deviations"]))
def test_release_deviates_exactly_where_it_is_written(name: str) -> None:
    table = dict(PAPER["deviations"][name])
    paper, release = resolved(table.pop("of")), resolved(name)
    differing = {
        key: release.get(key, "absent")
        for key in {*paper, *release}
        if paper.get(key) != release.get(key)
    }
    assert {
        key: value for key, value in differing.items() if not key.startswith("experiment.")
    } == table


def test_every_recipe_in_the_papers_folders_is_in_the_table() -> None:
    """A new file is compared with the paper, or a named deviation, or no recipe by itself."""
    shared = {"training.yaml"}
    on_disk = {
        name_of(path)
        for family in PAPER["stated"]
        for path in (ROOT / family).rglob("*.yaml")
        if path.name not in shared
    }
    assert on_disk == {*PAPER["recipes"], *PAPER["deviations"]}


def test_deviations_live_apart_and_say_why() -> None:
    for name in PAPER["deviations"]:
        assert Path(name).parent.name in ("release", "paper_text")
        comments = [
            line
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()[1:]
            if line.startswith("#")
        ]
        assert len(" ".join(comments)) > 60, f"{name} does not say why it deviates"


def test_runs_of_different_recipes_never_share_a_folder() -> None:
    outputs = [
        load_config(ROOT / name).experiment.output
        for name in [*PAPER["recipes"], *PAPER["deviations"], "configs/demo.yaml"]
    ]
    assert len(set(outputs)) == len(outputs)


def test_checkpoints_and_labels_that_recipes_read_are_those_that_recipes_write() -> None:
    outputs = {load_config(path).experiment.output for path in EXPERIMENTS}
    for path in EXPERIMENTS:
        config = load_config(path)
        places = [config.model.init_from, config.data.extra.root if config.data.extra else None]
        for place in filter(None, places):
            assert any(place.startswith(f"{output}/") for output in outputs), (
                f"{path}: nothing writes {place}"
            )


def test_class_list_of_camvid() -> None:
    content = read_yaml(CONFIGS / "camvid" / "classes.yaml").value
    assert content["ignore"] == 255
    assert [entry["id"] for entry in content["classes"]] == list(range(11))
    assert content["classes"][10] == {"name": "Bicyclist", "color": [0, 128, 192], "id": 10}
    assert (
        load_config(CONFIGS / "camvid" / "deeplabv3plus_r18_hierarchical.yaml").data.classes
        == "configs/camvid/classes.yaml"
    )


def test_commands_in_the_readme_name_what_exists() -> None:
    lines = [
        line
        for line in (CONFIGS / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("torchrun ")
    ]
    assert len(lines) == 11
    trained: set[str] = set()
    for line in lines:
        words = line.split()
        assert (ROOT / words[3]).is_file()
        if words[3] == "train.py":
            config = load_config(ROOT / words[4], words[5:])
            accumulated = 8 * config.data.batch_size * config.optim.accumulate
            assert accumulated == config.optim.reference_batch
            needed = [config.model.init_from, config.data.extra.root if config.data.extra else None]
            trained.add(config.experiment.output)
        else:
            needed = [words[words.index("--checkpoint") + 1]]
            trained.add(words[words.index("--output") + 1] if "--output" in words else "")
        for place in filter(None, needed):
            assert any(place.startswith(done) for done in trained if done), (
                f"{line}: {place} is not there yet"
            )
