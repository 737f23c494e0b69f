"""Who may import whom, what is installed, and that every command answers at once."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import setuptools

from tests.programs import Program

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "network", "datasets", "loss", "utils")
LAUNCHERS = ("autolabel", "eval", "train")
COMMANDS = ("autolabel", "eval", "train")
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
# What a package may import of the others; of its own it may import everything.
MAY_IMPORT = {
    "network": {"utils.files", "utils.words"},
    "datasets": {"utils.files", "utils.words"},
    "loss": {"utils.files", "utils.words"},
    "utils": set(),
    "engine": {"network", "datasets", "loss", "utils"},
}
# The same between the sub-folders of utils; the flat modules know none of the folders.
FLAT = {"processes", "runtime", "words"}
UTILS_MAY_IMPORT = {
    "files": {"words"},
    "config": {"files", "imported", "words"},
    "metrics": {"files", *FLAT},
    "report": {"files", "labelling", "metrics", *FLAT},
    "labelling": {"files", "metrics", *FLAT},
    "training": {"files", "metrics", *FLAT},
    "words": set(),
    "imported": {"words"},
    "runtime": {"words"},
    "processes": {"words", "runtime"},
    "synchronised_norm": {"words", "runtime", "processes"},
}
# Inside network/, a file may use what stands in an earlier layer or its own, never a later one.
LAYERS = ("prediction", "layers", "trunks", "heads", "decoders", "segmenter", "model", "build")
OPTIONAL = (
    "apex",
    "amp_C",
    "timm",
    "scipy",
    "huggingface_hub",
    "mlflow",
    "wandb",
    "safetensors",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "zstandard",
    "cityscapesscripts",
)


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def shipped_files() -> list[Path]:
    """Everything that runs at a user's: launchers, the command and the packages."""
    inside = [path for package in (*PACKAGES, "hmsa") for path in files_of(package)]
    return [*(ROOT / f"{name}.py" for name in LAUNCHERS), *inside]


@dataclass(frozen=True)
class Import:
    """One import of ours, by its name from the root of the repository: network.trunks.hrnet."""

    target: str
    line: int
    level: int  # dots of a relative import
    is_at_top: bool  # not inside a function


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import statement in a file, those inside functions too.

    What stands below `if TYPE_CHECKING` never runs, and counts as inside.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")
        for node in ast.walk(outer)
    }
    # Relative to the package of the file, which for __init__.py is the file itself.
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        is_at_top = id(node) not in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, 0, is_at_top)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".")
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            name = ".".join(part for part in base if part)
            for alias in node.names:
                target = f"{name}.{alias.name}".lstrip(".")
                yield Import(target, node.lineno, node.level, is_at_top)


def own_name(target: str) -> str | None:
    """The name from the root of the repository; None for a library."""
    if target.startswith("hmsa."):
        target = target.removeprefix("hmsa.")
    return target if target.split(".")[0] in PACKAGES else None


def file_of(name: str) -> Path | None:
    """The file that an import of `name` runs last: a module, or a package's __init__."""
    parts = name.split(".")
    while parts:
        place = ROOT.joinpath(*parts)
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
        parts.pop()
    return None


