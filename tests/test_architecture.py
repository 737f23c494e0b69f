"""The plan of the house: rooms are islands, doors answer at once, the package is what the folders are, everything imports anywhere."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("network", "datasets", "loss", "utils")
DOORS = sorted(
    path.stem for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
# Inside network/, a file may use what stands in an earlier layer or its own, never a later one.
LAYERS = ("layers", "trunks", "decoders", "segmenter", "multiscale", "build")
OPTIONAL = (
    "apex",
    "amp_C",
    "timm",
    "scipy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "zstandard",
    "cityscapesscripts",
)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """(module, level, line) of every import statement in a file, those inside functions too; level 0 is absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module, node.level, node.lineno
            else:
                yield from ((alias.name, node.level, node.lineno) for alias in node.names)


def forbidden_imports(path: Path, *, room: str) -> list[str]:
    """Imports by which a file of a room leaves it: our own top-level names, or more dots than the file is deep."""
    top_level = {*ROOMS, "hmsa", "scripts", "tests", *(file.stem for file in ROOT.glob("*.py"))}
    depth = len(path.relative_to(ROOT / room).parts)
    return [
        f"{path.relative_to(ROOT)}:{line}: {'.' * level}{module}"
        for module, level, line in imports_of(path)
        if (level == 0 and module.split(".")[0] in top_level) or level > depth
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_islands(room: str) -> None:
    files = files_of(room)
    assert files
    assert [found for path in files for found in forbidden_imports(path, room=room)] == []


def test_the_island_test_sees_every_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "network" / "trunks"
    room.mkdir(parents=True)
    file = room / "x.py"
    lines = [
        "import utils.config",
        "from datasets import a",
        "from ... import loss",
        "from ..layers import b",
    ]
    file.write_text("\n".join([*lines, "def f():", "    from hmsa.loss import c"]))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [found.split(": ")[1] for found in forbidden_imports(file, room="network")] == [
        "utils.config",
        "datasets",
        "...loss",
        "hmsa.loss",
    ]


def test_nothing_imports_scripts_or_tests_but_scripts_and_tests() -> None:
    for path in [*ROOT.glob("*.py"), *(file for room in ROOMS for file in files_of(room))]:
        assert not [
            module
            for module, level, _ in imports_of(path)
            if not level and module.split(".")[0] in ("scripts", "tests")
        ], path


def layer_of(part: str) -> int | None:
    return LAYERS.index(part) if part in LAYERS else None


def test_layers_of_the_network_have_no_upward_arrow() -> None:
    seen = 0
    for path in files_of("network"):
        parts = path.relative_to(ROOT / "network").with_suffix("").parts
        own = layer_of(parts[0])
        if own is None:
            continue
        for module, level, line in imports_of(path):
            if level == 0 or level < len(parts):  # absolute, or within the sub-package
                continue
            other = layer_of(module.split(".")[0])
            if other is None:
                continue
            seen += 1
            assert other <= own, f"{path.relative_to(ROOT)}:{line}: {parts[0]} imports {module}"
    assert seen > 0


def packages_in_setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_setup_lists_every_folder_with_an_init(monkeypatch: pytest.MonkeyPatch) -> None:
    given = packages_in_setup(monkeypatch)
    inits = (
        path.parent.relative_to(ROOT)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    )
    assert sorted(given["packages"]) == sorted("hmsa." + ".".join(folder.parts) for folder in inits)
    for package in given["packages"]:
        room, _, inner = package.removeprefix("hmsa.").partition(".")
        assert (
            ROOT / given["package_dir"][f"hmsa.{room}"] / inner.replace(".", "/") / "__init__.py"
        ).is_file()
    for room in ROOMS:
        folders = {path.parent for path in files_of(room)}
        assert all((folder / "__init__.py").is_file() for folder in folders), (
            "a folder with code but no __init__.py is not installed"
        )


def test_setup_asks_for_what_the_rooms_import(monkeypatch: pytest.MonkeyPatch) -> None:
    given = packages_in_setup(monkeypatch)
    required = {requirement.split(">")[0].lower() for requirement in given["install_requires"]}
    assert not [
        requirement
        for requirement in given["install_requires"]
        if "<" in requirement or "==" in requirement
    ], "no upper pins"
    assert "torch>=2.6" in given["install_requires"]
    distribution = {"cv2": "opencv-python-headless", "pil": "pillow", "yaml": "pyyaml"}
    for path in [*ROOT.glob("*.py"), *(file for room in ROOMS for file in files_of(room))]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # at module level only
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            for name in names:
                top = name.split(".")[0].lower()
                own = {*ROOMS, "scripts", *(file.stem for file in ROOT.glob("*.py"))}
                if top in sys.stdlib_module_names or top in own or top == "setuptools":
                    continue
                assert distribution.get(top, top) in required, (
                    f"{path.relative_to(ROOT)} imports {name}, which setup.py does not ask for"
                )


def test_pyproject_names_a_build_system() -> None:
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"][
            "build-backend"
        ]
        == "setuptools.build_meta"
    )


