"""Fuzzing the commands: it sees what is wrong, and a minute of it finds nothing."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from scripts import fuzz
from scripts.fuzzing import cases, running
from scripts.fuzzing.mutations import Damage
from scripts.fuzzing.running import Outcome, findings, run_forked, run_process, snapshot


def case_of(program: Path | str, *words: str, command: str = "eval", **parts: object) -> cases.Case:
    defaults: dict[str, object] = {
        "outputs": ("out",),
        "changed": "photos/first.png",
        "damage": Damage("cut off", matters=True),
    }
    return cases.Case(0, command, str(program), words, **{**defaults, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "text", "found"),
    [
        (0, "first.png was left out", []),
        (2, "error: photos/first.png is cut off", []),
        (1, "1 image could not be labelled: first.png", []),
        (0, "all is well", ["takes the damage without a word"]),
        (1, "Traceback (most recent call last):\nKeyError: 'x'", ["traceback: KeyError: 'x'"]),
        (-11, "Fatal Python error", ["ends with status -11: Fatal Python error"]),
        (2, "oh", ["ends with status 2 without a sentence: oh"]),
        (None, "", ["hangs: no end after 60 s"]),
    ],
)
def test_how_a_command_ends_is_judged(status: int | None, text: str, found: list[str]) -> None:
    assert findings(case_of("eval.py"), Outcome(status, text, 1.0), {}, {}) == found


def test_files_that_no_command_may_touch_are_watched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "home").mkdir()
    for name in ("photos/first.png", "photos/second.jpg", "run"):
        (tmp_path / name).write_text(name)
    before = snapshot(tmp_path)
    (tmp_path / "photos" / "first.png").write_text("drawn over")
    (tmp_path / "photos" / "second.jpg").unlink()
    (tmp_path / "photos" / "first_colour.png").touch()
    (tmp_path / "home" / "cache").touch()  # is left out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").touch()
    said = Outcome(0, "first.png", 1.0)
    assert findings(case_of("eval.py"), said, before, snapshot(tmp_path)) == [
        "changes or removes photos/first.png",
        "changes or removes photos/second.jpg",
        "writes photos/first_colour.png, which is outside its output",
    ]

    # A folder named as the output may get new files, but what was there stays.
    into_photos = case_of("eval.py", outputs=("photos",))
    found = findings(into_photos, said, before, snapshot(tmp_path))
    assert found[:2] == [
        "changes or removes photos/first.png",
        "changes or removes photos/second.jpg",
    ]
    assert not any("first_colour" in sentence for sentence in found)


@pytest.mark.parametrize("run", [run_forked, run_process])
def test_a_program_runs_in_its_folder_and_never_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: object
) -> None:
    (tmp_path / "home").mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nprint(os.getcwd(), sys.argv[1:])\nsys.exit(int(sys.argv[1]))"
    )
    outcome = run(case_of(program, "2"), tmp_path)  # type: ignore[operator]
    assert outcome.status == 2 and outcome.text == f"{tmp_path} ['2']\n"
    program.write_text("raise KeyError('x')")
    outcome = run(case_of(program), tmp_path)  # type: ignore[operator]
    assert outcome.status == 1 and "Traceback" in outcome.text and "KeyError: 'x'" in outcome.text
    program.write_text("import os\nos.abort()")
    assert run(case_of(program), tmp_path).status == -6  # type: ignore[operator]

    # A child of the program is ended with it.
    child = "import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '600'])\n"
    program.write_text(child + "print(child.pid, flush=True)\ntime.sleep(600)")
    monkeypatch.setattr(running, "LIMIT", 5.0)
    outcome = run(case_of(program), tmp_path)  # type: ignore[operator]
    assert outcome.status is None
    deadline = time.monotonic() + 20
    while _lives(int(outcome.text)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(int(outcome.text))


def _lives(number: int) -> bool:
    """Whether a process runs; one that has ended may still wait for somebody to notice."""
    try:
        state = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_every_command_succeeds_on_sound_inputs(sound: Path, tmp_path: Path) -> None:
    """Otherwise what is damaged would tell nothing."""
    for name, command in cases.COMMANDS.items():
        folder = tmp_path / name
        cases.copy_parts(sound, folder, command.parts)
        before = snapshot(folder)
        case = case_of(
            command.program,
            *command.words,
            command=name,
            outputs=command.outputs,
            damage=Damage("nothing", matters=False),
        )
        outcome = run_forked(case, folder)
        assert outcome.status == 0, (name, outcome.text)
        assert findings(case, outcome, before, snapshot(folder)) == []


@pytest.mark.slow
def test_every_damaged_file_is_one_that_its_commands_read(sound: Path) -> None:
    for name, target in cases.TARGETS.items():
        found = [
            path.relative_to(sound) for pattern in target.files for path in sound.glob(pattern)
        ]
        assert found, name
        for command in target.commands:
            parts = cases.COMMANDS[command].parts
            assert all(
                any(path == Path(part) or Path(part) in path.parents for part in parts)
                for path in found
            ), (name, command)


@pytest.mark.slow
def test_a_case_is_a_function_of_its_seed_and_number(sound: Path, tmp_path: Path) -> None:
    for number in range(12):
        made = []
        for copy in ("one", "other"):
            folder = tmp_path / copy
            made.append((cases.make_case(sound, folder, seed=5, number=number), snapshot(folder)))
            shutil.rmtree(folder)
        assert made[0] == made[1]


def test_every_mutation_of_bytes_changes_something(tmp_path: Path) -> None:
    """A mutation that did nothing would test nothing."""
    rng = random.Random(0)
    for number, mutation in enumerate(cases.ALL_BYTES * 10):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file.png").write_bytes(bytes(range(1, 256)) * 40)
        before = snapshot(folder)
        assert mutation(folder / "file.png", rng).what and snapshot(folder) != before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "one of the arguments --minutes --count --case is required"),
        (["--minutes", "0"], "'0' is not a number of minutes"),
        (["--minutes", "nan"], "'nan' is not a number of minutes"),
        (["--count", "0"], "from 1 on"),
        (["--case", "7"], "'7' is not SEED:NUMBER"),
        (["--count", "1", "--keep", "scripts"], "is there already"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        fuzz.main(words)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.slow
def test_sixty_cases_find_nothing(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in continuous integration; what it finds stands in the output, with how to repeat it."""
    monkeypatch.setattr(fuzz, "make_material", lambda folder: shutil.copytree(sound, folder))
    status = fuzz.main(["--count", "60", "--seed", "14"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "60 cases of seed 14, 0 with a finding" in printed
