"""Progress in a log: lines of their own, without escapes; nothing where it is not wanted."""

from __future__ import annotations

import re

import pytest

from hmsa.utils.training import progress
from hmsa.utils.training.progress import progress_bar


def test_lines_of_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress_bar(total=3, unit="image", show=True, desc="{0.5, 1}") as bar:
        for _ in range(3):
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and re.fullmatch(
        r"\{0\.5, 1\}: 100% 3/3 \[00:00<00:00, .*image.*\]", lines[-2]
    )
    assert not any("\r" in line or "\x1b" in line or not line for line in lines[:-1])


def test_a_name_given_later_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=2, unit="step", show=True) as bar:
        bar.set_description("epoch 1")
    assert "\nepoch 1:   0% 0/2 [" in capsys.readouterr().err


def test_nothing_is_shown_where_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=2, unit="step", show=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
