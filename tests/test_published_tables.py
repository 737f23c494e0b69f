"""Tables of refining, of CamVid, of step costs and of paired differences equal the committed rows.

The numbers in sentences, and the tables of README, are those of test_published_numbers.py.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from tests.test_published_numbers import ROOT, cells, percent, prose, rows_of

CAMVID = "camvid_pretrained/table/table1"
COLUMNS = [(1,), (0.5, 1), (0.5, 1, 2), (0.25, 0.5, 1, 2)]
NAMES = {
    "single scale, averaged": "average",
    "the same weights with attached attention": "attached to single scale",
    "hierarchical": "hierarchical",
}


def tables_of(page: str, header: str) -> list[list[list[str]]]:
    """The rows of every table of a page whose first line begins with `header`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^\|.*(?:\n\|.*)*", text, re.M)
    found = [block.splitlines() for block in blocks if block.startswith(header)]
    return [[cells(line) for line in lines[2:]] for lines in found]


# --- refining ---


def refined(name: str, share: Any) -> Any:
    (row,) = [row for row in rows_of(f"benchmarks/{name}") if row["share"] == share]
    return row


@pytest.mark.parametrize(
    ("position", "name"),
    [(0, "refine_table1"), (1, "refine_512x1024"), (2, "refine_camvid")],
)
def test_what_refining_saves_is_as_measured(position: int, name: str) -> None:
    tables = tables_of("docs/evaluation.md", "| way | 2x counts on | 2x computed on")
    assert len(tables) == 3
    assert len(tables[position]) == len(rows_of(f"benchmarks/{name}"))
    for way, *shown in tables[position]:
        given = re.search(r"--refine ([\d.]+|auto)", way)
        share: float | str = 1.0 if given is None else given[1]
        if share not in (1.0, "auto"):
            share = float(share)
        row = refined(name, share)
        assert shown == [
            f"{100 * row['refined']:.0f} %",
            f"{100 * row['computed']:.0f} %",
            f"{row['miou']:.1f}",
            f"{abs(100 * row['gain']):.0f} %",
            f"{row['flops']:.2f}",
            f"{row['ours_s'] / row['baseline_s']:.2f}",
        ], way


def test_the_readme_says_what_refining_saves() -> None:
    pattern = r"(\d+) to (\d+) % of its gain for ([\d.]+) to ([\d.]+) of the time"
    found = re.search(pattern, prose("README.md"))
    assert found is not None
    rows = [refined(name, 0.3) for name in ("refine_table1", "refine_camvid")]
    gains = sorted(f"{100 * row['gain']:.0f}" for row in rows)
    times = sorted(f"{row['ours_s'] / row['baseline_s']:.2f}" for row in rows)
    assert list(found.groups()) == [*gains, *times]


# --- CamVid ---


def test_the_recipe_of_camvid_reached_what_the_page_says() -> None:
    reached = rows_of("camvid_pretrained/hierarchical-0")
    (table,) = tables_of("docs/camvid.md", "| mIoU | Sky | Building")
    wanted = [reached["miou"], *reached["iou"].values()]
    assert table == [[f"{100 * value:.1f}" for value in wanted]]
    assert f"{reached['seconds'] / 60:.0f} minutes" in prose("docs/camvid.md")


FOREIGN_LISTS = ("1", "0.5,1", "0.5,1,2", "0.25,0.5,1,2")
LISTS = ("{0.5,1}", "{0.5,1,2}", "{0.25,0.5,1,2}")
ATTACHED = {
    "single scale, averaged": "single",
    "the same weights with attached attention": "attached",
    "the same, calibrated": "attached_calibrated",
}


def attached_mean(method: str, scales: tuple[float, ...]) -> str:
    """Their mean as the pages show it."""
    return f"{statistics.mean(attached_scores(method, scales)):.1f}"