def is_below(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def faults_of(path: Path) -> list[str]:
    """Imports by which a file of a package leaves what its package may know."""
    package = path.relative_to(ROOT).parts[0]
    found = []
    for item in imports_of(path):
        place = f"{path.relative_to(ROOT)}:{item.line}: {item.target}"
        top = item.target.split(".")[0]
        if not item.level and top in (*PACKAGES, "scripts", "tests"):
            found.append(f"{place} (a package has one name, hmsa.{top})")
        name = own_name(item.target)
        if item.level:
            # Dots that lead out of the package, or to the top level.
            if not is_below(item.target, {package}):
                found.append(f"{place} (relative imports stay inside a package)")
        elif name is not None:
            if is_below(name, {package}):
                found.append(f"{place} (inside a package imports are relative)")
            elif not is_below(name, MAY_IMPORT[package]):
                found.append(f"{place} ({package} may not know it)")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_they_may(package: str) -> None:
    files = files_of(package)
    assert files
    assert [fault for path in files for fault in faults_of(path)] == []


def test_the_import_test_sees_every_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "network" / "trunks"
    folder.mkdir(parents=True)
    file = folder / "x.py"
    lines = [
        "import utils.config",
        "from datasets import a",
        "from ... import loss",
        "from ..layers import b",
        "from hmsa.network import d",
        "from hmsa.utils.files.writing import write_file",
        "from hmsa.utils.words import UserError",
        "from hmsa.utils.processes import Processes",
        "def f():",
        "    from hmsa.loss import c",
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [fault.split(": ")[1].split(" (")[0] for fault in faults_of(file)] == [
        "utils.config",
        "utils.config",
        "datasets.a",
        "datasets.a",
        "loss",
        "hmsa.network.d",
        "hmsa.utils.processes.Processes",
        "hmsa.loss.c",
    ]


def test_sub_folders_of_utils_import_what_they_may() -> None:
    faults = []
    for path in files_of("utils"):
        parts = path.relative_to(ROOT / "utils").with_suffix("").parts
        if parts == ("__init__",):
            continue
        allowed = {f"utils.{name}" for name in (parts[0], *UTILS_MAY_IMPORT[parts[0]])}
        for item in imports_of(path):
            name = own_name(item.target)
            if name is not None and not is_below(name, allowed):
                faults.append(f"{path.relative_to(ROOT)}:{item.line}: {name}")
    assert faults == []


def test_nothing_lies_flat_in_utils() -> None:
    flat = {path.name for path in (ROOT / "utils").glob("*.py")}
    named = {"imported.py", "processes.py", "runtime.py", "synchronised_norm.py", "words.py"}
    assert flat == {"__init__.py", *named}


def test_no_circle_of_imports() -> None:
    """A file is imported before those that use it, whichever is imported first."""
    used: dict[Path, set[Path]] = {}
    for path in shipped_files():
        targets = (own_name(item.target) for item in imports_of(path) if item.is_at_top)
        files = {file_of(name) for name in targets if name is not None}
        used[path] = {file for file in files if file not in (None, path)}  # type: ignore[misc]

    # Take away what uses nothing that is left; what remains in the end goes round.
    left = dict(used)
    while free := [path for path, targets in left.items() if not targets & left.keys()]:
        for path in free:
            del left[path]
    assert sorted(str(path.relative_to(ROOT)) for path in left) == []


def test_nothing_imports_scripts_or_tests_but_scripts_and_tests() -> None:
    for path in shipped_files():
        tops = {item.target.split(".")[0] for item in imports_of(path) if not item.level}
        assert not tops & {"scripts", "tests"}, path


def test_only_the_commands_import_the_engine_and_only_when_they_run() -> None:
    """The packages do not know the engine; launchers and `hmsa` know nothing else."""
    for path in [*(ROOT / f"{name}.py" for name in LAUNCHERS), *files_of("hmsa")]:
        for item in imports_of(path):
            name = own_name(item.target)
            if item.target.split(".")[0] != "hmsa" and name is None:
                continue
            assert name is None or is_below(name, {"engine"}), f"{path}: {item.target}"
    for path in files_of("hmsa"):
        ours = [item for item in imports_of(path) if item.target.split(".")[0] == "hmsa"]
        assert not [item for item in ours if item.is_at_top], path


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_is_short_and_imports_when_it_runs(name: str) -> None:
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 15
    before = text.partition('if __name__ == "__main__":')[0]
    assert "hmsa" not in before.replace('"""', "", 2).partition('"""')[2] and "hmsa" in text


def test_layers_of_the_network_have_no_upward_arrow() -> None:
    seen = 0
    for path in files_of("network"):
        parts = path.relative_to(ROOT / "network").with_suffix("").parts
        if parts[0] not in LAYERS:
            continue
        for item in imports_of(path):
            name = own_name(item.target)
            if name is None or not name.startswith("network."):
                continue
            other = name.split(".")[1]
            if other in LAYERS and other != parts[0]:
                seen += 1
                place = f"{path.relative_to(ROOT)}:{item.line}"
                assert LAYERS.index(other) < LAYERS.index(parts[0]), f"{place}: imports {name}"
    assert seen > 0


# --- what is installed ---


def packages_in_setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_setup_lists_every_folder_with_an_init(monkeypatch: pytest.MonkeyPatch) -> None:
    given = packages_in_setup(monkeypatch)
    inits = (
        path.parent.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    )
    assert sorted(given["packages"]) == sorted(
        ["hmsa", "hmsa.configs", *("hmsa." + ".".join(folder.parts) for folder in inits)]
    )
    assert {
        name.removeprefix("hmsa."): folder for name, folder in given["package_dir"].items()
    } == {name: name for name in (*PACKAGES, "hmsa", "configs")}
    for package in PACKAGES:
        folders = {path.parent for path in files_of(package)}
        assert all((folder / "__init__.py").is_file() for folder in folders), (
            "a folder with code but no __init__.py is not installed"
        )


def test_setup_asks_for_what_the_packages_import(monkeypatch: pytest.MonkeyPatch) -> None:
    given = packages_in_setup(monkeypatch)
    required = {requirement.split(">")[0].lower() for requirement in given["install_requires"]}
    assert not [
        requirement
        for requirement in given["install_requires"]
        if "<" in requirement or "==" in requirement
    ], "no upper pins"
    assert "torch>=2.6" in given["install_requires"]
    distribution = {"cv2": "opencv-python-headless", "pil": "pillow", "yaml": "pyyaml"}
    distribution["pydantic_core"] = "pydantic"  # which is made of it
    for path in shipped_files():
        for item in imports_of(path):
            top = item.target.split(".")[0].lower()
            if item.level or not item.is_at_top or top in (*sys.stdlib_module_names, "hmsa"):
                continue
            assert distribution.get(top, top) in required, (
                f"{path.relative_to(ROOT)} imports {top}, which setup.py does not ask for"
            )


def test_pyproject_names_a_build_system() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["build-system"]["build-backend"] == "setuptools.build_meta"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `pip install .` copies."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build"]
    command += ["--build-base", str(folder / "base"), "--build-lib", str(folder / "lib")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder / "lib"


def run_installed(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command],
        cwd=installed.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_what_is_installed_is_one_directory_that_works_alone(installed: Path) -> None:
    assert [entry.name for entry in installed.iterdir()] == ["hmsa"]
    code = """
import sys
import hmsa
from hmsa.datasets import DatasetSpec
from hmsa.loss import rmi_loss
from hmsa.network import build_model, load_weights
from hmsa.utils.config import load_config
from hmsa.utils.metrics import ConfusionMatrix
print(build_model.__module__, sorted({"network", "datasets", "loss", "utils"} & set(sys.modules)))
print(hmsa.__version__)
"""
    result = run_installed(installed, "-c", code)
    assert result.stdout.splitlines()[0] == "hmsa.network.build []", result.stderr
    assert f'__version__ = "{result.stdout.splitlines()[1]}"' in (
        ROOT / "hmsa" / "__init__.py"
    ).read_text(encoding="utf-8")


def test_everything_that_is_no_code_is_installed_beside_it(installed: Path) -> None:
    """Configurations, class lists, schema, templates, and the mark that types are there."""
    wanted = {"hmsa/py.typed"}
    for folder in (*PACKAGES, "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(f"hmsa/{path.relative_to(ROOT).as_posix()}")
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*")}
    assert wanted <= found, sorted(wanted - found)
    assert "hmsa/configs/demo.yaml" in wanted and "hmsa/configs/schema.json" in wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_installed_commands_answer_help_from_any_folder(installed: Path, command: str) -> None:
    result = run_installed(installed, "-m", "hmsa", command, "--help")
    assert result.returncode == 0 and f"usage: hmsa {command}" in result.stdout, result.stderr


ABSENT = f"""
import sys
class Without:
    '''A finder as it was, to which some packages do not exist.'''
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in {OPTIONAL!r}
        return None if absent else self.finder.find_spec(name, path, target)
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
def test_every_module_imports_without_cuda_and_without_optional_packages(obstacle: str) -> None:
    """All in one process: what is absent is so for each, whoever imports it first."""
    modules = [f"hmsa.{module_of(path)}" for package in PACKAGES for path in files_of(package)]
    code = (
        obstacle
        + f"""
import importlib
for name in {modules!r}:
    importlib.import_module(name)
for package in {PACKAGES!r}:
    module = sys.modules["hmsa." + package]
    for name in getattr(module, "__all__", []):
        getattr(module, name)  # a package may import a name's module when it is first used
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


# --- commands answer at once ---

HEAVY = ("torch", "torchvision", "tensorboard", "scipy", "timm", "cv2")


def answer_of(run: str, *words: str) -> tuple[int, str, str, list[str]]:
    """Status, stdout and stderr of a program, and the heavy packages it had to import.

    `run` is Python code that runs it, with `words` as its command line.
    """
    code = f"""
import runpy, sys
sys.argv = {["program", *words]!r}
status = None
try:
    {run}
except SystemExit as stop:
    status = stop.code
print("STATUS", int(status or 0), "HEAVY", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    *text, last = result.stdout.splitlines()
    status, heavy = last.removeprefix("STATUS ").split(" HEAVY")
    return int(status), "\n".join(text), result.stderr, heavy.split()


def of_file(path: Path) -> str:
    run = f"runpy.run_path({str(path)!r}, run_name='__main__')"
    return f"sys.path.insert(0, {str(path.parent)!r}); {run}"


OF_HMSA = "runpy.run_module('hmsa', run_name='__main__')"


def test_there_are_three_launchers() -> None:
    programs = (path for path in ROOT.glob("*.py") if "if __name__ ==" in path.read_text())
    found = [path.stem for path in programs]
    assert sorted(found) == list(LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_answer_help_without_torch(name: str) -> None:
    status, text, _, heavy = answer_of(of_file(ROOT / f"{name}.py"), "--help")
    assert status == 0 and f"usage: {name}.py" in text and len(text) > 200
    assert heavy == []


@pytest.mark.parametrize("command", COMMANDS)
def test_hmsa_commands_answer_help_without_torch(command: str) -> None:
    status, text, _, heavy = answer_of(OF_HMSA, command, "--help")
    assert status == 0 and f"usage: hmsa {command}" in text and len(text) > 200
    assert heavy == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_answer_help(script: Path) -> None:
    done = Program([script, "--help"], environment=os.environ).finish(timeout=60)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["usage: hmsa COMMAND", "hmsa train", "hmsa eval", "hmsa autolabel"]),
        (["trian"], ["'trian' is not a command of hmsa (did you mean 'train'?)"]),
        (["train"], ["the following argument is required: config"]),
        (["train", "x.yaml", "--resmue"], ["unrecognized arguments: --resmue"]),
        (["eval", "--checkpoint", "x.pt", "--scales", "nan"], ["'nan' is not a scale"]),
        (["eval", "--checkpoint", "x.pt", "--scales", "inf"], ["'inf' is not a scale"]),
        (["eval", "--checkpoint", "x.pt", "--scales", "1", "17"], ["'17' is not a scale"]),
        (["autolabel", "--output", "o", "--scales", "0"], ["'0' is not a scale"]),
        (["train", "configs/demo.yaml", "optim.lrr=1"], ["optim.lrr", "did you mean"]),
        (["train", "no/such.yaml"], ["no/such.yaml"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_mistakes_of_the_command_line_are_answered_without_torch(
    words: list[str], said: list[str]
) -> None:
    status, text, error, heavy = answer_of(OF_HMSA, *words)
    assert status == 2 and text == "" and heavy == []
    assert all(part in error for part in said) and "Traceback" not in error, error


def test_hmsa_tells_its_version_and_its_commands() -> None:
    status, text, _, _ = answer_of(OF_HMSA, "--version")
    assert status == 0 and text.startswith("hmsa 0.")
    status, text, _, _ = answer_of(OF_HMSA, "--help")
    assert status == 0 and all(f"hmsa {command}" in text for command in COMMANDS)


# --- how the code is ---


def function_of(file: str, name: str) -> tuple[str, int]:
    """Source and number of lines of a function or method in a file of at most 400 lines."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    (function,) = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    assert function.end_lineno is not None
    return ast.get_source_segment(text, function) or "", function.end_lineno - function.lineno


def test_training_reads_from_top_to_bottom() -> None:
    """The loop is one function that fits a few screens, and a step two that fit one each."""
    for file, name, most, wanted in (
        ("engine/train.py", "train", 175, ("step.gradients(", "step.update(", "validation.run")),
        ("engine/step.py", "gradients", 60, ("= self.model(", "self.criterion(", ".backward()")),
        ("engine/step.py", "update", 40, ("state.skip_step()", "state.step()")),
    ):
        body, lines = function_of(file, name)
        assert lines <= most, name
        assert [part for part in wanted if part not in body] == []


def test_all_who_take_training_steps_take_the_same() -> None:
    """A benchmark measures what a training runs: the loss is differentiated in one place."""
    files = [*files_of("engine"), *(ROOT / "scripts" / "benchmarks").glob("*.py")]
    users = [path for path in files if ".scale(loss).backward()" in path.read_text("utf-8")]
    assert users == [ROOT / "engine" / "step.py"]


def test_only_one_file_of_each_kind_knows_its_secret() -> None:
    """torch.distributed lives in utils/processes.py and in nothing else that ships."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in shipped_files()
        if any(is_below(item.target, {"torch.distributed"}) for item in imports_of(path))
        or "torch.distributed."
        in path.read_text(encoding="utf-8").replace("`torch.distributed`", "")
    ]
    assert users == ["utils/processes.py"]


def test_nothing_but_the_engine_sees_a_configuration() -> None:
    """Fields cross as arguments: a package names neither the configuration nor its reader."""
    for path in (file for package in PACKAGES if package != "engine" for file in files_of(package)):
        if path.is_relative_to(ROOT / "utils" / "config"):
            continue
        names = {
            node.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Name)
        }
        modules = {own_name(item.target) or "" for item in imports_of(path)}
        assert "load_config" not in names, path
        assert not [name for name in modules if is_below(name, {"utils.config"})], path


def test_weights_are_only_read_as_plain_tensors() -> None:
    """No torch.load without weights_only=True, and no unpickling, anywhere that ships."""
    scripts = sorted((ROOT / "scripts").rglob("*.py"))
    for path in [*shipped_files(), *scripts]:
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
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("weights_only") == "True", f"{place}: torch.load unsafe"
