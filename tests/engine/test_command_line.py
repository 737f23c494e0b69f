"""How commands end: what is said, on which terminal, by which rank, and with which status."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.engine import command_line
from hmsa.engine.arguments import COMMANDS, parse_calibrate, parse_eval, parse_train
from hmsa.engine.command_line import (
    file_ending_in,
    lasting_streams,
    positive_share,
    run_command,
    say_loading,
)
from hmsa.utils.words import UserError
from tests.engine.conftest import ROOT


def mistaken() -> int:
    raise UserError("x.yaml: no such file")


def test_a_mistake_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(mistaken) == 2
    assert capsys.readouterr().err == "error: x.yaml: no such file\n"


def test_a_mistake_that_another_rank_says_is_not_said_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def silently() -> int:
        error = UserError("x.yaml: no such file")
        error.silent = True
        raise error

    assert run_command(silently) == 2
    assert capsys.readouterr().err == ""


def test_another_rank_than_the_first_waits_with_its_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14, C15: torchrun has ended it by then, when the first met the same mistake."""
    waited: list[float] = []
    monkeypatch.setattr(command_line.time, "sleep", waited.append)
    for rank, wanted in (("0", []), ("1", [command_line.FIRST_RANK_SECONDS])):
        monkeypatch.setenv("RANK", rank)
        assert run_command(mistaken) == 2
        assert waited == wanted and "no such file" in capsys.readouterr().err


def test_ctrl_c_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_command(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_written_as_an_escape(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 14, B8: names of classes and files need not be in the terminal's encoding."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    with lasting_streams():
        print("Straße 电线杆 \udce9")
    assert sys.stdout is screen
    shown = screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert shown.startswith("Stra") and shown.endswith("\\udce9\n")


def test_a_closed_pipe_ends_no_command(tmp_path: Path) -> None:
    """Issue 14, B8: `hmsa eval ... | head -1` goes on to its end."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from hmsa.engine.command_line import run_command

def main():
    for _ in range(20000):
        print("a line that nobody reads any more")
    Path({str(tmp_path / "done")!r}).touch()
    return 0

sys.exit(run_command(main))
"""
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    error = program.stderr.read().decode()
    assert program.wait(timeout=60) == 0 and error == ""
    assert (tmp_path / "done").exists()


def test_the_grace_time_waits_for_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 14, A5: what ends the process in the end lets a checkpoint be finished first."""
    from hmsa.utils.runtime import uninterrupted

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with uninterrupted():
        command_line._leave(143)
        assert ended == []
    assert ended == [143]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following argument is required: config, a YAML file"),
        (["a.yaml", "--lr", "0.1"], "is written optim.lr=0.1"),
        (["a.yaml", "--num-workers=3"], "is written data.workers=3"),
        (["a.yaml", "--epochs"], "is written optim.epochs=VALUE"),
        (["a.yaml", "--rezume"], "did you mean '--resume'?"),
        (["a.yaml", "--nonsense"], "unrecognized arguments: --nonsense\n"),
    ],
)
def test_a_command_line_says_what_was_meant(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(words)
    assert caught.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("words", ["0.5 1 2", "0.5,1,2", "[0.5,1,2]", "[0.5, 1, 2]", "0.5 1,2"])
def test_a_list_of_scales_may_be_written_in_any_way(words: str) -> None:
    found = parse_eval(["--checkpoint", "x", "--scales", *words.split(), "data.root=y"])
    assert found.scales == [0.5, 1.0, 2.0] and found.overrides == ["data.root=y"]
    found = parse_calibrate(["--checkpoint", "x", "--scales", words, "--images", "8"])
    assert found.scales == [0.5, 1.0, 2.0] and found.images == 8


@pytest.mark.parametrize("words", ["0.5,y", "[]", "0", "1 17"])
def test_what_is_no_list_of_scales_is_said(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_eval(["--checkpoint", "x", "--scales", *words.split()])
    assert "scale" in capsys.readouterr().err.splitlines()[-1]


def test_the_help_of_every_command_is_there_without_torch() -> None:
    """An option is looked up at once, and not after seconds of imports."""
    program = """
import contextlib, io, sys
from hmsa.engine.arguments import COMMANDS
for command, _ in COMMANDS.values():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        command(["--help"])
    assert shown.getvalue().startswith("usage: hmsa"), shown.getvalue()
print(len(COMMANDS), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(len(COMMANDS)), "False"], done.stderr


def test_a_share_is_above_0_and_below_1_or_at_most() -> None:
    assert positive_share()("0.25") == 0.25 and positive_share(one_included=True)("1") == 1
    for words, read in (
        ("below 1", positive_share()),
        ("most 1", positive_share(one_included=True)),
    ):
        for text in ("0", "-0.5", "1.01", "nan", "a half"):
            with pytest.raises(argparse.ArgumentTypeError, match=f"{text}.* is no share .*{words}"):
                read(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'1' is no share above 0 and below 1"):
        positive_share()("1")


def test_a_file_to_write_ends_as_one_of_its_formats(tmp_path: Path) -> None:
    read = file_ending_in(".onnx", ".pt2")
    assert read("a/model.onnx") == Path("a/model.onnx")
    with pytest.raises(argparse.ArgumentTypeError, match=r"x.pt must end in .onnx or .pt2"):
        read("x.pt")
    (tmp_path / "made.onnx").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder; name a file"):
        read(str(tmp_path / "made.onnx"))


def test_a_terminal_is_told_that_torch_is_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    say_loading("train")
    assert capsys.readouterr().err == "", "a log begins with the command's own lines"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say_loading("train")
    assert capsys.readouterr().err == "hmsa train: loading PyTorch\n"
    monkeypatch.setenv("RANK", "1")
    say_loading("train")
    assert capsys.readouterr().err == ""