def attached_scores(method: str, scales: tuple[float, ...]) -> list[float]:
    """The scores in percent of every seed that is there, from seed 0."""
    folder = "camvid_pretrained/attached"
    files = sorted((ROOT / "results" / folder / "rows").glob(f"{method}-?.json"))
    assert files
    scores = []
    for file in files:
        scored = rows_of(f"{folder}/rows/{file.stem}")["scored"]
        scores += [100 * row["miou"] for row in scored if row["scales"] == list(scales)]
    return scores


@pytest.mark.parametrize("page", ["docs/camvid.md", "docs/results.md"])
def test_attention_attached_to_a_network_from_pretrained_weights(page: str) -> None:
    (table,) = tables_of(page, "| val mIoU %, ")
    *attached, together, random = table
    assert [row[0] for row in attached] == list(ATTACHED)
    for name, *shown in attached:
        for scales, text in zip(COLUMNS, shown, strict=True):
            assert text == attached_mean(ATTACHED[name], scales), f"{name} {scales}"

    plain = rows_of("camvid_pretrained/hierarchical-0")["without flip"]
    for scales, text in zip(COLUMNS, together[1:], strict=True):
        assert text == f"{100 * plain[','.join(f'{scale:g}' for scale in scales)]:.1f}"

    scored = rows_of("camvid_pretrained/random-0")["scored"]
    from_random = {tuple(entry["scales"]): 100 * entry["miou"] for entry in scored}
    assert random[1:] == [*(f"{from_random[scales]:.1f}" for scales in COLUMNS[:3]), ""]


def test_what_weights_of_imagenet_are_worth_on_photographs() -> None:
    (found,) = (
        entry
        for entry in rows_of("camvid_pretrained/random-0")["scored"]
        if entry["scales"] == [0.5, 1.0, 2.0]
    )
    pretrained = statistics.mean(attached_scores("single", (0.5, 1, 2)))
    page, random = prose("docs/camvid.md"), 100 * found["miou"]
    assert f"weights of ImageNet are worth {pretrained - random:.0f} points" in page
    pole, sign = (100 * found["per_class"][name] for name in ("Pole", "SignSymbol"))
    text = f"reach {random:.1f} % at {{0.5, 1, 2}}, with {pole:.1f} on Pole and {sign:.1f} on"
    assert text in page


def test_gains_of_attached_attention_on_photographs() -> None:
    found = rows_of("camvid_pretrained/attached/table1")["differences"]

    def listed(method: str, what: str, form: str) -> str:
        names = [f"{method} {scales} - average {scales}" for scales in LISTS]
        first, second, third = (form.format(100 * found[name][what]) for name in names)
        return f"{first}, {second} and {third}"

    page = prose("docs/camvid.md")
    gains, errors = (("mean", "{:+.1f}"), ("standard_error", "{:.2f}"))
    assert f"gains {listed('attached', *gains)} points" in page
    assert f"(standard errors {listed('attached', *errors)})" in page
    calibrated = "attached, calibrated"
    text = (
        f"Calibrated it gains {listed(calibrated, *gains)} points ({listed(calibrated, *errors)})"
    )
    assert text in page, text

    adding = found["adding 0.25 to attached, calibrated"]
    changed = f"{100 * adding['mean']:+.1f} ({100 * adding['standard_error']:.2f})"
    costs = (found[f"adding 0.25 to {name}"]["mean"] for name in ("attached", "average"))
    attached, average = (f"{-100 * cost:.1f}" for cost in costs)
    text = f"to it changes {changed}, where it costs attention without calibration {attached} and"
    assert f"{text} averaging {average}" in page

    # Other pages repeat them.
    repeated = listed("attached", "mean", "{:.1f}"), listed("attached", *errors)
    text = f"gains {repeated[0]} points over averaging at these lists (three seeds, standard errors"
    assert f"{text} {repeated[1]};" in prose("docs/attention.md")
    error = found[f"attached {LISTS[1]} - average {LISTS[1]}"]["standard_error"]
    said = f"three seeds, standard error of the difference {100 * error:.2f}"
    assert said in prose("README.md")

    flipped = rows_of("camvid_pretrained/attached_flip")
    averaged, attached = (
        f"{100 * flipped[name]['miou']:.1f}" for name in ("single scale, averaged", "attached")
    )
    assert f"has {averaged} averaged and {attached} attached" in prose("docs/camvid.md")


