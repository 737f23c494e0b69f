"""The table command x protection of the scripts that read a checkpoint or write a file.

A protection that one command has, its neighbours have as well: no output replaces what the command
did not write, a wrong argument or a damaged input is one sentence and status 2, and nothing of what
was there is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.fuzzing.cases import Case
from scripts.fuzzing.mutations import Damage
from scripts.fuzzing.running import Outcome, Snapshot, run_forked, snapshot

BEST = "run/checkpoints/best.pt"
# Command: its words, with CHECKPOINT and OUTPUT for the files that it reads and writes.
COMMANDS = {
    "convert": ("scripts/convert_weights.py", "CHECKPOINT", "OUTPUT.pth"),
    "convert to safetensors": ("scripts/convert_weights.py", "CHECKPOINT", "OUTPUT.safetensors"),
    "export": (
        *("scripts/export.py", "--checkpoint", "CHECKPOINT", "--output", "OUTPUT.pt2"),
        *("--size", "48", "64"),
    ),
    "panel": ("scripts/panel.py", "--checkpoint", "CHECKPOINT", "--output", "OUTPUT.png"),
    "model_info": (
        *("scripts/model_info.py", "--json", "OUTPUT.json", "--trunks", "hrnet_w18_small"),
        *("--decoders", "fcn", "--multiscale", "single", "--size", "64", "64", "--scales", "1"),
    ),
    "benchmark": (
        *("scripts/benchmark.py", "rmi", "--json", "OUTPUT.json"),
        *("--sizes", "1x3x32x32", "--rounds", "1"),
    ),
}
WITH_CHECKPOINT = [name for name, words in COMMANDS.items() if "CHECKPOINT" in words]


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "case")
    return tmp_path / "case"


def words_of(name: str, *, checkpoint: str = BEST, output: str = "out/file") -> tuple[str, ...]:
    return tuple(
        word.replace("CHECKPOINT", checkpoint).replace("OUTPUT", output) for word in COMMANDS[name]
    )


def suffix_of(name: str) -> str:
    return next(Path(word).suffix for word in COMMANDS[name] if word.startswith("OUTPUT"))


def run(folder: Path, program: str, *words: str) -> tuple[Outcome, Snapshot, Snapshot]:
    """How the command ends in a fork of this process, and the folder before and after."""
    before = snapshot(folder)
    case = Case(0, program, program, words, ("out",), "", Damage("", matters=False))
    return run_forked(case, folder), before, snapshot(folder)


def refuses(folder: Path, words: tuple[str, ...]) -> str:
    """The one sentence by which a command refuses; it changes nothing."""
    outcome, before, after = run(folder, *words)
    sentences = [line for line in outcome.text.splitlines() if "error: " in line]
    assert outcome.status == 2 and len(sentences) == 1, outcome.text
    assert "Traceback" not in outcome.text
    assert {path: state for path, state in after.items() if path != "out"} == before
    return sentences[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_somebody_else_is_not_replaced(name: str, folder: Path) -> None:
    suffix = suffix_of(name)
    for content in (b"mine", b"", b'{"mine": 1}'):
        (folder / f"mine{suffix}").write_bytes(content)
        assert f"mine{suffix}" in refuses(folder, words_of(name, output="mine"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_or_a_file_in_the_way_is_one_sentence(name: str, folder: Path) -> None:
    suffix = suffix_of(name)
    (folder / f"folder{suffix}").mkdir()
    assert f"folder{suffix} is a folder" in refuses(folder, words_of(name, output="folder"))
    assert "config.yaml" in refuses(folder, words_of(name, output="config.yaml/file"))


@pytest.mark.parametrize("name", WITH_CHECKPOINT)
@pytest.mark.parametrize(
    "content", ["missing", "empty", "a page", "cut off", "not finite", "another class"]
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(
    name: str, content: str, folder: Path
) -> None:
    path = folder / BEST
    damage: dict[str, Callable[[], object]] = {
        "missing": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "a page": lambda: path.write_text("<html>Please log in</html>"),
        "cut off": lambda: path.write_bytes(path.read_bytes()[:-5000]),
        "not finite": lambda: _edit(path, _without_numbers),
        "another class": lambda: _edit(path, _with_a_class_more),
    }
    damage[content]()
    assert "best.pt" in refuses(folder, words_of(name))


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def _without_numbers(content: dict) -> None:
    name = next(name for name in content["model"] if name.endswith("weight"))
    tensor = content["model"][name]
    tensor[(0,) * tensor.ndim] = float("nan")


def _with_a_class_more(content: dict) -> None:
    classes = content["spec"]["classes"]
    content["spec"] = {
        **content["spec"],
        "classes": [*classes, {**classes[0], "name": "more", "raw_ids": [9]}],
    }


@pytest.mark.parametrize("name", ["export", "panel"])
def test_scales_are_checked_as_everywhere(name: str, folder: Path) -> None:
    for scales in (("nan",), ("0.5", "inf"), ("17",), ("-1",), ("0",), ("x",)):
        sentence = refuses(folder, (*words_of(name), "--scales", *scales))
        assert "is not a scale" in sentence and scales[-1] in sentence


def test_a_panel_never_replaces_what_it_is_drawn_from(folder: Path) -> None:
    for file in ("data/images/val/val0", "data/labels/val/val0"):
        words = (*words_of("panel", output=file), "--overwrite")
        assert "is a file to read" in refuses(folder, words)


def test_a_panel_is_of_the_kind_that_its_name_says(folder: Path) -> None:
    other = [word.replace(".png", ".bmp") for word in words_of("panel")]
    assert ".png or .jpg" in refuses(folder, other)

    words = [word.replace(".png", ".jpg") for word in words_of("panel")]
    outcome, _, _ = run(folder, *words)
    assert outcome.status == 0, outcome.text
    assert (folder / "out" / "file.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


@pytest.mark.usefixtures("forked_measuring")
@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_wrote_it_may_replace_when_told(name: str, folder: Path) -> None:
    """Rows are renewed without being asked: a file of rows is known by its content."""
    overwrite = ("--overwrite",) if name not in ("model_info", "benchmark") else ()
    for _ in range(2):
        outcome, before, after = run(folder, *words_of(name), *overwrite)
        assert outcome.status == 0, outcome.text
        assert {path for path in after if not path.startswith("out")} == {
            path for path in before if not path.startswith("out")
        }
    assert len(list((folder / "out").iterdir())) == 1


def test_export_with_a_size_that_torch_refuses_is_one_sentence(folder: Path) -> None:
    words = words_of("export")
    tiny = (*words[: words.index("--size")], "--size", "1", "1", "--dynamic")
    outcome, _, _ = run(folder, *tiny)
    assert "Traceback" not in outcome.text
    assert outcome.status == 0 or "error: " in outcome.text


def test_a_size_that_cannot_be_counted_is_one_sentence(folder: Path) -> None:
    words = words_of("model_info")
    place = words.index("--size")
    tiny = (*words[:place], "--size", "1", "1", *words[place + 3 :])
    assert "too small for batch norm" in refuses(folder, tiny)
