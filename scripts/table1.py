"""Table 1 of the paper in miniature: all ways to use several scales, with one recipe.

    python scripts/table1.py [--config configs/demo/table1.yaml] [--seeds 5] [--jobs 2]
                             [--models single hierarchical] [section.key=value ...]

Single scale, average and maximum, explicit attention, hierarchical attention as trained and
calibrated, and attention attached to a single-scale model. Draws the data of the default recipe,
trains every model with several seeds (a row that is there is kept), scores them on the test split
at the paper's lists of scales, measures what a training step of each costs beside single scale's,
and writes rows, table1.md, table1.json and two charts to --output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import read_scales
from hmsa.engine.command_line import at_least, parse_with_overrides
from hmsa.utils.files.writing import write_file
from scripts.tables.charts import cost_chart, gain_chart
from scripts.tables.costs import measure_costs
from scripts.tables.program import prepare, run_table, table_parser
from scripts.tables.runs import Run, Scoring, TableError, commit, perform_all
from scripts.tables.seed_statistics import mean_and_deviation, paired, percent_of_seeds

ONE, TWO, THREE, FOUR = "1", "0.5,1", "0.5,1,2", "0.25,0.5,1,2"

ATTACHED = ("attach", "--scales", *FOUR.split(","))
CALIBRATED = ("calibrate", "--scales", *FOUR.split(","))


class TrainedModel(NamedTuple):
    """A model of the table: how the recipe changes for it, how often it is trained, its scores.

    One with a `parent` is made of the network that the parent trained with the same seed, by the
    command of hmsa in `made_by`; without a command that network is scored once more.
    """

    overrides: tuple[str, ...]
    seeds: int
    scorings: tuple[Scoring, ...]
    parent: str | None = None
    made_by: tuple[str, ...] = ()


MODELS = {
    "single": TrainedModel(
        ("model.multiscale=single",),
        5,
        (Scoring((ONE, "0.5", "2", THREE, FOUR)), Scoring((THREE, FOUR), ("eval.combine=max",))),
    ),
    "explicit": TrainedModel(("model.multiscale=explicit",), 3, (Scoring((THREE,)),)),
    "hierarchical": TrainedModel(
        ("model.multiscale=hierarchical",), 5, (Scoring((THREE, FOUR, "0.5,1", ONE)),)
    ),
    "hierarchical_dual": TrainedModel(
        ("model.multiscale=hierarchical_dual",), 3, (Scoring((THREE, FOUR, "0.5,1")),)
    ),
    "fused at features": TrainedModel(
        ("model.multiscale=hierarchical", "model.fuse_at=features"), 3, (Scoring((THREE, FOUR)),)
    ),
    # A row of its own, since one that is published keeps its recipe.
    "single at two scales": TrainedModel((), 5, (Scoring((TWO,)),), parent="single"),
    "calibrated": TrainedModel(
        (), 5, (Scoring((THREE, FOUR, TWO)),), parent="hierarchical", made_by=CALIBRATED
    ),
    "attached": TrainedModel(
        (), 5, (Scoring((THREE, FOUR, TWO, ONE)),), parent="single", made_by=ATTACHED
    ),
    "attached calibrated": TrainedModel(
        (), 5, (Scoring((THREE, FOUR, TWO)),), parent="attached", made_by=CALIBRATED
    ),
}
CALIBRATED_LINE = "hierarchical, calibrated"
ATTACHED_LINE = "attached to single scale"
BOTH_LINE = "attached to single scale, calibrated"
# What a line of the table shows: its name, the model, the scales, how a single-scale model combines
# them.
LINES = (
    ("single scale", "single", ONE, "average"),
    ("average", "single", THREE, "average"),
    ("average", "single", FOUR, "average"),
    ("max", "single", THREE, "max"),
    ("max", "single", FOUR, "max"),
    ("explicit", "explicit", THREE, "average"),
    ("hierarchical", "hierarchical", THREE, "average"),
    ("hierarchical", "hierarchical", FOUR, "average"),
    ("hierarchical, both scales' features", "hierarchical_dual", THREE, "average"),
    ("hierarchical, both scales' features", "hierarchical_dual", FOUR, "average"),
    ("hierarchical, fused at features", "fused at features", THREE, "average"),
    ("hierarchical, fused at features", "fused at features", FOUR, "average"),
    ("average", "single at two scales", TWO, "average"),
    (CALIBRATED_LINE, "calibrated", TWO, "average"),
    (CALIBRATED_LINE, "calibrated", THREE, "average"),
    (CALIBRATED_LINE, "calibrated", FOUR, "average"),
    (ATTACHED_LINE, "attached", ONE, "average"),
    (ATTACHED_LINE, "attached", TWO, "average"),
    (ATTACHED_LINE, "attached", THREE, "average"),
    (ATTACHED_LINE, "attached", FOUR, "average"),
    (BOTH_LINE, "attached calibrated", TWO, "average"),
    (BOTH_LINE, "attached calibrated", THREE, "average"),
    (BOTH_LINE, "attached calibrated", FOUR, "average"),
)
# Differences that are worth a line, each of two lines (name, number of scales) of the table.
PAIRS = {
    "hierarchical {0.5,1,2} - average {0.5,1,2}": (("hierarchical", 3), ("average", 3)),
    "hierarchical {0.5,1,2} - single {1}": (("hierarchical", 3), ("single scale", 1)),
    "average {0.5,1,2} - single {1}": (("average", 3), ("single scale", 1)),
    "hierarchical {0.5,1,2} - explicit {0.5,1,2}": (("hierarchical", 3), ("explicit", 3)),
    "hierarchical {0.5,1,2} - both scales' features {0.5,1,2}": (
        ("hierarchical", 3),
        ("hierarchical, both scales' features", 3),
    ),
    "hierarchical {0.5,1,2} - fused at features {0.5,1,2}": (
        ("hierarchical", 3),
        ("hierarchical, fused at features", 3),
    ),
    "adding 0.25 to hierarchical": (("hierarchical", 4), ("hierarchical", 3)),
    "adding 0.25 to average": (("average", 4), ("average", 3)),
    "calibrated {0.5,1,2} - hierarchical {0.5,1,2}": ((CALIBRATED_LINE, 3), ("hierarchical", 3)),
    "calibrated {0.5,1,2} - average {0.5,1,2}": ((CALIBRATED_LINE, 3), ("average", 3)),
    "calibrated {0.25,0.5,1,2} - hierarchical {0.25,0.5,1,2}": (
        (CALIBRATED_LINE, 4),
        ("hierarchical", 4),
    ),
    "adding 0.25 to calibrated": ((CALIBRATED_LINE, 4), (CALIBRATED_LINE, 3)),
    "attached {0.5,1} - average {0.5,1}": ((ATTACHED_LINE, 2), ("average", 2)),
    "attached {0.5,1,2} - average {0.5,1,2}": ((ATTACHED_LINE, 3), ("average", 3)),
    "attached {0.25,0.5,1,2} - average {0.25,0.5,1,2}": ((ATTACHED_LINE, 4), ("average", 4)),
    "adding 0.25 to attached": ((ATTACHED_LINE, 4), (ATTACHED_LINE, 3)),
    "attached, calibrated {0.5,1,2} - attached {0.5,1,2}": ((BOTH_LINE, 3), (ATTACHED_LINE, 3)),
    "adding 0.25 to attached, calibrated": ((BOTH_LINE, 4), (BOTH_LINE, 3)),
    "attached, calibrated {0.5,1} - average {0.5,1}": ((BOTH_LINE, 2), ("average", 2)),
    "attached, calibrated {0.5,1,2} - average {0.5,1,2}": ((BOTH_LINE, 3), ("average", 3)),
    "attached, calibrated {0.25,0.5,1,2} - average {0.25,0.5,1,2}": (
        (BOTH_LINE, 4),
        ("average", 4),
    ),
}
# Classes whose things are a few pixels wide, of Cityscapes and of CamVid.
THIN = (
    *("pole", "traffic light", "traffic sign", "person", "rider", "motorcycle", "bicycle", "fence"),
    *("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; returns the exit status."""
    return run_table(make_table, parse(argv))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = table_parser(__doc__, name="table1")
    parser.add_argument(
        "--models", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="default: all"
    )
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        help="trainings of each model (default: 5 for single and hierarchical, 3 for the others)",
    )
    parser.add_argument(
        "--lists",
        nargs="+",
        metavar="SCALES",
        type=_list_of_scales,
        help="score these lists of scales alone, e.g. 1 0.5,1,2 (default: those of each model); "
        "scoring large images takes long",
    )
    parser.add_argument(
        "--no-flip",
        action="store_true",
        help="score without mirror images, whatever the recipe says; halves the time of scoring",
    )
    parser.add_argument(
        "--judge",
        metavar="SPLIT",
        help="split that judges calibrations, e.g. train, of which half then does (default: "
        "data.val_split)",
    )
    parser.add_argument(
        "--attach-epochs",
        metavar="N",
        type=at_least(1),
        help="attach as `hmsa attach` does today, for N epochs (default: as the first published "
        "rows were made, for a quarter of the recipe's)",
    )
    parser.add_argument(
        "--no-costs",
        action="store_true",
        help="do not measure steps; take the costs that are in --output, if any",
    )

    return parse_with_overrides(parser, argv)


