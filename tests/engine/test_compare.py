"""Several metrics.json side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa.engine.arguments import compare_command as main
from hmsa.utils.report.comparison import CompareError, load_runs
from hmsa.utils.report.comparison_page import as_page


def write(path: Path, **changes: Any) -> Path:
    content = {
        "miou": 0.5,
        "pixel_accuracy": 0.9,
        "per_class": {"road": 0.8, "car": 0.2, "train": None},
        "classes_absent": ["train"],
        "images": 10,
        "scales": [1.0],
        "flip": False,
        "split": "val",
        "checkpoint_sha256": "a" * 64,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
    return path


def better(path: Path, **changes: Any) -> Path:
    per_class = {"road": 0.85, "car": 0.1, "train": 0.4}
    return write(
        path,
        miou=0.55,
        per_class=per_class,
        scales=[0.5, 1.0, 2.0],
        flip=True,
        checkpoint_sha256="b" * 64,
        **changes,
    )


def test_table_with_differences_to_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "base" / "metrics.json")
    better(tmp_path / "ours" / "eval" / "metrics.json")
    assert main([str(tmp_path / "base"), str(tmp_path / "ours")]) == 0
    lines = {line[:14].strip(): line[14:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines[""] == ["base", "ours"]
    assert lines["scales"] == ["1", "0.5,", "1,", "2", "+", "flip"]
    assert lines["mIoU"] == ["50.0", "55.0", "(+5.0)"]
    assert lines["road"] == ["80.0", "85.0", "(+5.0)"] and lines["car"] == [
        "20.0",
        "10.0",
        "(-10.0)",
    ]
    assert lines["train"] == ["-", "40.0"] and lines["pixel accuracy"] == ["90.0", "90.0", "(+0.0)"]
    assert lines["checkpoint"] == ["a" * 12, "b" * 12] and lines["images"] == [
        "10",
        "(val)",
        "10",
        "(val)",
    ]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "metrics.json") for name in ("x/seed1", "x/seed2", "y/seed1")]
    assert [run.name for run in load_runs(files)] == ["x/seed1", "x/seed2", "y/seed1"]
    assert load_runs(files[:1])[0].name == "seed1"
    # A run in a folder that is called like it.
    twice = [write(tmp_path / f"{name}/runs/{name}/eval/metrics.json") for name in ("a", "b")]
    same_depth = load_runs(twice)
    assert [run.name for run in same_depth] == ["a", "b"]
    page = as_page(same_depth)
    assert "<h1>a, b</h1>" in page and "Runs side by side · 10 images of val" in page
    pair = [write(tmp_path / "z" / name) for name in ("flip.json", "plain.json")]
    assert [run.name for run in load_runs(pair)] == ["flip.json", "plain.json"]


def test_page(tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "<a>" / "metrics.json"),
        better(tmp_path / "b" / "metrics.json", images=9),
    )
    assert main([str(first), str(second), "--html", str(tmp_path / "out" / "compare.html")]) == 0
    text = (tmp_path / "out" / "compare.html").read_text()
    assert (
        "55.0 (+5.0)" in text
        and "10.0 (-10.0)" in text
        and "b" * 64 in text
        and "&lt;a&gt;" in text
        and "<a>" not in text
    )
    assert "Different numbers of images: 10, 9." in text and not re.search("https?:", text)


def test_other_splits_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / "a.json"), write(tmp_path / "b.json", split="test")]
    assert main([str(file) for file in files]) == 0
    assert "Different splits: val, test." in capsys.readouterr().out


def test_other_scores_where_a_run_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(
        tmp_path / "a.json", boundary_f=0.4, iiou=None, compared=[{"method": "hierarchical"}]
    )
    assert (
        main(
            [
                str(first),
                str(better(tmp_path / "b.json", boundary_f=0.45, category_iou=0.9)),
                str(write(tmp_path / "c.json")),
            ]
        )
        == 0
    )
    lines = {line[:14].strip(): line[14:].split() for line in capsys.readouterr().out.splitlines()}
    assert (
        lines["boundary F"] == ["40.0", "45.0", "(+5.0)", "-"]
        and lines["category IoU"] == ["-", "90.0", "-"]
        and "iIoU" not in lines
    )
    assert lines["method"] == ["hierarchical", "-", "-"]


def test_every_way_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = {
        "scales": [0.5, 1.0],
        "flip": True,
        "miou": 0.6,
        "pixel_accuracy": 0.91,
        "per_class": {"road": 0.9, "car": 0.3, "train": 0.1},
    }
    ways = [
        {"method": "hierarchical", "scales": [1.0], "miou": 0.5},
        {"method": "hierarchical", **second},
    ]
    one, other = (
        write(tmp_path / "a.json", compared=ways, boundary_f=0.4),
        write(tmp_path / "b.json"),
    )
    assert main(["--every-way", str(one), str(other)]) == 0
    lines = {line[:14].strip(): line[14:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines[""] == ["a.json", "a.json", "b.json"] and lines["mIoU"] == [
        "50.0",
        "60.0",
        "(+10.0)",
        "50.0",
        "(+0.0)",
    ]
    assert lines["scales"] == ["1", "0.5,", "1", "+", "flip", "1"] and lines["boundary F"] == [
        "40.0",
        "-",
        "-",
    ]
    assert lines["train"] == ["-", "10.0", "-"] and lines["pixel accuracy"] == [
        "90.0",
        "91.0",
        "(+1.0)",
        "90.0",
        "(+0.0)",
    ]
    assert main([str(one), str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON file"),
        ("[1]", "is no metrics.json of hmsa eval: it holds a list"),
        ('{"miou": 0.1}', "the key 'per_class' is missing"),
        ('{"per_class": 3}', "is no metrics.json of hmsa eval"),
    ],
)
def test_faulty_files_are_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(CompareError, match="bad.json: .*" + said):
        load_runs([tmp_path / "bad.json"])


def test_missing_files_and_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "empty", "holds neither metrics.json nor eval/metrics.json"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert main([str(write(tmp_path / "a.json")), "--html", str(tmp_path / "file" / "x.html")]) == 2
    assert "x.html: cannot be written" in capsys.readouterr().err
    one, other = (
        write(tmp_path / "a.json"),
        write(tmp_path / "b.json", per_class={"road": 0.5, "bus": 0.5, "train": 0.1}),
    )
    assert main([str(one), str(other)]) == 2
    assert "b.json: scores other classes than" in capsys.readouterr().err


def test_a_terminal_that_cannot_show_a_name_and_one_that_goes_away(
    tmp_path: Path, root: Path
) -> None:
    """Kind: text that an encoding cannot hold, and a pipe that is closed, lose no result."""
    file = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xc3\x9f/metrics.json")))
    other = write(tmp_path / "metrics.json")
    command = [
        sys.executable,
        "scripts/compare_runs.py",
        file,
        other,
        "--html",
        tmp_path / "x.html",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "caf\\udce9 \\xdf" in done.stdout, done.stderr
    assert "caf\\udce9 ß" in (tmp_path / "x.html").read_text(encoding="utf-8")
    done = subprocess.run(
        [*command[:2], file.parent / "none.json"], cwd=root, env=environment, capture_output=True
    )
    assert done.returncode == 2 and b"udce9" in done.stderr and b"Traceback" not in done.stderr

    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == 0 and process.stderr.read() == b""
    process.stderr.close()


def test_runs_as_a_script_without_torch(tmp_path: Path, root: Path) -> None:
    file = write(tmp_path / "metrics.json")
    blocked = (
        f"import sys; sys.modules['torch'] = None; sys.argv = ['x', {str(file)!r}]; import runpy; "
    )
    code = blocked + "runpy.run_path('scripts/compare_runs.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "mIoU" in done.stdout, done.stderr


def test_runs_keep_their_names_wherever_their_results_lie(tmp_path: Path) -> None:
    """`eval` is the name of no run."""
    ways = [{"scales": [1.0], "miou": 0.5}, {"scales": [0.5, 1.0], "miou": 0.6}]
    one = write(tmp_path / "runs" / "demo" / "eval" / "metrics.json", compared=ways)
    assert [run.name for run in load_runs([one], every_way=True)] == ["demo", "demo"]
    page = as_page(load_runs([one], every_way=True))
    assert "demo {1}" in page and "demo {0.5, 1}" in page
    flipped = write(tmp_path / "runs" / "demo" / "eval_flip" / "metrics.json")
    assert [run.name for run in load_runs([one, flipped])] == ["demo", "demo/eval_flip"]
    other = write(tmp_path / "runs" / "other" / "eval" / "metrics.json")
    assert [run.name for run in load_runs([one, other])] == ["demo", "other"]


def test_costs_stand_beside_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    way = {
        "scales": [1.0],
        "seconds_per_image": 0.125,
        "flops_relative": 1.0,
        "peak_bytes": 5 * 2**20,
        "miou_interval": [0.45, 0.6],
    }
    one = write(tmp_path / "a" / "metrics.json", compared=[way])
    other = write(tmp_path / "b" / "metrics.json", miou=0.55)
    assert main([str(one), str(other)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seconds", "per", "image", "0.125", "-"] in lines
    assert ["memory,", "MiB", "5", "-"] in lines
    assert ["mIoU,", "95", "%", "interval", "45.0", "to", "60.0", "-"] in lines
    page = as_page(load_runs([one, other]))
    assert "number soft" in page, "a difference within the interval is not coloured"


def test_pictures_of_the_same_images_stand_side_by_side(tmp_path: Path) -> None:
    for run, names in (("a", ("x", "y")), ("b", ("y", "z"))):
        examples = []
        for name in names:
            files = {kind: f"examples/{name}_{kind}.png" for kind in ("image", "label")}
            examples.append({"name": name, **files, "prediction": "../outside.png"})
            if run == "b":
                examples[-1]["prediction"] = f"examples/{name}_image.png"
            for file in files.values():
                (tmp_path / run / file).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / run / file), np.full((4, 6, 3), 99, np.uint8))
        write(tmp_path / run / "metrics.json", examples=examples)
    (tmp_path / "outside.png").write_bytes((tmp_path / "a/examples/x_image.png").read_bytes())

    page = as_page(load_runs([tmp_path / "a", tmp_path / "b"]))
    assert "<h4>y</h4>" in page and "<h4>x</h4>" not in page and "<h4>z</h4>" not in page
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert captions == ["image", "label", "b"], "no file outside the results is shown"
