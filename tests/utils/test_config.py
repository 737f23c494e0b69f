"""Configuration files: inheritance, overrides, and every mistake at once.

Each mistake comes with its place and the nearest right word.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa.utils.config import Config, ConfigError, dump, iter_fields, load_config
from hmsa.utils.files.yaml_loader import parse_yaml

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, **files: str) -> Path:
    """Write the files; the first one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def mistakes_of(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [str(mistake).replace(f"{path.parent}/", "") for mistake in caught.value.mistakes]


def test_an_empty_file_is_the_papers_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, a="# nothing\n"))
    assert config == Config()
    assert (config.optim.lr, config.optim.weight_decay, config.model.trunk, config.loss.main) == (
        0.01,
        5e-4,
        "hrnet_w48",
        "rmi",
    )


def test_one_mistake_is_one_line_with_file_line_path_and_the_right_word(tmp_path: Path) -> None:
    path = write(tmp_path, a="optim:\n  lr: 5e-3\n  momentun: 0.9\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:3: optim.momentun: unknown key (did you mean 'momentum'?)"
    assert isinstance(caught.value, ValueError)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    text = """base: b.yaml
optim:
  momentun: 0.9
  lr: fast
  epochs: 1.5
  epochs: 3
  backend: fusd
  clip_norm: -1
eval:
  flip: yes
  tile: None
  scales: [0.5, 0.5]
data:
  crop: [3]
  scale_range: [2, 1]
  color: .nan
  cv: true
  extra: {labels: atuo, policy: {car: humn}}
model:
  trunk: resnet52
loss:
lerning_rate: 1e-3
"""
    path = write(tmp_path, a=text, b="experiment:\n  sead: 3\n")
    found = mistakes_of(
        path, ["runtime.tf32=on", "optm.lr=1", "x", "eval.overlap=[1", "experiment.seed=07"]
    )
    assert found == [
        "a.yaml:3: optim.momentun: unknown key (did you mean 'momentum'?)",
        "a.yaml:4: optim.lr: expected a number, got 'fast'",
        "a.yaml:6: optim.epochs: duplicate key (it stands in line 5 already)",
        "a.yaml:7: optim.backend: 'fusd' is none of auto, torch, foreach, fused, apex"
        " (did you mean 'fused'?)",
        "a.yaml:8: optim.clip_norm: must be greater than 0, got -1",
        "a.yaml:10: eval.flip: expected true or false, got 'yes'; write true",
        "a.yaml:11: eval.tile: expected a list in brackets, got 'None'; write null for none",
        "a.yaml:12: eval.scales: names a scale twice",
        "a.yaml:14: data.crop[1]: a value is missing; got only [3]",
        "a.yaml:15: data.scale_range: [2, 1] runs backwards; write [1, 2]",
        "a.yaml:16: data.color: expected a finite number, got nan",
        "a.yaml:17: data.cv: expected a whole number, got true",
        "a.yaml:18: data.extra.labels: 'atuo' is none of coarse, auto (did you mean 'auto'?)",
        "a.yaml:18: data.extra.policy.car: 'humn' is none of auto, human, union, drop"
        " (did you mean 'human'?)",
        "a.yaml:20: model.trunk: 'resnet52' is none of hrnet_w48, hrnet_w32, hrnet_w18,"
        " hrnet_w18_small, resnet18, resnet34, resnet50, resnet101, timm:NAME, module:name"
        " (did you mean 'resnet50'?)",
        "a.yaml:21: loss: expected a section: options as 'key: value' lines below it, got null",
        "a.yaml:22: lerning_rate: unknown key (did you mean 'optim.lr'?)",
        "b.yaml:2: experiment.sead: unknown key (did you mean 'seed'?)",
        "command line: 'x' is no override; write section.key=value",
        "command line: eval.overlap: not valid YAML (expected ',' or ']', but got '<stream end>',"
        " while parsing a flow sequence)",
        "command line: experiment.seed: '07' has leading zeros, which YAML readers take"
        ' differently; write 7 or quote it: "07"',
        "command line: runtime.tf32: expected true or false, got 'on'; write true",
        "command line: optm: unknown key (did you mean 'optim'?)",
    ]


@pytest.mark.parametrize(
    ("section", "key", "word"),
    [
        ("optim", "momentun", "momentum"),
        ("optim", "learing_rate", "lr"),
        ("optim", "batch_size", "data.batch_size"),
        ("model", "backbone", "trunk"),
        ("data", "class_unifrom", "class_uniform"),
        ("data", "num_workers", "workers"),
        ("runtime", "fp16", "precision"),
        ("data.extra", "probabilty", "probability"),
        ("data", "threshold", "loss.ohem.threshold"),
    ],
)
def test_did_you_mean(section: str, key: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({}, [f"{section}.{key}=1"])
    assert f"{section}.{key}: unknown key (did you mean '{word}'?)" in str(caught.value)


def test_a_key_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"experiment\.zzz: unknown key; experiment has name, output, seed"
    ):
        Config.from_dict({"experiment": {"zzz": 1}})


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr='0.1'",
        "optim.lr=true",
        "optim.lr=0",
        "optim.lr=.inf",
        "optim.epochs=2.0",
        "optim.epochs=1e2",
        "experiment.name=3",
        "data.crop=512",
        "data.crop=[1.5, 2]",
        "data.crop=[0, 4]",
        "data.crop=[1, 2, 3]",
        "data.flip=1.5",
        "eval.scales=1.0",
        "eval.scales=[]",
        "eval.scales=[-1]",
        "model.output_stride=32",
        "model.output_stride=8.0",
        "data.cv=3",
        "model.trunk='timm:'",
        "optim.ema_decay=1",
        "data.class_uniform.tile=true",
        "data.extra=true",
        "data.extra={labels: auto, root: x, mode: blend}",
        "loss.rmi.radius=4.0",
        "loss.rmi.lambda_way=true",
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({}, [override])
    assert override.split("=")[0] in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_whole_numbers_are_numbers() -> None:
    config = Config.from_dict(
        {}, ["data.flip=1", "eval.scales=[1, 2]", "data.class_uniform.tile=[3, 4]"]
    )
    assert (config.data.flip, config.eval.scales, config.data.class_uniform.tile) == (
        1.0,
        (1.0, 2.0),
        (3, 4),
    )


def test_bases_are_overlaid_in_order_and_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", b="base: ../c.yaml\noptim: {lr: 0.2, epochs: 2}\n")
    write(
        tmp_path,
        c="optim: {lr: 0.3, epochs: 3, momentum: 0.3}\neval: {scales: [0.25, 1.0]}\n",
        d="optim: {epochs: 4}\n",
    )
    path = write(
        tmp_path,
        a="base: [in/b.yaml, d.yaml]\noptim: {lr: 1}\ndata: {extra: {labels: coarse}}\n",
        e="base: a.yaml\ndata: {extra: null}\n",
    )
    config = load_config(path)
    assert (config.optim.lr, config.optim.epochs, config.optim.momentum, config.eval.scales) == (
        1.0,
        4,
        0.3,
        (0.25, 1.0),
    )
    assert config.data.extra is not None
    assert load_config(tmp_path / "e.yaml").data.extra is None


def test_a_mistake_in_a_base_names_the_base_and_goes_when_it_is_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, a="base: b.yaml\n", b="optim:\n  lr: -1\n")
    assert mistakes_of(path) == ["b.yaml:2: optim.lr: must be greater than 0, got -1"]
    assert mistakes_of(path, ["optim.lr=-2"]) == [
        "command line: optim.lr: must be greater than 0, got -2"
    ]
    assert load_config(path, ["optim.lr=0.5"]).optim.lr == 0.5