def test_rows_of_table_2_are_the_committed_ones() -> None:
    tables = tables_of("docs/results.md", "| method | attention | auto-labels |")
    for shown, name in zip(tables, ("table2_long", "table2"), strict=True):
        committed = (ROOT / "results" / name / "table2.md").read_text().splitlines()
        assert shown == [cells(line) for line in committed[2:] if line.startswith("|")]

    # Neighbours in the order of the first, paired by seed.
    page = prose("docs/results.md")
    by_row = {line["name"]: line["by_seed"] for line in rows_of("table2_long/table2")["lines"]}
    for words, ours, other in (
        ("Over attention automatic labels gain", "auto-labels", "attention"),
        ("and both over automatic labels", "both", "auto-labels"),
    ):
        gains = [100 * (by_row[ours][seed] - by_row[other][seed]) for seed in by_row[ours]]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        assert f"{words} {statistics.mean(gains):+.2f} ({error:.2f})" in page
    baseline = by_row["baseline"]
    attention, automatic, both = (
        f"{statistics.mean(100 * (scores[seed] - baseline[seed]) for seed in scores):+.1f}"
        for name, scores in by_row.items()
        if name != "baseline"
    )
    said = f"attention {attention}, automatic labels {automatic}, both {both} points"
    assert said in prose("README.md")

    # The table of causes: the teacher's score, what was kept, the student's score.
    (causes,) = tables_of("docs/results.md", "| teacher (its mIoU)")
    for row, why in zip(causes, rows_of("table2/why"), strict=True):
        named = re.search(r"\(([\d.]+)\)$", row[0])
        assert named is None or named[1] == f"{100 * why['teacher_miou']:.1f}"
        assert row[2] == f"{100 * why['kept_share']:.0f} %"
        assert row[3] == f"{100 * why['student_miou']:.1f}"


