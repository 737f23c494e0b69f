"""Nothing that stands in a configuration, or in its place, ends in a traceback or without an end.

Devices, pipes, files that inherit each other many times, odd numbers, odd characters, dictionaries
that hold themselves: each is one sentence of a ConfigError. And a shipped file is found from
anywhere.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmsa.utils.config import (
    MAX_MISTAKES,
    Config,
    ConfigError,
    find_config,
    iter_fields,
    load_config,
)
from hmsa.utils.config.sources import MAX_FILES
from hmsa.utils.files.yaml_loader import YamlError, parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
NAMES = [field.name for field in iter_fields()]
SECTIONS = ["data", "optim", "loss.rmi", "data.class_uniform"]


def the_mistake(values: dict[str, Any], *overrides: str) -> str:
    """The one sentence that is said about a configuration."""
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(values, overrides)
    (mistake,) = caught.value.mistakes
    assert "\n" not in str(mistake) and len(str(mistake)) < 600
    return str(mistake)


def nested(name: str, value: Any) -> Any:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


# Files that never end, or that nobody writes to.


def special_file(kind: str, folder: Path) -> Path:
    if kind == "fifo":
        path = folder / "pipe.yaml"
        os.mkfifo(path)
        return path
    return Path({"zero": "/dev/zero", "null": "/dev/null"}[kind])


KINDS = ["fifo", "zero", "null"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_or_a_pipe_is_no_configuration(kind: str, tmp_path: Path) -> None:
    path = special_file(kind, tmp_path)
    with pytest.raises(ConfigError, match="is a device or a pipe where a YAML file was expected"):
        load_config(path)
    with pytest.raises(YamlError, match="is a device or a pipe"):
        read_yaml(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_or_a_pipe_is_no_base(kind: str, tmp_path: Path) -> None:
    path = special_file(kind, tmp_path)
    (tmp_path / "a.yaml").write_text(f"base: {path}\n")
    with pytest.raises(ConfigError, match="base: is a device or a pipe"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    for path in (name, str(tmp_path / name)):
        with pytest.raises(ConfigError):
            load_config(path)


@pytest.mark.parametrize("text", ['"a\\0b"', "x" * 300])
def test_bases_that_no_file_can_be_called(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {text}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: base: |xxx.*cannot be read"):
        load_config(tmp_path / "a.yaml")


def test_bases_that_double_with_each_generation_are_counted(tmp_path: Path) -> None:
    """Sixteen files that each inherit the next one twice are 65,536 readings."""
    for number in range(16):
        (tmp_path / f"{number}.yaml").write_text(f"base: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "16.yaml").write_text("optim: {lr: 0.1}\n")
    with pytest.raises(ConfigError, match=f"inherits more than {MAX_FILES} files") as caught:
        load_config(tmp_path / "0.yaml")
    assert len(caught.value.mistakes) < 40
    assert load_config(tmp_path / "13.yaml").optim.lr == 0.1


def test_nested_lists_of_bases_are_no_names(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {'[' * 16}b.yaml{']' * 16}\n")
    with pytest.raises(ConfigError, match="expected a file name or a list of file names"):
        load_config(tmp_path / "a.yaml")


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(ConfigError):
            load_config(tmp_path / name)


def test_thousands_of_mistakes_are_told_in_seconds(tmp_path: Path) -> None:
    text = "".join(f"option_{number}: 1\n" for number in range(15_000))
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.yaml")
    assert len(caught.value.mistakes) == MAX_MISTAKES


# Odd values, for every option.

ODD_TEXTS = [
    "2001-99-99",
    "9" * 6000,
    f"0x{'f' * 6000}",
    f"0o{'7' * 6000}",
    f"1{'0' * 400}.0",
    "1e999",
    ".nan",
    "[.inf, 1]",
    "~",
    "012",
    '"\\0"',
    '"\\ud800"',
    "\ud800",
    "\x00",
    "&a [*a]",
    "&a {b: *a}",
    "{[1]: 2}",
    "!!python/object:x 1",
    "<<: 1",
    "",
]
LOOP: dict[str, Any] = {}
LOOP["a"] = LOOP
ODD_VALUES = [
    None,
    True,
    "",
    "\0",
    "\udcff",
    "x" * 5000,
    -1,
    17,
    10**4400,
    math.nan,
    math.inf,
    [],
    [None],
    [10**4400],
    [[[]]],
    {},
    {1: 2},
    {"\udcff": 1},
    LOOP,
    (1, 2),
    b"bytes",
    object(),
]


@pytest.mark.parametrize("name", [*NAMES, *SECTIONS, "nope", "data.nope"])
def test_odd_values_of_any_option_are_accepted_or_one_error(name: str) -> None:
    by_text = (({}, [f"{name}={text}"]) for text in ODD_TEXTS)
    by_value = ((nested(name, value), []) for value in ODD_VALUES)
    for values, overrides in itertools.chain(by_text, by_value):
        try:
            config = Config.from_dict(values, overrides)
        except ConfigError as error:
            assert all("\n" not in str(mistake) for mistake in error.mistakes)
            assert len(str(error)) < 2000
        else:
            assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("values", [None, 3, "text", [], [("a", 1)], {1: 2}, LOOP])
def test_what_is_no_dictionary_of_sections_is_one_sentence(values: Any) -> None:
    """As the `config` of a damaged checkpoint."""
    with pytest.raises(ConfigError, match=r"^best\.pt: "):
        Config.from_dict(values, source="best.pt")


def test_values_that_are_shared_many_times_over_have_an_end() -> None:
    shared: Any = 1
    for _ in range(30):
        shared = [shared, shared]
    assert "has more than" in the_mistake({"data": {"crop": shared}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbfoptim: {lr: 0.5}\n", ""),
        ("optim: {lr: 0.5}\n".encode("utf-16"), ""),
        (b"optim: {lr: 0.5} # \xe4\n", "is not UTF-8 text"),
        (b"optim:\x00\n", "holds a character that YAML forbids"),
        (b"optim: {lr: " + b"9" * 6000 + b"}\n", "optim.lr: the number has 6000 digits"),
        (b"optim: {lr: 2001-99-99}\n", "optim.lr: expected a number, got '2001-99-99'"),
        (b"a: &a [*a]\n", "an alias to something that contains it"),
        (b'data: {root: "a\\0b"}\n', "data.root: holds a NUL character"),
        (b'data: {root: "\\udc80"}\n', "data.root: holds half of a character"),
    ],
)
def test_odd_bytes_of_a_file(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    if not words:
        assert load_config(path).optim.lr == 0.5
        return
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (mistake,) = caught.value.mistakes
    assert words in str(mistake) and str(mistake).startswith(str(path))


def test_numbers_of_eighteen_digits_are_read() -> None:
    assert parse_yaml("a: 123456789012345678", source="").value == {"a": 123456789012345678}
    assert parse_yaml("a: -0", source="").value == {"a": 0}


# Options with bounds.


@pytest.mark.parametrize("value", ["0", "-1", "1025", "99999999999999999", "1e3", "true"])
@pytest.mark.parametrize("name", ["runtime.threads", "autolabel.workers"])
def test_threads_are_bounded(name: str, value: str) -> None:
    assert the_mistake({}, f"{name}={value}").startswith(f"command line: {name}: ")


def test_threads_in_bounds_are_taken() -> None:
    assert Config.from_dict({}, ["runtime.threads=1024"]).runtime.threads == 1024
    assert Config.from_dict({}, ["runtime.threads=1"]).runtime.threads == 1


@pytest.mark.parametrize("name", ["data.workers", "eval.workers"])
@pytest.mark.parametrize("value", ["-1", "1025", "4294967297"])
def test_loader_processes_are_bounded(name: str, value: str) -> None:
    assert name in the_mistake({}, f"{name}={value}")


@pytest.mark.parametrize("name", ["runtime.timeout_minutes", "runtime.checkpoint_minutes"])
@pytest.mark.parametrize("value", ["0", "1e300", ".inf", ".nan"])
def test_minutes_fit_into_a_time_limit(name: str, value: str) -> None:
    assert name in the_mistake({}, f"{name}={value}")


@pytest.mark.parametrize("name", ["eval.scales", "autolabel.scales", "model.train_scales"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[.nan]", "expected a finite number, got nan"),
        ("[0.5, .inf]", "expected a finite number, got inf"),
        ("[1.0, -.inf]", "expected a finite number, got -inf"),
        ("[17]", "must be at most 16, got 17"),
        ("[0]", "must be at least 0.01, got 0"),
        ("[-1]", "must be at least 0.01, got -1"),
        ("[1e-300]", "must be at least 0.01, got 1e-300"),
        ("[]", "needs at least 1 value(s), got []"),
        ("[0.5, 0.5]", "names a scale twice"),
        ("[1, 1.0]", "names a scale twice"),
        ("1.0", "expected a list in brackets, got 1.0"),
        ("[true]", "expected a number, got true"),
        ("['1']", "expected a number, got '1'"),
    ],
)
def test_scales_that_are_none_are_one_sentence(name: str, value: str, words: str) -> None:
    mistake = the_mistake({}, f"{name}={value}")
    assert mistake.startswith(f"command line: {name}") and mistake.endswith(words)


def test_more_scales_than_anybody_combines() -> None:
    many = [round(0.1 * number, 1) for number in range(1, 18)]
    assert "has 17 values, at most 16 are meant" in the_mistake({}, f"eval.scales={many}")


# Shipped files are found from anywhere.


@pytest.mark.parametrize("name", ["configs/demo.yaml", "demo.yaml", "demo", "configs/demo"])
def test_a_shipped_configuration_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / "demo.yaml"
    assert load_config(name).experiment.name == "demo"


def test_nested_shipped_configurations_are_found_with_their_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("cityscapes/table2/both").experiment.name == "cityscapes_table2_both"
    # What a file inherits is never another file because of where a command was started.
    (tmp_path / "training.yaml").write_text("optim: {lr: 0.5}\n")
    assert load_config("cityscapes/hrnet_ocr_single").optim.lr == 0.01


def test_a_file_that_exists_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("experiment: {name: mine}\n")
    assert load_config("demo.yaml").experiment.name == "mine"
    (tmp_path / "demo").mkdir()
    assert load_config("demo").experiment.name == "demo", "a folder is no configuration"
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="^folder: is a folder where a YAML file was expected"):
        load_config("folder")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deom.yaml", "configs/demo.yaml"),
        ("configs/demp.yaml", "configs/demo.yaml"),
        ("camvid/tabel1", "configs/camvid/table1.yaml"),
        ("mien.yaml", "mine.yaml"),
    ],
)
def test_a_file_that_is_nowhere_names_the_nearest(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value) == f"{name}: no such file (did you mean '{near}'?)"


@pytest.mark.parametrize("name", ["../configs/demo.yaml", "/configs/demo.yaml", "zzzzzz", "", "."])
def test_what_is_no_name_of_a_shipped_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load_config(name)


def test_a_base_may_be_a_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe of one's own, anywhere, on top of one that is shipped."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = tmp_path / "mine.yaml"
    path.write_text("base: configs/demo.yaml\nexperiment: {name: mine}\n")
    config = load_config(path)
    assert (config.experiment.name, config.data.root) == ("mine", "data/demo")
    # Files beside the one that names them come first, then those of the current folder.
    (elsewhere / "here.yaml").write_text("data: {root: here}\n")
    path.write_text("base: here.yaml\n")
    assert load_config(path).data.root == "here"
    (tmp_path / "here.yaml").write_text("data: {root: beside}\n")
    assert load_config(path).data.root == "beside"


def test_class_lists_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = str(CONFIGS / "camvid" / "classes.yaml")
    assert load_config("camvid/table1").data.classes == shipped

    # As seen from here, then from the file that names it; what is nowhere stays as it is written.
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = folder / "mine.yaml"
    path.write_text("data: {dataset: folder, root: x, classes: list.yaml}\n")
    assert load_config(path).data.classes == "list.yaml"
    (folder / "list.yaml").write_text("")
    assert load_config(path).data.classes == str(folder / "list.yaml")
    (tmp_path / "list.yaml").write_text("")
    assert load_config(path).data.classes == "list.yaml"
    assert load_config(path, ["data.classes=other.yaml"]).data.classes == "other.yaml"

    # The dictionary of a checkpoint, read in another folder.
    monkeypatch.chdir(ROOT)
    stored = load_config("configs/camvid/table1.yaml").to_dict()
    assert stored["data"]["classes"] == "configs/camvid/classes.yaml"
    monkeypatch.chdir(tmp_path)
    assert Config.from_dict(stored).data.classes == shipped


def test_the_same_in_a_fresh_process_far_away(tmp_path: Path) -> None:
    code = "from hmsa.utils.config import load_config; print(load_config('demo').data.root)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == "data/demo"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("runtime.precision=fp16", "device 'mps' does not train in fp16; set it to fp32 or bf16"),
        ("runtime.precision=fp64", "device 'mps' does not train in fp64; set it to fp32 or bf16"),
        ("runtime.compile=trunk", "device 'mps' runs uncompiled networks only; set it to off"),
        ("runtime.deterministic=true", "no deterministic kernels for device 'mps'"),
    ],
)
def test_what_a_mac_does_not_do_is_a_sentence(override: str, sentence: str) -> None:
    on_mac = ["runtime.device=mps"]
    assert Config.from_dict({}, on_mac).runtime.device == "mps"
    with pytest.raises(ConfigError, match=sentence):
        Config.from_dict({}, [*on_mac, override])


def test_a_calibration_needs_a_pair_of_scales() -> None:
    with pytest.raises(ConfigError, match=r"runtime.calibrate_scales: .*name at least two"):
        Config.from_dict({}, ["runtime.calibrate_scales=[0.5]"])
    assert Config.from_dict({}, ["runtime.calibrate_scales=[0.5, 1]"]).runtime.calibrate_scales
