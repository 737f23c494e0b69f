"""The tutorial, the README and the FAQ do what they say: their commands and blocks are run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import pytest

from hmsa.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A training ends after two epochs here; the tutorial's own ones take minutes.
SHORTER = ["optim.epochs=2", "data.workers=0", "runtime.val_every=2"]


@dataclass
class Walk:
    """What became of a page that was followed: the folder, and what its commands printed."""

    folder: Path
    printed: dict[str, str] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)  # the page's outputs, by command
    names: dict[str, object] = field(default_factory=dict)

    def run(self, line: str) -> None:
        """Run one `hmsa` command as the page writes it; a training is cut short."""
        words = shlex.split(line, comments=True)
        assert words[0] == "hmsa", line
        if words[1] == "train" and "--print-config" not in words:
            words += SHORTER
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = main(words[1:])
        assert status == 0, f"{line}\n{output.getvalue()}"
        self.printed[line] = output.getvalue()

    def python(self, code: str) -> None:
        """Run a block of Python as the page writes it."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, "a page", "exec"), self.names)
        self.printed[code] = output.getvalue()


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in their order: language and text, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(name, re.sub(r"\\\n\s*", "", body)) for name, body in BLOCK.findall(text)]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The tutorial, followed from an empty folder to the student's scores."""
    pytest.importorskip("timm")
    walk = Walk(tmp_path_factory.mktemp("tutorial"))
    before = Path.cwd()
    os.chdir(walk.folder)
    try:
        last = ""
        for language, text in blocks("docs/tutorial.md"):
            if language == "python":
                walk.python(text)
            elif text.startswith("hmsa "):
                for last in text.splitlines():
                    walk.run(last)
            elif last:
                # What the command before prints, of which the page may show parts.
                walk.shown.setdefault(last, []).extend(text.splitlines())
        yield walk
    finally:
        os.chdir(before)


def test_the_tutorial_ends_with_what_it_promises(tutorial: Walk) -> None:
    assert sum(line.startswith("hmsa ") for line in tutorial.printed) >= 9
    for name in (
        "photos.yaml",
        "photos/classes.yaml",
        "runs/long/checkpoints/best.pt",
        "out/eval/report.html",
        "out/eval/metrics.json",
        "out/pictures/index.html",
        "labels/report.html",
        "runs/student/checkpoints/best.pt",
        "out/student/report.html",
    ):
        assert (tutorial.folder / name).is_file(), name


def without_numbers(line: str) -> str:
    """A line of output with its numbers, paths and durations put away."""
    # What a calibration keeps depends on the network, too.
    line = re.sub(r" \(attention calibrated for [^)]*\)", "", line)
    line = re.sub(r"checkpoint [0-9a-f]{12}", "checkpoint", line)
    line = re.sub(r"\S*/\S+", "PATH", line)
    line = re.sub(r"(?:about )?(?:(?:[\d.]+|a) (?:h|min|minutes?|s)\b ?)+", "TIME ", line)
    line = re.sub(r"[+-]?\d[\d.,]*", "0", line)
    line = re.sub(r"\b(core|thread|pair)s\b", r"\1", line)
    return re.sub(r"\s+", " ", line).strip()


def test_the_outputs_that_the_tutorial_shows_are_those_of_its_commands(tutorial: Walk) -> None:
    """But for numbers, times and paths: a run of two epochs has others."""
    assert len(tutorial.shown) >= 6
    # What depends on how good the network is, which after two epochs it is not.
    other = ("pole ", "sky ", "road ", "0x and ")
    missing = []
    for command, lines in tutorial.shown.items():
        printed = {without_numbers(line) for line in tutorial.printed[command].splitlines()}
        for line in lines:
            wanted = without_numbers(line)
            if not wanted.startswith(other) and wanted not in printed:
                missing.append(f"{command}: {line}\n{tutorial.printed[command]}")
    assert not missing, "\n".join(missing)


@pytest.fixture
def mine(tutorial: Walk, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A folder with what the README and the FAQ name: a run, photographs, a film."""
    monkeypatch.chdir(tutorial.folder)
    if Path("runs/photos").is_dir():
        return tutorial
    for name in ("photos", "mine"):
        shutil.copytree("runs/long", f"runs/{name}")
    shutil.copy("runs/long/checkpoints/best.pt", "best.pt")
    shutil.copytree("more", "holiday")
    shutil.copy("more/b12.png", "photo.jpg")
    shutil.copy("photos.yaml", "my.yaml")
    frame = cv2.imread("more/b12.png")
    film = cv2.VideoWriter("film.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, frame.shape[1::-1])
    for _ in range(2):
        film.write(frame)
    film.release()
    return tutorial


def test_the_commands_of_the_readme_run(mine: Walk) -> None:
    lines = [line for _, text in blocks("README.md") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("hmsa ")]
    assert [line.split()[1] for line in commands] == ["init", "train", "eval", "predict"]
    # The first two are the tutorial's.
    for line in commands[2:]:
        mine.run(line)
    assert Path("out/report.html").is_file() and Path("pictures/index.html").is_file()


def test_the_python_of_the_readme_runs(mine: Walk) -> None:
    torchvision = pytest.importorskip("torchvision")
    found = [text for language, text in blocks("README.md") if language == "python"]
    assert len(found) == 2
    names: dict[str, object] = {
        "yours": torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=19
        )
    }
    exec(found[0], names)
    assert names["label"].shape == names["confidence"].shape  # type: ignore[attr-defined]
    exec(found[1], names)
    assert names["model"].multiscale == "hierarchical"  # type: ignore[attr-defined]


def test_the_configuration_of_the_readme_is_complete(mine: Walk) -> None:
    (text,) = [text for language, text in blocks("README.md") if language == "yaml"]
    Path("mine.yaml").write_text(text)
    shutil.copytree("photos", "mine", dirs_exist_ok=True)
    for split in ("train", "val"):
        lines = Path(f"photos/split_{split}.txt").read_text()
        Path(f"mine/{split}.txt").write_text(lines)
    mine.run("hmsa train mine.yaml --print-config")
    assert "epochs:" in mine.printed["hmsa train mine.yaml --print-config"]


def test_the_commands_of_the_faq_run(mine: Walk) -> None:
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    found = re.findall(r"`(hmsa \w+ [^`]+)`", text)
    # Each is run as it is written, with files for what is in capitals. Tests of their own hold two.
    elsewhere = {
        "hmsa eval --split test --submit test.zip": "tests/engine/test_evaluation.py",
        "hmsa export --checkpoint best.pt --size 512 1024 --output model.onnx": "tests/scripts",
    }
    assert set(elsewhere) <= set(found)
    files = {
        "CONFIG": "photos.yaml experiment.name=long",
        "FOLDER": "photos",
        "MODEL": "runs/mine",
    }
    ran = 0
    for line in found:
        for capitals, file in files.items():
            line = line.replace(capitals, file)
        # The tutorial's own are not run a second time.
        if line not in elsewhere and line not in mine.printed:
            mine.run(line)
            ran += 1
    assert ran >= 5