def require_label_errors(page: str, folder: str, files: Sequence[str]) -> None:
    """The page's table of what labels cover and how much of that is wrong is that of the files."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (table,) = tables_of(page, "| covered, wrong % |")
    (header,) = re.findall(r"^\| covered, wrong % .*", text, re.M)
    for (_, *shown), file in zip(table, files, strict=True):
        found = rows_of(f"{folder}/{file}")
        for name, cell in zip(cells(header)[1:], shown, strict=True):
            of_class = found if name == "all" else found["classes"][name]
            assert cell == f"{100 * of_class['covered']:.1f}, {100 * of_class['wrong']:.1f}", name


def test_what_labels_of_table_2_cover_and_how_much_of_them_is_wrong() -> None:
    files = ("coarse", "threshold0.9-0", "keep0.7-0")
    require_label_errors("docs/results.md", "table2_long/labels", files)

    # At 0.9 alone.
    lines = {line["name"]: line for line in rows_of("table2_long_threshold/table2")["lines"]}
    student, both = (100 * lines[name]["miou"] for name in ("auto-labels", "both"))
    less = [-100 * lines[name]["gain"]["mean"] for name in ("auto-labels", "both")]
    text = f"the students have {student:.1f} and, with attention, {both:.1f}, which is"
    assert f"{text} {less[0]:.1f} and {less[1]:.1f} points less" in prose("docs/results.md")

    per_class = [
        rows_of(f"{table}/rows/auto-labels-0")["scored"][0]["per_class"]
        for table in ("table2_long_threshold", "table2_long")
    ]
    (pole, pole_kept), (fence, fence_kept) = (
        [100 * scores[name] for scores in per_class] for name in ("pole", "fence")
    )
    text = f"Pole has {pole:.1f} instead of {pole_kept:.1f} and fence {fence:.1f} instead of"
    assert f"{text} {fence_kept:.1f}" in prose("docs/results.md")

    # What the text says of poles.
    pole = [rows_of(f"table2_long/labels/{file}")["classes"]["pole"]["covered"] for file in files]
    iou = [
        rows_of(f"table2_long/rows/{row}-0")["scored"][0]["per_class"]["pole"]
        for row in ("auto-labels", "baseline")
    ]
    page = prose("docs/results.md")
    assert f"drew {100 * pole[0]:.0f} % of the pixels of poles" in page
    assert f"labels {100 * pole[2]:.0f} %, and its student has {100 * iou[0]:.1f} on pole" in page
    assert f"where the baseline has {100 * iou[1]:.1f}" in page


def test_table_2_with_photographs() -> None:
    folders = sorted(path for path in (ROOT / "results/camvid_table2").glob("threshold*"))
    tables = tables_of("docs/tables.md", "| method | attention | auto-labels |")
    for shown, folder in zip(tables, folders, strict=True):
        committed = (folder / "table2.md").read_text().splitlines()
        assert shown == [cells(line) for line in committed[2:] if line.startswith("|")]

    files = ("coarse", "threshold0.9", "threshold0.9-keep0.7")
    require_label_errors("docs/tables.md", "camvid_table2/labels", files)

    lines = rows_of("camvid_table2/threshold0.9-keep0.7/table2")["lines"]
    gains = [f"{100 * line['gain']['mean']:+.1f}" for line in lines if line["name"] != "baseline"]
    assert f"on CamVid {', '.join(gains)}." in prose("README.md")

    automatic, baseline = (
        rows_of(f"camvid_table2/threshold0.9/rows/{row}-0")["scored"][0]["per_class"]
        for row in ("auto-labels", "baseline")
    )
    page = prose("docs/tables.md")
    for name, form in {
        "SignSymbol": "SignSymbol has {:.1f} instead of {:.1f}",
        "Sidewalk": "Sidewalk {:.1f} instead of {:.1f}",
        "Pole": "Pole {:.1f} instead of {:.1f}",
        "Pedestrian": "gains ({:.1f} instead of {:.1f})",
    }.items():
        assert form.format(100 * automatic[name], 100 * baseline[name]) in page


def test_models_of_other_libraries() -> None:
    (table,) = tables_of("docs/attention.md", "| | {1} | {0.5, 1} | {0.5, 1, 2} |")
    page, readme = prose("docs/attention.md"), prose("README.md")
    expected: list[list[str]] = []
    for name, file in (("Unet", "unet"), ("SegFormer", "segformer")):
        found = rows_of(f"attached_foreign/{file}")
        miou = {way: list(found["miou"][way].values()) for way in found["miou"]}
        assert found["steps"] == 1500 and list(found["miou"]["averaged"]) == [*FOREIGN_LISTS]
        for shown, way in (
            (f"{name}, averaged", "averaged"),
            ("attached", "attached"),
            ("attached, calibrated", "calibrated"),
        ):
            expected.append([shown, *(f"{score:.1f}" for score in miou[way])])

        pairs = list(zip(miou["calibrated"], miou["averaged"], strict=True))[1:]
        gains = [f"{ours - averaged:.1f}" for ours, averaged in pairs]
        text = f"{gains[0]}, {gains[1]} and {gains[2]}"
        assert f"gives {name} {text} points" in page or f"{name} {text}" in page
        if file == "unet":
            three, four = ((miou["averaged"][n], miou["calibrated"][n]) for n in (2, 3))
            assert "from {:.1f} % averaged to {:.1f} % at {{0.5, 1, 2}}".format(*three) in readme
            assert "from {:.1f} % to {:.1f} % with 0.25x".format(*four) in readme
    assert table == expected


def test_the_readme_says_what_attached_attention_reaches_on_photographs() -> None:
    averaged, attached = (attached_mean(method, (0.5, 1, 2)) for method in ("single", "attached"))
    said = f"has {averaged} % on its validation clip and attached attention {attached} %"
    assert said in prose("README.md")


def test_table_1_with_pretrained_weights() -> None:
    tables = tables_of(
        "docs/camvid.md", "| val mIoU % | {1} | {0.5, 1} | {0.5, 1, 2} | {0.25, 0.5, 1, 2}"
    )
    (table,) = [table for table in tables if table[0][0] in NAMES]
    assert [row[0] for row in table] == list(NAMES)
    for name, *shown in table:
        known = NAMES[name]
        for scales, text in zip(COLUMNS, shown, strict=False):
            # The rows of the hierarchical network hold more lists than the table of all methods.
            assert text == camvid_score(known, scales), f"{name} {scales}"


def camvid_score(name: str, scales: tuple[float, ...]) -> str:
    if name == "hierarchical":
        return f"{100 * camvid_row('hierarchical', scales)['miou']:.1f}"
    if name == "average" and scales == (1,):
        name = "single scale"
    return percent(CAMVID, name, *scales)


def camvid_row(method: str, scales: tuple[float, ...]) -> Any:
    scored = rows_of(f"camvid_pretrained/table/rows/{method}-0")["scored"]
    (row,) = [row for row in scored if row["scales"] == list(scales) and not row["flip"]]
    return row


def test_classes_of_table_1_with_pretrained_weights() -> None:
    (table,) = tables_of("docs/camvid.md", "| IoU %, {0.5, 1, 2} |")
    for row, method in zip(table, ("single", "attached", "hierarchical"), strict=True):
        by_class = camvid_row(method, (0.5, 1, 2))["per_class"]
        assert row[1:] == [f"{100 * iou:.1f}" for iou in by_class.values()], method
    (minutes,) = [
        [row[5] for row in table]
        for table in tables_of("docs/camvid.md", "| val mIoU % | {1} | {0.5, 1} | {0.5, 1, 2}")
    ]
    for text, method in zip(minutes, ("single", "attached", "hierarchical"), strict=True):
        seconds = rows_of(f"camvid_pretrained/table/rows/{method}-0")["train_s"]
        assert text.removesuffix(" more") == f"{seconds / 60:.0f}"


def test_weights_for_rare_classes() -> None:
    rare = rows_of("camvid_pretrained/tuning")["rare classes"]
    trials = {trial["weights"]: trial for trial in rare["trials"] if "weights" in trial}
    (table,) = tables_of("docs/camvid.md", "| weights | mIoU | Pole | SignSymbol")
    assert len(table) == len(trials)
    for name, *shown, afterwards in table:
        trial = trials[name.partition(",")[0].strip("`")]
        iou = trial["iou"]
        wanted = [
            trial["miou"],
            *(iou[key] for key in ("Pole", "SignSymbol", "Pedestrian", "Building")),
        ]
        assert shown == [f"{100 * value:.1f}" for value in wanted], name
        added, best = afterwards.split(": ")
        scores = rare["added to the logits afterwards"][trial["name"]]
        assert best == f"{100 * scores[added]:.1f}"
        assert scores[added] == max(scores.values())


def test_each_scale_alone() -> None:
    alone = rows_of("camvid_pretrained/scale_weight")
    (key,) = [key for key in alone if key.startswith("each scale alone")]
    (table,) = tables_of("docs/camvid.md", "| IoU % of Road, Bicyclist | 0.5x alone")
    for row, found in zip(table, alone[key].values(), strict=True):
        wanted = [", ".join(f"{100 * iou:.0f}" for iou in pair) for pair in found.values()]
        assert row[1:] == wanted, row[0]
    assert f"It has {100 * alone['miou']:.1f} on `val`" in prose("docs/camvid.md")


# --- costs of a step, and differences ---


def test_costs_in_the_table_of_results_are_the_measured_ones() -> None:
    (table,) = tables_of("docs/results.md", "| method | scales | mIoU % (mean ± sd) | seeds | tr")
    for name, scales, _, _, *shown in table:
        wanted = [float(scale) for scale in scales.split()]
        known = name.removesuffix(" of single scale")
        (cost,) = [
            line["cost"]
            for line in rows_of("table1/table1")["lines"]
            if line["name"] == known and line["scales"] == wanted
        ]
        assert shown == [
            f"{cost['flops']:.2f}x",
            f"{cost['step_s']:.3f}",
            f"{cost['step']:.2f}x",
            f"{cost['memory']:.2f}x",
        ], f"{name} {scales}"


def test_costs_in_sentences_are_the_measured_ones() -> None:
    tiny = {line["name"]: line["cost"] for line in rows_of("table1/table1")["lines"]}
    found = re.search(
        r"takes ([\d.]+)x of the time for ([\d.]+)x of the operations: .*? \(([\d.]+)x without",
        prose("docs/results.md"),
    )
    assert found is not None
    method, fused = tiny["hierarchical"], tiny["hierarchical, fused at features"]
    costs = [method["step"], method["flops"], fused["step"]]
    assert list(found.groups()) == [f"{cost:.2f}" for cost in costs]

    found = re.search(
        r"at 512 x 1024 take ([\d.]+)x \(ResNet-50 .*? and ([\d.]+)x \(HRNet-W48 .*? ([\d.]+)x\)",
        prose("docs/results.md"),
    )
    assert found is not None
    names = ("train_r50", "train_w48_fp32", "train_w48")
    rows = [rows_of(f"benchmarks/{name}")[0] for name in names]
    times = [row["ours_s"] / row["baseline_s"] for row in rows]
    assert list(found.groups()) == [f"{time:.2f}" for time in times]

    # On CamVid, where the steps are those of the same small network.
    found = re.search(
        r"takes ([\d.]+)x of single scale's time \(hierarchical ([\d.]+)x\)",
        prose("docs/results.md"),
    )
    assert found is not None
    camvid = {line["name"]: line["cost"] for line in rows_of("camvid/table1")["lines"]}
    costs = [camvid[name]["step"] for name in ("explicit", "hierarchical")]
    assert list(found.groups()) == [f"{cost:.1f}" for cost in costs]


def test_explicit_attention_is_as_far_ahead_as_the_page_says() -> None:
    row = rows_of("table1/table1")["differences"]["hierarchical {0.5,1,2} - explicit {0.5,1,2}"]
    found = re.search(
        r"explicit attention \(([\d.]+) points less, within two", prose("docs/results.md")
    )
    assert found is not None and found[1] == f"{-100 * row['mean']:.1f}"
    assert abs(row["mean"]) < 2 * row["standard_error"]


def difference_named(text: str) -> str:
    """The key in the rows of a difference as the page calls it."""
    name, _, scales = text.partition(", {")
    name = name.replace("0.25x", "0.25").replace("the calibrated chain", "calibrated")
    name = name.replace("attached attention", "attached").replace("as trained", "hierarchical")
    name = name.replace("average of the same weights", "average")
    if not scales:
        return name
    listed = "{" + scales.replace(" ", "")
    return " - ".join(f"{side} {listed}" for side in name.split(" - "))


def test_differences_of_attached_and_calibrated_rows_are_the_committed_ones() -> None:
    """However many seeds there are: the heading and the text say how many."""
    committed = rows_of("table1_attached/table1")["differences"]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (seeds,) = re.findall(r"^\| difference, paired by seed \((\d+) seeds\)", page, re.M)
    (table,) = tables_of("docs/results.md", "| difference, paired by seed (")
    assert len(table) >= 8
    for name, gain, standard_error in table:
        row = committed[difference_named(name)]
        assert str(row["seeds"]) == seeds, name
        assert gain == f"{100 * row['mean']:+.2f}", name
        assert standard_error == f"{100 * row['standard_error']:.2f}", name


def test_the_attention_page_has_the_same_differences() -> None:
    committed = rows_of("table1_attached/table1")["differences"]
    (table,) = tables_of("docs/attention.md", "| test mIoU % | {1} | {0.5, 1} | {0.5, 1, 2} |")
    names = {"difference": "attached", "difference to averaging": "attached, calibrated"}
    for line, method in names.items():
        (shown,) = [row[2:] for row in table if row[0] == line]
        for scales, text in zip(("{0.5,1}", "{0.5,1,2}", "{0.25,0.5,1,2}"), shown, strict=True):
            row = committed[f"{method} {scales} - average {scales}"]
            assert text == f"{100 * row['mean']:+.2f} ± {100 * row['standard_error']:.2f}"


def test_the_steps_of_hmsa_benchmark_are_as_measured() -> None:
    (table,) = tables_of("docs/results.md", "| configuration | images of a step |")
    for row, name in zip(table, ("demo", "camvid", "r50", "hrnet"), strict=True):
        measured = rows_of(f"benchmarks/step_{name}")
        height, width = measured["crop"]
        assert row[1:] == [
            f"{measured['images_per_step']} of {height} x {width}",
            f"{measured['step_s']:.2f}",
            f"{measured['images_per_second']:.2f}",
            f"{measured['peak_memory_mib'] / 1024:.1f} GiB",
            f"{100 * measured['shares']['loss']:.0f} %",
        ], row[0]


def test_attention_on_a_drive_that_training_never_saw_is_as_measured() -> None:
    measured = rows_of("camvid_pretrained/attached_by_drive")
    (table,) = tables_of("docs/camvid.md", "| mIoU %, drive 0006R0 |")
    for row, name in zip(table, ("single scale, averaged", "attached"), strict=True):
        scores = [measured[name][",".join(f"{scale:g}" for scale in scales)] for scales in COLUMNS]
        assert row[1:] == [f"{100 * score:.1f}" for score in scores]


def test_trainings_on_other_pairs_of_scales_are_as_measured() -> None:
    measured = rows_of("tuning/pairs")
    (table,) = tables_of("docs/attention.md", "| val mIoU % | {0.5, 1} | {0.5, 1, 2} |")
    for name, *shown in table:
        key = name.replace("`", "").replace("the paper's {0.5, 1}", "the paper's pair")
        for text, scales in zip(shown, ("0.5,1", "0.5,1,2", "0.25,0.5,1,2"), strict=True):
            scores = [f"{100 * seed[scales]:.1f}" for seed in measured[key]]
            assert text == ", ".join(scores), name


def test_what_a_quarter_of_the_size_changes_is_as_measured() -> None:
    folders = {"the paper's {0.5, 1}": "table1_attached", "random ratios": "table1_ratios"}
    models = {"as trained": "hierarchical", "calibrated": "calibrated"}
    (table,) = tables_of("docs/attention.md", "| what adding 0.25x to {0.5, 1, 2} changes")
    for name, *shown in table:
        training, _, kind = name.rpartition(", ")
        rows = f"{folders[training]}/rows/{models[kind]}"
        for seed, text in enumerate(shown):
            scored = rows_of(f"{rows}-{seed}")["scored"]
            scores = {tuple(entry["scales"]): 100 * entry["miou"] for entry in scored}
            assert text == f"{scores[(0.25, 0.5, 1, 2)] - scores[(0.5, 1, 2)]:+.2f}", name


def test_four_lines_of_yaml_reach_what_is_said() -> None:
    measured = rows_of("own_data/four_lines")

    def score(kind: str, *scales: float) -> str:
        entry = next(entry for entry in measured[kind] if entry["scales"] == list(scales))
        return f"{100 * entry['miou']:.1f}"

    text = prose("docs/own_data.md")
    assert f"reached {score('as trained', 0.5, 1)} % mIoU on `val` at {{0.5, 1}}" in text
    assert f"after {measured['seconds'] / 60:.0f} minutes on two cores" in text
    assert f"raised that to {score('calibrated', 0.5, 1)}, and {{0.5, 1, 2}} from" in text
    changed = f"from {score('as trained', 0.5, 1, 2)} to {score('calibrated', 0.5, 1, 2)}"
    assert changed in text