def test_what_is_installed_is_one_directory_that_works_alone(tmp_path: Path) -> None:
    built = tmp_path / "lib"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "setup.py",
        "-q",
        "build",
        "--build-base",
        str(tmp_path / "base"),
        "--build-lib",
        str(built),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert [entry.name for entry in built.iterdir()] == ["hmsa"]
    code = """
import sys
from hmsa.datasets import DatasetSpec
from hmsa.loss import rmi_loss
from hmsa.network import build_model, load_weights
from hmsa.utils.config import load_config
from hmsa.utils.metrics import ConfusionMatrix
print(build_model.__module__, sorted({"network", "datasets", "loss", "utils"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(built), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.stdout.strip() == "hmsa.network.build []", result.stderr


ABSENT = f"""
import sys
class Without:
    '''A finder as it was, to which some packages do not exist.'''
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("apex", "timm", "scipy"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("obstacle", [ABSENT, BLOCKED], ids=["absent", "blocked"])
@pytest.mark.parametrize("room", ROOMS)
def test_every_module_imports_without_cuda_and_without_optional_packages(
    room: str, obstacle: str
) -> None:
    modules = []
    for path in files_of(room):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    code = (
        obstacle
        + f"""
import importlib
for name in {modules!r}:
    importlib.import_module(name)
module = sys.modules[{room!r}]
for name in getattr(module, "__all__", []):
    getattr(module, name)  # rooms may import a name's module when it is first used
if "torch" in sys.modules:
    import torch
    assert not torch.cuda.is_available() and not torch.cuda.is_initialized()
print("imported", len({modules!r}))
"""
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["imported", str(len(modules))]


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [(ABSENT, "No module named 'scipy'"), (BLOCKED, "scipy is blocked")],
    ids=["absent", "blocked"],
)
def test_the_obstacles_obstruct(obstacle: str, words: str) -> None:
    result = run_python(
        obstacle
        + "\nimport json\ntry:\n    import scipy\nexcept ImportError as error:\n    print(error)\n"
    )
    assert result.stdout.strip() == words


HEAVY = ("torch", "torchvision", "tensorboard", "scipy", "timm", "cv2")


def help_of(path: Path) -> tuple[str, list[str]]:
    """What `python PATH --help` prints, and the heavy packages it had to import."""
    code = f"""
import runpy, sys
sys.argv = [{str(path)!r}, "--help"]
sys.path.insert(0, {str(path.parent)!r})
status = None
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as stop:
    status = stop.code
print("STATUS", status, "HEAVY", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    *text, last = result.stdout.splitlines()
    status, heavy = last.removeprefix("STATUS ").split(" HEAVY")
    assert status in ("0", "None"), last
    return "\n".join(text), heavy.split()


def test_there_are_three_doors() -> None:
    assert DOORS == ["autolabel", "eval", "train"]


@pytest.mark.parametrize("door", DOORS)
def test_doors_answer_help_without_torch(door: str) -> None:
    text, heavy = help_of(ROOT / f"{door}.py")
    assert "usage:" in text and len(text) > 200
    assert heavy == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_answer_help(script: Path) -> None:
    text, _ = help_of(script)
    assert "usage:" in text


def test_train_reads_in_five_minutes() -> None:
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 250


def test_only_one_file_of_each_kind_knows_its_secret() -> None:
    """torch.distributed lives in utils/processes.py and in nothing else that ships."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.py"), *(file for room in ROOMS for file in files_of(room))]
        if any(
            not level and (module == "torch.distributed" or module.startswith("torch.distributed."))
            for module, level, _ in imports_of(path)
        )
        or "torch.distributed."
        in path.read_text(encoding="utf-8").replace("`torch.distributed`", "")
    ]
    assert users == ["utils/processes.py"]


def test_rooms_never_see_a_configuration() -> None:
    """Fields cross as arguments: nothing in a room but utils/config*.py and the command line names the configuration's types."""
    for path in (file for room in ROOMS for file in files_of(room)):
        if (
            path.name.startswith("config") or path.name == "cli.py"
        ):  # reading one from a command line is what cli.py is for
            continue
        names = {
            node.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Name)
        }
        modules = {module for module, level, _ in imports_of(path) if level}
        assert "load_config" not in names and not {
            module for module in modules if module.startswith("config")
        } - {"config_errors"}, path


def test_weights_are_only_read_as_plain_tensors() -> None:
    """No torch.load without weights_only=True, and no unpickling, anywhere that ships."""
    for path in [
        *ROOT.glob("*.py"),
        *(file for folder in (*ROOMS, "scripts") for file in (ROOT / folder).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            assert called not in (
                "pickle.load",
                "pickle.loads",
                "pickle.Unpickler",
                "joblib.load",
                "dill.load",
            ), f"{place}: {called}"
            if called == "torch.load":
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get(
                    "weights_only"
                )
                assert safe == "True", f"{place}: torch.load without weights_only=True"