def test_missing_base_names_the_chain_and_the_nearest_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, a="experiment: {seed: -1}\nbase: b.yaml\n", b="\nbase: deom.yaml\n", demo=""
    )
    assert [text.replace(f"{tmp_path}/", "") for text in mistakes_of(path)] == [
        "a.yaml:1: experiment.seed: must be at least 0, got -1",
        "b.yaml:2: base: no such file 'deom.yaml' (did you mean 'demo.yaml'?):"
        " a.yaml -> b.yaml -> deom.yaml",
    ]


@pytest.mark.parametrize("loop", [["a"], ["b", "a"], ["b", "c", "a"], ["b", "c", "b"]])
def test_cycles_name_the_chain(tmp_path: Path, loop: list[str]) -> None:
    for name, base in zip(["a", *loop], loop, strict=False):
        write(tmp_path, **{name: f"base: ./{base}.yaml\n"})
    (mistake,) = [text.replace(f"{tmp_path}/", "") for text in mistakes_of(tmp_path / "a.yaml")]
    chain = " -> ".join(f"{name}.yaml" for name in ["a", *loop])
    assert mistake.endswith(f"base: inherits from itself: {chain}")


@pytest.mark.parametrize("base", ["3", "[1]", "{a: b}", "['']", "true"])
def test_base_must_be_file_names(tmp_path: Path, base: str) -> None:
    assert mistakes_of(write(tmp_path, a=f"base: {base}\n")) == [
        "a.yaml:1: base: expected a file name or a list of file names"
    ]


def test_unreadable_bases_do_not_hide_other_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, a="base: [b.yaml, c.yaml]\noptim: {lrr: 1}\n", b="a: [", c="[1]")
    found = mistakes_of(path)
    assert len(found) == 3
    assert found[0] == "a.yaml:2: optim.lrr: unknown key (did you mean 'lr'?)"
    assert found[1].startswith("b.yaml:1: base: not valid YAML") and found[2].startswith(
        "c.yaml: base: holds no options"
    )


def test_overrides_are_yaml_and_the_last_wins() -> None:
    config = Config.from_dict(
        {"optim": {"lr": 0.3}},
        [
            "optim.lr=1e-3",
            "optim.lr=5E-3",
            "eval.scales=[0.5,1.0]",
            "data.class_uniform={fraction: 0.25, tile: 64}",
            "data.class_uniform.point=centroid",
            "data.extra.labels=coarse",
            "optim.clip_norm=null",
            "experiment.name=no",
            "data.root=/a b/c=d",
            "autolabel.class_thresholds={car: 0.5}",
            "autolabel.class_thresholds.bus=0.25",
        ],
    )
    assert config.optim.lr == 5e-3
    assert config.eval.scales == (0.5, 1.0)
    assert (
        config.data.class_uniform.fraction,
        config.data.class_uniform.tile,
        config.data.class_uniform.point,
    ) == (0.25, (64, 64), "centroid")
    assert config.data.extra is not None and config.data.extra.labels == "coarse"
    assert (config.experiment.name, config.experiment.output, config.data.root) == (
        "no",
        "runs/no",
        "/a b/c=d",
    )
    assert config.autolabel.class_thresholds == {"car": 0.5, "bus": 0.25}


@pytest.mark.parametrize("text", ["optim.lr", "=3", "optim.=3", ".lr=3", "optim..lr=3", ""])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(ConfigError, match="is no override; write section.key=value"):
        Config.from_dict({}, [text])


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["model.train_scales=[0.5, 2.0]"], "model.train_scales"),
        (["model.train_scales=[1.0]"], "model.train_scales"),
        (["model.train_scales=[1.0, 0.5]"], "model.train_scales"),
        (["model.multiscale=explicit", "model.train_scales=[0.5, 2.0]"], "model.train_scales"),
        (["model.multiscale=single", "model.train_scales=[0.5, 1.0]"], "model.train_scales"),
        (["data.scale_range=[2, 1]"], "data.scale_range"),
        (["data.blur_sigma=[2, 1]"], "data.blur_sigma"),
        (["data.classes=c.yaml"], "data.classes"),
        (["data.dataset=folder", "data.cv=0"], "data.cv"),
        (["data.extra.labels=auto"], "data.extra.root"),
        (["data.extra={labels: coarse, root: x}"], "data.extra.root"),
        (["data.extra={labels: coarse, mask_border: true}"], "data.extra.mask_border"),
        (["data.extra={labels: coarse, policy: {car: human}}"], "data.extra.policy"),
        (["data.extra={labels: coarse, mode: boost}"], "data.extra.boost_classes"),
        (["data.extra={labels: coarse, boost_classes: [car]}"], "data.extra.boost_classes"),
        (
            [
                "data.extra={labels: coarse, mode: boost, boost_classes: [car]}",
                "data.class_uniform.fraction=0",
            ],
            "data.extra.mode",
        ),
        (["optim.lr_scaling=linear"], "optim.reference_batch"),
        (
            ["optim.schedule=scl_poly", "optim.epochs=3", "optim.rescale_epoch=3"],
            "optim.rescale_epoch",
        ),
    ],
)
def test_contradictions_between_fields(overrides: list[str], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({}, overrides)
    assert [mistake.path for mistake in caught.value.mistakes] == [place]
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({}, [*overrides, "runtime.precision=int8"])
    assert {mistake.path for mistake in caught.value.mistakes} == {place, "runtime.precision"}, (
        "a mistake elsewhere must not hide it"
    )


def test_train_scales_follow_multiscale_unless_given() -> None:
    chosen = {
        kind: Config.from_dict({}, [f"model.multiscale={kind}"]).model.train_scales
        for kind in ("single", "hierarchical", "explicit")
    }
    assert chosen == {"single": (1.0,), "hierarchical": (0.5, 1.0), "explicit": (0.5, 1.0, 2.0)}
    assert Config.from_dict({}, ["model.train_scales=[0.25, 1.0]"]).model.train_scales == (
        0.25,
        1.0,
    )


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(inner) for key, inner in value.items())
    return (
        all(map(plain, value))
        if type(value) is list
        else value is None or type(value) in (str, int, float, bool)
    )


