"""What the pages of docs/ tell a reader to type is understood by the commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hmsa
from hmsa.engine import arguments
from hmsa.network import build_model
from hmsa.utils.config import Config, iter_fields

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(
    r"`(hmsa (?:train|eval|autolabel|calibrate|attach|benchmark|init|predict|check|panel) [^`]+)`"
)
COMMAND = re.compile(r"^(?:torchrun .*?-m )?hmsa (\w+) (.+)$")
SECTIONS = "|".join(Config.model_fields)
OPTION = re.compile(rf"`((?:{SECTIONS})\.[a-z_.]+)(?:[:=][^`]*)?`")

PARSERS = {
    "train": arguments.parse_train,
    "eval": arguments.parse_eval,
    "autolabel": arguments.parse_autolabel,
    "calibrate": arguments.parse_calibrate,
    "attach": arguments.parse_attach,
    "benchmark": arguments.parse_benchmark,
    "init": arguments.parse_init,
    "predict": arguments.parse_predict,
    "check": arguments.parse_check,
    "compare": arguments.parse_compare,
    "convert": arguments.parse_convert,
    "panel": arguments.parse_panel,
    "export": arguments.parse_export,
}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The hmsa commands of a page with their words: those of code blocks, and those in sentences.

    A line with `--help` needs no other words, and one with dots is no whole command.
    """
    lines = [line for block in FENCED.findall(text) for line in joined(block)]
    lines += INLINE.findall(text)
    for line in lines:
        found = COMMAND.match(line)
        if found and "--help" not in line and "..." not in line:
            yield found[1], shlex.split(found[2], comments=True)


def joined(block: str) -> list[str]:
    return re.sub(r"\\\n\s*", "", block).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    known = {field.name for field in iter_fields()}
    for command, words in commands(page.read_text(encoding="utf-8")):
        if command == "eval" and "--checkpoint" not in words:
            words += ["--checkpoint", "best.pt"]  # a part of a command within a sentence
        parsed = PARSERS[command](words)
        keys = {word.partition("=")[0] for word in getattr(parsed, "overrides", ())}
        assert keys <= known, f"{command} {words}"


def test_the_pages_hold_commands() -> None:
    found = [name for page in PAGES for name, _ in commands(page.read_text(encoding="utf-8"))]
    assert set(found) >= {"train", "eval", "autolabel"}
    assert len(found) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    known = {field.name for field in iter_fields()}
    known |= {name.rpartition(".")[0] for name in known}
    found = OPTION.findall(page.read_text(encoding="utf-8"))
    # Files that are called like an option: sources, and the weights of save_pretrained.
    named = {
        name.rstrip(".") for name in found if not name.endswith((".py", ".safetensors", ".yaml"))
    }
    assert named <= known


def test_python_of_the_api_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in the order of the page, in a folder with a run, a photo and a data set."""
    monkeypatch.chdir(tmp_path)
    network = build_model(trunk="resnet18", decoder="fcn", num_classes=2, attention_channels=8)
    classes = ["sky", "road"]
    hmsa.Segmenter.from_model(network, classes=classes).save_pretrained("runs/mine")
    image = np.zeros((64, 96, 3), np.uint8)
    for name in ("photo.jpg", "mine/images/train/a.png", "mine/images/train/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(name)
        label = Path(name.replace("images", "labels"))
        label.parent.mkdir(parents=True, exist_ok=True)
        if label != Path(name):
            Image.fromarray(image[..., 0] + 1).save(label)
    infos = [{"name": name, "id": number} for number, name in enumerate(classes)]
    Path("mine/classes.yaml").write_text(yaml.safe_dump({"name": "mine", "classes": infos}))

    page = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"image": torch.rand(1, 3, 96, 128)}
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    for code in blocks:
        exec(code, names)
    assert hmsa.load("network").classes == ("sky", "road")
    assert Path("overlay.png").is_file()

    # As short as the same loop with segmentation_models.pytorch, which takes 15 lines.
    (loop,) = [code for code in blocks if "for batch in loader" in code]
    assert len([line for line in loop.splitlines() if line.strip()]) <= 16
    prediction = names["prediction"]
    assert prediction.logits.shape == (1, 19, 96, 128)  # type: ignore[attr-defined]


def test_the_readme_is_a_page_and_shows_the_way() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    links = re.findall(r"\]\(((?:docs/|configs/|[A-Z]+\.md)[^)#]*)", text)
    assert {"docs/tutorial.md", "docs/notebook.ipynb", "docs/index.md", "docs/faq.md"} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []
