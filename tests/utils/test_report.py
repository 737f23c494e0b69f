"""The pages: complete, escaped, self-contained, and right in what they say."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa.utils.files.writing import WriteError
from hmsa.utils.metrics.bootstrap import Interval
from hmsa.utils.report.charts import CostRow, nice_steps, score_chart
from hmsa.utils.report.contact_page import SheetReport, SheetTile, contact_page
from hmsa.utils.report.contents import ThresholdCurve
from hmsa.utils.report.page import Example, Picture
from hmsa.utils.report.report import AutolabelReport, ComparedRow, EvaluationReport, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
NAMES = ["road", '<b>car</b> & "van"', "sky"]
COLORS = [(128, 64, 128), (0, 0, 142), (70, 130, 180)]
MATRIX = np.array([[90, 10, 0], [5, 15, 0], [0, 0, 0]])


class Page(HTMLParser):
    """Reads a page, insists on balanced tags, and keeps texts, links, pictures and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def row(self, first: str) -> list[str]:
        """The first table row that begins with `first`."""
        return next(row for row in self.rows if row and row[0] == first)

    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


def picture(seed: int, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def example(title: str = "night/0001", remark: str = "mIoU 12.3 %") -> Example:
    flat = np.full((30, 40, 3), (0, 0, 142), dtype=np.uint8)
    return Example(
        title, [Picture.photo("image", picture(0)), Picture.drawing("label", flat)], remark
    )


def full_evaluation() -> EvaluationReport:
    return EvaluationReport(
        title="runs/<x>",
        names=NAMES,
        colors=COLORS,
        matrix=MATRIX,
        images=7,
        split="val",
        checkpoint="runs/x/<best>.pt",
        checkpoint_sha256="ab" * 32,
        settings={
            "eval": {"scales": [0.5, 1.0], "flip": True, "tile": None},
            "optim": {"lr": 0.01, "rmi": {"radius": 3}},
            "plain": "<i>",
        },
        facts={"validation loss": "0.412"},
        compared=[
            ComparedRow("hierarchical", [1], False, 0.5, np.array([0.5, 0.5, np.nan])),
            ComparedRow("average", [0.5, 1, 2], True, 0.48, np.array([0.6, 0.25, np.nan])),
            ComparedRow("max", [2], False, 0.6),
        ],
        categories={"flat": 0.9, "vehicle": float("nan")},
        instance_iou={NAMES[1]: 0.25},
        category_instance_iou={"vehicle": 0.3},
        boundary_f=np.array([0.5, 0.25, np.nan]),
        worst=[example("worst/0001")],
        worst_per_class={NAMES[1]: [example("class/0002")], "sky": []},
        attention=[example("attention/0003")],
        shares=np.array([[0.8, 0.1, 0.0], [0.2, 0.9, 0.0]]),
        share_scales=[0.5, 1.0],
    )


def full_autolabel() -> AutolabelReport:
    return AutolabelReport(
        title="auto",
        names=NAMES,
        colors=COLORS,
        images=4,
        kept=np.array([60, 20, 0]),
        predicted=np.array([80, 40, 0]),
        pixels=200,
        thresholds={"sky": 0.7},
        checkpoint="teacher.pt",
        checkpoint_sha256="cd" * 32,
        settings={"threshold": 0.9},
        facts={"mean confidence": "0.93"},
        human=np.array([30, 0, 10]),
        agreement=np.array([[20, 5, 0], [0, 0, 0], [0, 0, 5]]),
        hard_bytes=100,
        confidence_bytes=50,
        reading_seconds={"hard labels": 0.004, "soft labels": 0.25},
        panels=[example("panel/1")],
        failed=[("<broken>.jpg", "it's truncated")],
        warnings=["nothing is kept of <sky>"],
    )


def read(tmp_path: Path, report: EvaluationReport | AutolabelReport) -> tuple[Page, str]:
    write_report(tmp_path / "deep" / "report.html", report)
    text = (tmp_path / "deep" / "report.html").read_text()
    return Page(text), text


@pytest.mark.parametrize(
    "report", [full_evaluation(), full_autolabel()], ids=["evaluation", "autolabel"]
)
def test_pages_need_nothing_else_and_escape_everything(tmp_path: Path, report: Any) -> None:
    page, text = read(tmp_path, report)
    assert not re.search(r"https?:|//cdn|@import|url\(", text), "nothing may be fetched"
    for tag, attributes in page.tags:
        assert tag not in ("i", "x", "best", "broken", "link"), "a name became markup"
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    assert "<b>car" not in text and "&lt;b&gt;car&lt;/b&gt; &amp; &#34;van&#34;" in text
    assert NAMES[1] in page.text
    targets = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert targets == {f"#{anchor}" for anchor in page.sections()}, "the menu leads to every part"


HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>'


def hostile(value: Any) -> Any:
    """The same value with every text in it replaced by one that tries to run a script."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {f"{HOSTILE}{number}": hostile(inner) for number, inner in enumerate(value.values())}
    if isinstance(value, list | tuple):
        return type(value)(hostile(inner) for inner in value)
    if isinstance(value, Example):
        return Example(HOSTILE, [hostile(inner) for inner in value.pictures], HOSTILE)
    if isinstance(value, Picture):
        return dataclasses.replace(value, caption=HOSTILE)
    if isinstance(value, ComparedRow):
        return dataclasses.replace(value, method=HOSTILE)
    return value


@pytest.mark.parametrize(
    "report", [full_evaluation(), full_autolabel()], ids=["evaluation", "autolabel"]
)
def test_no_text_of_the_data_becomes_a_script(tmp_path: Path, report: Any) -> None:
    """Kind: names, paths, settings and captions come from data; only the page's own script runs."""
    for field in dataclasses.fields(report):
        setattr(report, field.name, hostile(getattr(report, field.name)))
    page, text = read(tmp_path, report)

    assert [tag for tag, _ in page.tags].count("script") == 1
    assert text.count("<script") == 1 and "<img src=x" not in text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)

    # Should a text slip through one day, the policy lets only this script run.
    script = re.search("<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(attributes for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_names_that_are_not_utf8_do_not_lose_the_page(tmp_path: Path) -> None:
    """Kind: text that an encoding cannot hold; the page escapes it."""
    report = full_autolabel()
    report.failed = [(os.fsdecode(b"caf\xe9.jpg"), "broken")]
    report.panels = [example(os.fsdecode(b"caf\xe9"))]
    page, _ = read(tmp_path, report)
    assert page.row("caf\\udce9.jpg") == ["caf\\udce9.jpg", "broken"]


def test_evaluation_says_every_number(tmp_path: Path) -> None:
    page, text = read(tmp_path, full_evaluation())
    assert page.sections() == [
        "summary",
        "classes",
        "scales",
        "shares",
        "attention",
        "confusion",
        "worst",
        "settings",
    ]
    # road: 90 / 105, car: 15 / 30; mean (85.7 + 50) / 2
    for number in ("67.9", "85.7", "50.0", "87.5", "0.412"):
        assert number in page.text, number
    assert page.row("road") == ["road", "", "85.7", "94.7", "90.0", "50.0", "–", "83.33"]
    assert page.row(NAMES[1]) == [NAMES[1], "", "50.0", "60.0", "75.0", "25.0", "25.0", "16.67"]
    assert page.row("sky") == ["sky", "", "–", "–", "–", "–", "–", "0.00"]
    assert "not in the means: sky" in page.text
    assert page.row("hierarchical") == ["hierarchical", "1", "no", "", "50.0", ""]
    assert page.row("average") == ["average", "0.5, 1, 2", "yes", "", "48.0", "-2.0"]
    assert page.row("max") == ["max", "2", "no", "", "60.0", "+10.0"]
    assert page.row("flat") == ["flat", "", "90.0", "–"] and page.row("vehicle") == [
        "vehicle",
        "",
        "–",
        "30.0",
    ]
    assert ["road", "80", "20", ""] in page.rows and ["sky", "–", "–", ""] in page.rows
    assert "width:80.0%" in text and "width:20.0%" in text, "the same as a bar"
    assert ["class", "hierarchical: 1", "average: 0.5, 1, 2 + flip"] in page.rows and [
        "sky",
        "–",
        "–",
    ] in page.rows
    assert [NAMES[1], "50", "25"] in page.rows
    assert (
        "split val · 7 images · 3 classes · hierarchical at 1 · checkpoint abababababab"
        in page.text
    )
    assert ["road", NAMES[1], "10.0", "66.7"] in page.rows, "the commonest mistake"
    assert f"road predicted as {NAMES[1]}: 10.00 %" in page.text
    for title in ("worst/0001", "class/0002", "attention/0003"):
        assert title in page.text


def test_settings_show_every_value_and_the_hash(tmp_path: Path) -> None:
    page, _ = read(tmp_path, full_evaluation())
    assert page.row("sha256") == ["sha256", "ab" * 32] and page.row("file") == [
        "file",
        "runs/x/<best>.pt",
    ]
    values = {
        "scales": "[0.5, 1]",
        "flip": "true",
        "tile": "null",
        "lr": "0.01",
        "radius": "3",
        "plain": "<i>",
    }
    for name, value in values.items():
        assert [name, value] in page.rows
    assert "optim.rmi" in page.text


def test_autolabel_says_every_number(tmp_path: Path) -> None:
    page, _ = read(tmp_path, full_autolabel())
    assert page.sections() == [
        "summary",
        "kept",
        "before",
        "agreement",
        "panels",
        "cost",
        "failed",
        "settings",
    ]
    assert page.row("road")[:6] == ["road", "0.9", "", "75.0", "80", "60"] and page.row("sky")[
        1:4
    ] == ["0.7", "", "–"]
    assert page.row("all") == ["all", "", "", "66.7", "120", "80", ""]
    assert ["road", "", "75.00", "75.00", "30", "60", "2.00x"] in page.rows
    assert [NAMES[1], "", "0.00", "25.00", "0", "20", "–"] in page.rows
    assert ["road", "", "80.0", "100.0", "80.0", "25"] in page.rows
    assert page.row("soft labels, float32 for each class") == [
        "soft labels, float32 for each class",
        "2.4 kB",
        "600 B",
        "24",
    ]
    assert page.row("hard labels (PNG), on disk") == [
        "hard labels (PNG), on disk",
        "100 B",
        "25 B",
        "1",
    ]
    assert page.row("soft labels") == ["soft labels", "250.0"]
    assert page.row("<broken>.jpg") == ["<broken>.jpg", "it's truncated"]
    assert "nothing is kept of <sky>" in page.texts, "a warning stands by itself"
    assert "40.0" in page.text and "20.0" in page.text, (
        "labelled share of all pixels, after and before"
    )


def test_the_papers_soft_labels_take_three_terabytes(tmp_path: Path) -> None:
    pixels = 20_000 * 1024 * 2048
    report = AutolabelReport(
        title="paper",
        names=[f"class {n}" for n in range(19)],
        colors=np.zeros((256, 3), dtype=np.uint8),
        images=20_000,
        kept=np.full(19, pixels // 19),
        pixels=pixels,
        hard_bytes=10**9,
    )
    page, _ = read(tmp_path, report)
    assert page.row("soft labels, float32 for each class")[1:] == ["3.19 TB", "159 MB", "3,188"]


@pytest.mark.parametrize("classes", [1, 2, 66])
def test_the_smallest_reports(tmp_path: Path, classes: int) -> None:
    names, colors = [f"class {n}" for n in range(classes)], np.zeros((256, 3), dtype=np.uint8)
    nothing = np.zeros((classes, classes), dtype=np.int64)
    page, _ = read(
        tmp_path, EvaluationReport(title="t", names=names, colors=colors, matrix=nothing, images=0)
    )
    assert (
        page.sections() == ["summary", "classes", "confusion", "settings"]
        and page.row("class 0")[2] == "–"
    )
    page, _ = read(
        tmp_path,
        EvaluationReport(
            title="t",
            names=names,
            colors=colors,
            matrix=nothing + np.eye(classes, dtype=int),
            images=1,
        ),
    )
    assert page.row("mean")[2] == "100.0"
    empty = np.zeros(classes, dtype=np.int64)
    page, _ = read(
        tmp_path,
        AutolabelReport(
            title="t", names=names, colors=colors, images=0, kept=empty, human=empty, pixels=0
        ),
    )
    assert page.sections() == ["summary", "kept", "before", "settings"]


def decoded(one: Picture) -> np.ndarray:
    array = cv2.imdecode(np.frombuffer(one.data, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert array is not None and array.shape[:2] == (one.height, one.width)
    return array[..., ::-1]


def test_pictures_shrink_and_drawings_keep_their_colours() -> None:
    palette = picture(3, (19, 1))[:, 0]
    label = np.kron(
        np.random.default_rng(0).integers(0, 19, (20, 40)), np.ones((30, 30), dtype=int)
    )
    drawing = Picture.drawing("label", palette[label], width=400)
    assert (drawing.width, drawing.height, drawing.mime) == (400, 200, "image/png")
    allowed = {tuple(colour) for colour in palette.tolist()}
    assert {tuple(colour) for colour in decoded(drawing).reshape(-1, 3).tolist()} <= allowed
    small = Picture.drawing("label", palette[label[:50, :60]], width=400)
    np.testing.assert_array_equal(decoded(small), palette[label[:50, :60]])
    photo = Picture.photo("image", picture(0, (300, 900)), width=300)
    assert (photo.width, photo.height, photo.mime) == (300, 100, "image/jpeg")
    assert Picture.drawing("heat", picture(0, (60, 80))).mime == "image/jpeg"
    flat = Picture.photo("flat", np.full((20, 20, 3), (200, 30, 60), dtype=np.uint8))
    assert np.abs(decoded(flat).astype(int) - (200, 30, 60)).max() <= 6


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    page, _ = read(tmp_path, full_evaluation())
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 6
    for source in sources:
        kind, data = source.removeprefix("data:").split(";base64,")
        assert (
            kind in ("image/png", "image/jpeg")
            and cv2.imdecode(np.frombuffer(base64.b64decode(data), dtype=np.uint8), 1) is not None
        )


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"report\.html: cannot be written"):
        write_report(tmp_path / "file" / "report.html", full_autolabel())


# --- scales: which to use, and what they cost ---


def with_costs(*, better_by_chance: bool) -> EvaluationReport:
    """{1} is asked for; {0.5, 1} has more, by chance or not, at 1.3 times the cost."""
    report = full_evaluation()
    low = -0.01 if better_by_chance else 0.01
    report.compared = [
        ComparedRow(
            *("hierarchical", [1], False, 0.5),
            interval=Interval(0.45, 0.55),
            difference=Interval(0, 0),
            behind_best=Interval(-0.03, -low),
            seconds=0.25,
            flops=1.0,
            memory_bytes=3 * 2**20,
            recommended=better_by_chance,
        ),
        ComparedRow(
            *("hierarchical", [0.5, 1], False, 0.52),
            interval=Interval(0.46, 0.56),
            difference=Interval(low, 0.03),
            behind_best=Interval(0, 0),
            seconds=0.3125,
            flops=1.3,
            memory_bytes=4 * 2**20,
            recommended=not better_by_chance,
        ),
    ]
    return report


def test_a_difference_that_chance_explains_is_not_coloured_and_not_paid_for(
    tmp_path: Path,
) -> None:
    page, text = read(tmp_path, with_costs(better_by_chance=True))
    assert [*page.row("hierarchical")[4:]] == ["50.0", "45.0 to 55.0", "", "0.25", "1.00", "3"]
    assert '<td class="number soft">+2.0</td>' in text
    assert "Use {1}:" in page.text and "cheapest that cannot be told from the best" in page.text
    assert "-1.0 to +3.0" in page.text and "at 1.3 times the cost" in page.text

    page, text = read(tmp_path, with_costs(better_by_chance=False))
    assert '<td class="number good">+2.0</td>' in text
    assert "Use {0.5, 1}:" in page.text and "lower by more than chance explains" in page.text
    assert "mIoU % at 0.5, 1, advised below" in page.text


def test_a_chart_for_each_cost_with_the_advised_way_marked(tmp_path: Path) -> None:
    page, text = read(tmp_path, with_costs(better_by_chance=True))
    charts = [tag for tag in page.tags if tag[0] == "svg" and "mIoU" in str(tag[1])]
    assert [attributes["aria-label"] for _, attributes in charts] == [
        "mIoU against seconds per image",
        "mIoU against FLOPs, times those of {1}",
        "mIoU against memory, MiB",
    ]
    assert text.count('class="ring"') == 3
    report = with_costs(better_by_chance=True)
    report.compared = [dataclasses.replace(row, seconds=None) for row in report.compared]
    assert "mIoU against seconds" not in read(tmp_path, report)[1]


def test_points_of_a_chart_lie_where_their_numbers_say() -> None:
    rows = [
        CostRow(f"way {n}", 1.0 + n, 50 + n, 49 + n, 51 + n, recommended=n == 1) for n in range(4)
    ]
    chart = score_chart("cost", rows)
    points = sorted(chart.points, key=lambda point: point.name)
    assert np.ptp(np.diff([point.x for point in points])) < 1e-9
    assert np.ptp(np.diff([point.y for point in points])) < 1e-9
    for point in points:
        assert chart.frame.left < point.x < chart.frame.right
        assert chart.frame.top <= point.high < point.y < point.low <= chart.frame.bottom
    places = {(point.text_x, point.text_y) for point in points}
    assert len(places) == 4
    # Of four ways that lie close together no name covers another one.
    close = [CostRow(f"way {n}", 5 + n / 20, 60.0, 55.0, 65.0, n == 0) for n in range(4)]
    found = score_chart("cost", close).points
    for one, other in itertools.combinations(found, 2):
        width = 6.2 * len(one.name)
        assert abs(one.text_y - other.text_y) >= 13 or abs(one.text_x - other.text_x) >= width
    assert nice_steps(0.1, 0.34) == [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    assert nice_steps(5, 5)[0] <= 5 <= nice_steps(5, 5)[-1]


def test_classes_have_intervals_and_settings_at_their_defaults_stand_apart(
    tmp_path: Path,
) -> None:
    report = full_evaluation()
    nothing = Interval(float("nan"), float("nan"))
    report.intervals = [Interval(0.8, 0.9), Interval(0.2, 0.75), nothing]
    report.defaults = {"optim.lr": 0.01, "eval.flip": False}
    report.typical, report.notes = [example("typical/0007")], ["The loss may be negative."]
    page, text = read(tmp_path, report)
    assert page.row(NAMES[1])[-2:] == ["20.0 to 75.0", "16.67"]
    assert page.row("sky")[-2:] == ["–", "0.00"]
    assert "5 settings that differ from their defaults" in page.text
    assert "1 settings at their defaults" in page.text
    assert text.index("<td>lr</td>") > text.index("at their defaults") > text.index("<td>flip</td>")
    assert "typical/0007" in page.text and "nearest to the median" in page.text
    assert "The loss may be negative." in page.text


# --- automatic labels: a verdict ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": np.array([70, 30, 5])}, "Good to train on."),
        ({"kept": np.array([70, 7, 5])}, "autolabel.keep_share=0.5"),
        ({"kept": np.array([70, 7, 5])}, "Mend this first: 1 of 3 classes keeps too few pixels."),
        ({"kept": np.array([70, 7, 1])}, "Mend this first: 2 of 3 classes keep too few pixels."),
        ({"teacher_iou": np.array([0.9, 0.2, 0.8])}, "The teacher is weak on"),
        ({"teacher_miou": 0.31}, "Do not train on these yet."),
        ({"agreement": np.array([[5, 5, 0], [0, 0, 0], [0, 0, 0]])}, "Only 50.0 %"),
        ({"kept": np.array([0, 0, 0])}, "No pixel has a label"),
        ({"failed": [("a", "b")]}, "1 images have no label"),
        ({"teacher_was_calibrated": True}, "teacher's mIoU % before calibration"),
    ],
)
def test_the_page_begins_with_a_verdict(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    report = full_autolabel()
    report.kept, report.predicted = np.array([70, 30, 5]), np.array([80, 40, 10])
    report.agreement, report.failed, report.warnings = None, [], []
    report.teacher_miou, report.teacher_iou = 0.7, np.array([0.9, 0.5, 0.8])
    assert said not in read(tmp_path, report)[0].text or said == "Good to train on."
    for name, value in changes.items():
        setattr(report, name, value)
    page, text = read(tmp_path, report)
    assert said in page.text
    if said == "autolabel.keep_share=0.5":
        assert '<td class="number bad">17.5</td>' in text, "and its row is marked"
    is_good = said == "Good to train on." or "teacher_was_calibrated" in changes
    assert ("Good to train on." in page.text) == is_good
    assert page.row("sky")[-1] in ("80.0",), "the teacher's IoU of the class"


def test_the_remedy_names_the_threshold_that_keeps_half(tmp_path: Path) -> None:
    report = full_autolabel()
    report.kept, report.predicted = np.array([70, 7, 1]), np.array([80, 40, 10])
    first, second, third = report.names
    assert "autolabel.keep_answers=true" in read(tmp_path, report)[0].text
    report.curve = ThresholdCurve(
        [0.0, 1.0], [1.0, 0.0], [None, None], "", {first: 0.9, second: 0.62, third: 0.4}
    )
    text = read(tmp_path, report)[0].text
    assert f'"autolabel.class_thresholds={{{third}: 0.4, {second}: 0.62}}"' in text
    assert f"half of {third} is less sure than 0.5" in text and "keep_answers" not in text


def test_a_curve_says_what_other_thresholds_keep(tmp_path: Path) -> None:
    report = full_autolabel()
    report.curve = ThresholdCurve(
        [0.0, 0.5, 1.0], [1.0, 0.6, 0.0], [None, 0.9, None], "of 3 images"
    )
    page, text = read(tmp_path, report)
    assert "threshold" in page.sections() and "of 3 images" in page.text
    lines = [dict(attributes)["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert [len(str(points).split()) for points in lines] == [3, 1]
    assert "used: 0.9" in page.text


# --- predictions ---


def test_a_contact_sheet_leads_to_every_file(tmp_path: Path) -> None:
    picture_of = Picture.photo("overlay", picture(1))
    links = {"labels": "labels/a b#1.png", "overlay": "overlay/a b#1.png"}
    report = SheetReport(
        title="t",
        way="{0.5, 1}",
        names=NAMES,
        colors=COLORS,
        pixels=np.array([30, 10, 0]),
        images=3,
        tiles=[SheetTile("<b>a", picture_of, links)],
        videos={"/x/film.mp4": "video/film.mp4"},
        failures=["<broken>.jpg: is damaged"],
    )
    text = contact_page(report)
    page = Page(text)
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert "overlay/a%20b%231.png" in targets and "labels/a%20b%231.png" in targets
    assert "video/film.mp4" in targets and "<b>a" not in text
    assert page.row("road") == ["road", "", "75.00"] and "sky" not in page.text
    assert "Shown are 1 of 3 images" in page.text and "<broken>.jpg: is damaged" in page.text
