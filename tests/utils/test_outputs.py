"""Outputs: inside their folder, apart from inputs, and never in the place of what is not ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hmsa.utils.files.outputs import (
    OutputError,
    OutputFolder,
    inside,
    is_output_folder,
    output_folder,
    printable,
    require_apart,
)
from hmsa.utils.files.writing import WriteError

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@contextmanager
def opened(folder: Path, process: int = 0, command: str = "eval") -> Iterator[OutputFolder]:
    with output_folder(folder, command=command, process=process) as output:
        yield output


# Kind: names from outside that lead out of the output folder.


@pytest.mark.parametrize(
    "name",
    ["../a.png", "a/../../b", "/etc/a", "", ".", "a\0b", "a/" + "n" * 256, "n/" * 3000 + "a", ".."],
)
def test_names_that_lead_out_or_are_no_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    with pytest.raises(OutputError) as caught:
        inside(folder, name)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    with opened(folder) as output, pytest.raises(OutputError):
        output.write(name, "x")


def test_names_of_all_kinds_stay_inside(tmp_path: Path) -> None:
    for name in ("a.png", "deep/er/a.png", "..a", "a..b/c", NOT_UTF8, "n" * 255, "a b'\"<>\n"):
        assert inside(tmp_path, name) == tmp_path / name
        with opened(tmp_path) as output:
            output.write(name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_a_link_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "else")
    with pytest.raises(OutputError, match="a link in .*out leads out of it"):
        inside(tmp_path / "out", "link/a.png")
    with opened(tmp_path / "out") as output, pytest.raises(OutputError, match="leads out of it"):
        output.write("link/a.png", "x")
    assert not list((tmp_path / "else").iterdir())

    # The folder itself may be a link, and so may folders above it.
    (tmp_path / "way").symlink_to(tmp_path / "else")
    assert inside(tmp_path / "way", "deep/a.png") == tmp_path / "way" / "deep/a.png"


# Kind: results in the place of inputs, or found among the inputs of the next run.


def test_outputs_that_share_a_folder_with_inputs(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "images" / "val").mkdir(parents=True)
    photo = mine / "images" / "val" / "a.png"
    photo.write_bytes(b"photo")
    (tmp_path / "link").symlink_to(mine)

    for output, inputs in (
        (mine, [mine / "images"]),
        (mine, [photo]),
        (mine / "images", [mine / "images"]),
        (mine / "images" / "predictions", [mine / "images"]),
        (tmp_path / "link" / "images" / "predictions", [mine / "images"]),
        (mine / "images" / "predictions", [tmp_path / "link"]),
        (mine / "images" / "val", [photo]),
    ):
        with pytest.raises(OutputError, match="--output: .* share a folder"):
            require_apart(output, inputs)

    require_apart(mine / "out", [mine / "images", photo])
    require_apart(mine / "images" / "val" / "out", [photo])
    require_apart(tmp_path / "missing", [tmp_path / "gone" / "a.png"])


def test_an_input_that_is_a_link_to_an_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"x")
    (tmp_path / "photo.png").symlink_to(tmp_path / "out" / "a.png")
    with pytest.raises(OutputError, match="photo.png"):
        require_apart(tmp_path / "out", [tmp_path / "photo.png"])


# Kind: writing over what the command did not make.


def test_a_later_run_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    names = [("labels/a.png", "a.jpg"), ("metrics.json", "the scores"), (NOT_UTF8, "b.jpg")]
    for content in ("first", "second"):
        with opened(tmp_path) as output:
            output.require_free(names)
            for name, _ in names:
                output.write(name, content)
                assert output.made(name)
        assert (tmp_path / "labels" / "a.png").read_text() == "second" or content == "first"
    assert is_output_folder(tmp_path) and not is_output_folder(tmp_path / "labels")

    (tmp_path / "labels" / "b.png").write_text("drawn by hand")
    with opened(tmp_path) as output:
        assert not output.made("labels/b.png") and not output.made("labels/none.png")
        with pytest.raises(OutputError, match=r"labels/b\.png: is there already and was not made"):
            output.require_free([*names, ("labels/b.png", "b.jpg")])
        with pytest.raises(OutputError, match=r"labels/b\.png"):
            output.write("labels/b.png", "x")
    assert (tmp_path / "labels" / "b.png").read_text() == "drawn by hand"
    assert (tmp_path / "labels" / "a.png").read_text() == "second"


@pytest.mark.parametrize("correction", ["corrected by hand", "secont"])
def test_what_was_corrected_by_hand_is_not_ours_any_more(tmp_path: Path, correction: str) -> None:
    for content in ("first", "second"):
        with opened(tmp_path) as output:
            output.write("a.png", content)
    (tmp_path / "a.png").write_text(correction)
    with opened(tmp_path) as output, pytest.raises(OutputError, match="was changed since"):
        output.require_free([("a.png", "a.jpg")])


def test_another_command_is_another_maker(tmp_path: Path) -> None:
    with opened(tmp_path, command="eval") as output:
        output.write("a.png", "x")
    with (
        opened(tmp_path, command="autolabel") as output,
        pytest.raises(OutputError, match="was not made by autolabel"),
    ):
        output.write("a.png", "y")


def test_a_copied_folder_is_still_known(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        output.write("a.png", "x")
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "out").iterdir():
        shutil.copyfile(file, tmp_path / "copy" / file.name)
        os.utime(tmp_path / "copy" / file.name, (1, 1))
    with opened(tmp_path / "copy") as output:
        output.write("a.png", "y")
    with opened(tmp_path / "copy") as output:
        output.write("a.png", "z")


def test_folders_links_and_records_of_nonsense_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "real").write_text("x")
    (tmp_path / "link.png").symlink_to(tmp_path / "real")
    (tmp_path / ".hmsa-made-eval-7.jsonl").write_text(
        '{"name": "real", "size": 1}\n[]\n{"name": 3, "size": 1, "time": 2, "sha256": "x"}\n'
        '{"name": "real", "size": "1", "time": 2, "sha256": "x"}\nnull\n{"na'
    )
    with opened(tmp_path) as output:
        for name in ("folder.png", "link.png", "real"):
            with pytest.raises(OutputError, match="is there already"):
                output.write(name, "y")
        with pytest.raises(OutputError, match=r"folder\.png \(and 2 more\)"):
            output.require_free((name, name) for name in ("folder.png", "link.png", "real"))


def test_two_results_in_one_file(tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        with pytest.raises(OutputError, match=r"b\.jpg: its result and that of a\.jpg .* x\.png"):
            output.require_free([("x.png", "a.jpg"), ("./x.png", "b.jpg")])
        output.require_free([("x.png", "a.jpg"), ("x.png", "a.jpg")])


def test_processes_of_one_run_know_each_others_files(tmp_path: Path) -> None:
    with opened(tmp_path, 0) as first, opened(tmp_path, 1) as second:
        second.write("a.png", "x")
        first.write("a.png", "y")
    with opened(tmp_path, 2) as third:
        third.require_free([("a.png", "a")])


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        opened(tmp_path),
        pytest.raises(OutputError, match="another eval is writing here right now"),
        opened(tmp_path),
    ):
        pass
    with opened(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep", tmp_path / ("n" * 300)):
        with pytest.raises(WriteError, match="cannot be written to"), opened(folder):
            pass


def test_a_killed_run_leaves_only_files_that_the_next_one_may_replace(
    tmp_path: Path, root: Path
) -> None:
    code = (
        "from pathlib import Path\n"
        "from hmsa.utils.files.outputs import output_folder\n"
        f"with output_folder(Path({str(tmp_path)!r}), command='eval') as output:\n"
        "    print('ready', flush=True)\n"
        "    for number in range(10**6):\n"
        "        output.write(f'{number % 50}.png', str(number))\n"
    )
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.02 + 0.05 * round_)
        process.kill()
        process.wait()
        process.stdout.close()
        # The next run: its lock is free, and every file is known.
        with opened(tmp_path) as output:
            files = [path.name for path in tmp_path.glob("*.png")]
            output.require_free((name, name) for name in files)
            assert all(output.made(name) for name in files)


def test_a_record_does_not_grow_for_ever(tmp_path: Path) -> None:
    for _ in range(30):
        with opened(tmp_path) as output:
            for number in range(100):
                output.write(f"{number}.png", os.urandom(4).hex())
    record = tmp_path / ".hmsa-made-eval-0.jsonl"
    assert len(record.read_text().split("\n")) < 3500
    with opened(tmp_path) as output:
        output.require_free((f"{number}.png", "x") for number in range(100))


def test_checking_20_000_files_takes_seconds_at_most(tmp_path: Path) -> None:
    """Each of two runs writes and checks 2,000 files: a tenth, in less than a second each."""
    names = [(f"labels/{number:05d}.png", str(number)) for number in range(2000)]
    for _ in range(2):
        with opened(tmp_path) as output:
            start = time.perf_counter()
            output.require_free(names)
            assert time.perf_counter() - start < 1
            for name, _ in names:
                output.write(name, name)


# Kind: text that an encoding cannot hold.


def test_text_that_an_encoding_cannot_hold_is_escaped() -> None:
    assert printable("Straße 中") == "Straße 中"
    assert printable(NOT_UTF8) == "caf\\udce9.png"
    assert printable("Straße 中", "ascii") == "Stra\\xdfe \\u4e2d"
    assert printable("Straße", "latin-1") == "Straße"
    assert printable("ß", None) == "\\xdf" and printable("ß", "no-such") == "\\xdf"
    printable(NOT_UTF8).encode()