SCALES = st.lists(st.floats(0.1, 4), min_size=1, max_size=4, unique=True)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "experiment": st.fixed_dictionaries(
                {"name": st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())}
            ),
            "optim": st.fixed_dictionaries(
                {},
                optional={"lr": st.floats(1e-9, 1e9), "clip_norm": st.none() | st.floats(1e-3, 10)},
            ),
            "eval": st.fixed_dictionaries({"scales": SCALES, "tile": st.none() | st.just([8, 9])}),
            "data": st.fixed_dictionaries(
                {
                    "extra": st.none() | st.just({"labels": "coarse"}),
                    "class_uniform": st.just({"tile": 7}),
                }
            ),
            "autolabel": st.fixed_dictionaries(
                {
                    "class_thresholds": st.dictionaries(
                        st.sampled_from(["car", "yes", "08", "1e3"]), st.floats(0, 1)
                    )
                }
            ),
        },
    )
)
def test_dictionary_and_dump_give_the_configuration_back(values: dict[str, Any]) -> None:
    config = Config.from_dict(values)
    assert plain(config.to_dict())
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(parse_yaml(dump(config), source="dump").value) == config


def test_dumped_file_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", ["optim.lr=1e-5", "runtime.compile=off"])
    assert load_config(write(tmp_path, a=dump(config))) == config


def test_a_stored_configuration_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^best\.pt: optim\.lrr: unknown key"):
        Config.from_dict({"optim": {"lrr": 1}}, source="best.pt")


def test_configurations_do_not_change() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 3.0  # type: ignore[misc]


def test_iter_fields_names_every_option_with_default_and_meaning() -> None:
    fields = {field.name: field for field in iter_fields()}
    assert {
        "experiment.seed",
        "data.extra",
        "data.extra.policy",
        "data.class_uniform.tile",
        "loss.rmi.radius",
        "autolabel.scales",
    } <= set(fields)
    assert "data.class_uniform" not in fields and "optim" not in fields
    for name, field in fields.items():
        assert field.description, name
        value: Any = Config()
        # Sections that are off by default hold nothing to compare with.
        is_off = name.startswith(("data.extra.", "model.wrap."))
        for part in [] if is_off else name.split("."):
            value = getattr(value, part)
        if is_off or name == "experiment.output":
            continue
        assert value == field.default, name


def test_schedule_arguments_are_the_schedules_keywords() -> None:
    import inspect

    from hmsa.utils.training.schedule import build_schedule

    assert {*Config().optim.schedule_arguments(), "steps_per_epoch"} == set(
        inspect.signature(build_schedule).parameters
    )


def test_importable_without_torch_or_numpy() -> None:
    code = (
        "import sys; import hmsa.utils.config;"
        " print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