def _list_of_scales(text: str) -> str:
    """An argparse type: scales with commas between them, as --compare of eval.py takes them."""
    return ",".join(f"{scale:g}" for scale in read_scales(text))


def make_table(options: argparse.Namespace) -> int:
    """Make what is missing of what was asked for, then write the table of all rows there are."""
    is_changed = options.lists or options.no_flip or options.judge or options.attach_epochs
    if is_changed and options.output is None:
        raise TableError(
            "--output: the published table keeps the way it is attached, calibrated and scored; "
            "name a folder for this other table"
        )
    drawing = prepare(options)
    asked = runs_of(options, drawing, options.models, options.seeds)
    rows = perform_all(asked, jobs=options.jobs)

    # Rows of other models and seeds that were made before belong to the table as well.
    for run in runs_of(options, drawing, list(MODELS), None):
        row = run.finished_row()
        if run not in asked and row is not None:
            rows.append(row)

    stored = options.output / "costs.json"
    costs = {}
    if not options.no_costs:
        # What begins with another model's network has no training of its own to measure.
        trained = [model for model in MODELS if MODELS[model].parent is None]
        present = [model for model in trained if any(row["method"] == model for row in rows)]
        overrides = {
            model: [*options.overrides, *MODELS[model].overrides]
            for model in dict.fromkeys(["single", *present])
        }
        costs = measure_costs(options.config, overrides)
        write_file(stored, json.dumps(costs, indent=1) + "\n")
    elif stored.is_file():
        try:
            costs = dict(json.loads(stored.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TableError(
                f"{stored}: is damaged; remove it, or measure again without --no-costs"
            ) from error

    summary = summarise(rows, costs)
    write_table(summary, options.output)
    print(markdown(summary), end="")
    return 0


def runs_of(
    options: argparse.Namespace, drawing: str, models: Sequence[str], seeds: int | None
) -> list[Run]:
    """The trainings of these models, seed by seed, so that an unfinished table is even.

    `drawing` says how the data was drawn; without `seeds`, each model has its own number of them.
    """
    counts = {model: seeds or MODELS[model].seeds for model in models}
    return [
        run_of_model(options, drawing, model, seed)
        for seed in range(max(counts.values()))
        for model in models
        if seed < counts[model]
    ]


def run_of_model(options: argparse.Namespace, drawing: str, model: str, seed: int) -> Run:
    """The training of a model, or what is made of its parent's."""
    trained = MODELS[model]
    parent = None
    overrides = (*options.overrides, *trained.overrides)
    if trained.parent is not None:
        parent = run_of_model(options, drawing, trained.parent, seed)
        overrides = parent.overrides

    made_by = trained.made_by
    if options.judge and made_by[:1] == ("calibrate",):
        made_by = (*made_by, "--judge", options.judge)
    if options.attach_epochs and made_by[:1] == ("attach",):
        made_by = (*made_by, f"optim.epochs={options.attach_epochs}")

    scorings = list(trained.scorings)
    if options.lists:
        scorings = [Scoring(tuple(options.lists))]
    if options.no_flip:
        scorings = [
            Scoring(scoring.lists, (*scoring.overrides, "eval.flip=false")) for scoring in scorings
        ]

    return Run(
        method=model,
        seed=seed,
        config=options.config,
        overrides=overrides,
        scorings=tuple(scorings),
        split=options.split,
        runs=options.runs,
        row=options.output / "rows" / f"{model.replace(' ', '_')}-{seed}.json",
        threads=options.threads,
        data_recipe=drawing,
        parent=parent,
        made_by=made_by,
    )


def scales_of(text: str) -> list[float]:
    """The numbers of a list of scales as eval.py takes it."""
    return [float(scale) for scale in text.split(",")]


def scored(row: Mapping[str, Any], scales: str, combine: str) -> dict[str, Any] | None:
    """The entry of a row at these scales."""
    for entry in row["scored"]:
        if entry["scales"] == scales_of(scales) and entry["combine"] == combine:
            return dict(entry)
    return None


def summarise(
    rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """All figures of the table as plain values."""
    lines: list[dict[str, Any]] = []
    for name, model, scales, combine in LINES:
        # With --lists the rows of a network may hold what is otherwise scored once more.
        networks = {model}
        parent = MODELS[model].parent
        if parent is not None and not MODELS[model].made_by:
            networks.add(parent)

        by_seed = {}
        for row in rows:
            entry = scored(row, scales, combine)
            if row["method"] in networks and entry is not None:
                by_seed[row["seed"]] = entry["miou"]
        if not by_seed:
            continue

        mean, deviation = mean_and_deviation(list(by_seed.values()))
        lines.append(
            {
                "name": name,
                "model": model,
                "scales": scales_of(scales),
                "combine": combine,
                "miou": mean,
                "deviation": deviation,
                "by_seed": by_seed,
                "cost": costs.get(model),
            }
        )

    by_line = {(line["name"], len(line["scales"])): line["by_seed"] for line in lines}
    differences = {
        name: paired(by_line[ours], by_line[other])
        for name, (ours, other) in PAIRS.items()
        if ours in by_line and other in by_line
    }
    return {
        "lines": lines,
        "differences": differences,
        "gains": gains(rows),
        "attention": attention(rows),
        "commit": commit(),
    }


def gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Class -> IoU of hierarchical {0.5,1,2} minus that of single {1}.

    The mean over the seeds that both have.
    """
    ours, single = _iou_by_seed(rows, "hierarchical", THREE), _iou_by_seed(rows, "single", ONE)
    found: dict[str, list[float]] = {}
    for seed in ours.keys() & single.keys():
        for name, iou in ours[seed].items():
            # A class that no image of the split holds has no IoU.
            other = single[seed].get(name)
            if iou is not None and other is not None:
                found.setdefault(name, []).append(iou - other)
    return {name: statistics.fmean(values) for name, values in found.items()}


def _iou_by_seed(
    rows: Sequence[Mapping[str, Any]], model: str, scales: str
) -> dict[int, dict[str, float | None]]:
    """Seed -> class -> IoU of a model."""
    entries = {
        row["seed"]: scored(row, scales, "average") for row in rows if row["method"] == model
    }
    return {
        seed: entry.get("per_class") or {} for seed, entry in entries.items() if entry is not None
    }


def attention(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure 3 as numbers: scale -> its mean share of the fused result.

    Once in thin classes and once in large ones, of hierarchical {0.5,1,2}.
    """
    shares = [
        row["attention_share"]
        for row in rows
        if row["method"] == "hierarchical" and row["attention_share"]
    ]
    if not shares:
        return {}

    found = {}
    for scale in shares[0]:
        values: dict[str, list[float]] = {"thin": [], "large": []}
        for share in shares:
            for name, value in share[scale].items():
                width = "large"
                if name in THIN:
                    width = "thin"
                if value is not None:
                    values[width].append(value)
        found[scale] = {width: statistics.fmean(given) for width, given in values.items() if given}
    return found


def write_table(summary: Mapping[str, Any], output: Path) -> None:
    """Write table1.json, table1.md, and the charts that there are figures for."""
    write_file(output / "table1.json", json.dumps(summary, indent=1) + "\n")
    write_file(output / "table1.md", markdown(summary))
    if any(line["cost"] is not None for line in summary["lines"]):
        write_file(output / "cost.svg", cost_chart(summary["lines"]))
    if summary["gains"]:
        write_file(output / "gains.svg", gain_chart(summary["gains"], THIN))


def markdown(summary: Mapping[str, Any]) -> str:
    """The table as the paper lays it out, with the paired differences and figure 3 below it."""
    lines = [
        "| method | scales | mIoU % (mean ± sd) | seeds "
        "| training FLOPs | step s | step | peak memory |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line_markdown, summary["lines"]),
        "",
        "| difference, paired by seed | points | standard error | seeds |",
        "|---|---|---|---|",
    ]
    for name, found in summary["differences"].items():
        if found is not None:
            error = "-"
            if found["standard_error"] is not None:
                error = f"{100 * found['standard_error']:.2f}"
            lines.append(f"| {name} | {100 * found['mean']:+.2f} | {error} | {found['seeds']} |")

    if summary["attention"]:
        lines += [
            "",
            "| share of the fused result | thin classes | large classes |",
            "|---|---|---|",
        ]
        for scale, share in summary["attention"].items():
            cells = [
                f"{share[width]:.2f}" if width in share else "-" for width in ("thin", "large")
            ]
            lines.append(f"| {scale}x | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _line_markdown(line: Mapping[str, Any]) -> str:
    """One line of the table."""
    name = line["name"]
    if name in ("average", "max"):
        name += " of single scale"
    scales = " ".join(f"{scale:g}" for scale in line["scales"])

    paid, cost = "- | - | - | -", line["cost"]
    if cost is not None:
        paid = (
            f"{cost['flops']:.2f}x | {cost['step_s']:.3f} "
            f"| {cost['step']:.2f}x | {cost['memory']:.2f}x"
        )
    score = percent_of_seeds(line["miou"], line["deviation"])
    return f"| {name} | {scales} | {score} | {len(line['by_seed'])} | {paid} |"


if __name__ == "__main__":
    sys.exit(main())
