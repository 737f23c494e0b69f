"""Table 2 of the paper in miniature: baseline, + attention, + auto-labels, + both.

    python scripts/table2.py [--config configs/demo/table2.yaml] [--seeds 3] [--jobs 2]
                             [section.key=value ...]

One recipe and equal steps. All four train on the fine images and the same coarsely labelled ones at
50/50: the first two with the coarse labels people drew, the last two with the labels that their
seed's teacher (the second row's network) gave the same images. Rows without attention are scored
with the average of three scales. What is there is kept, so that it can be stopped at any time.

With --attach-epochs the rows with attention are not trained together with it: each is the network
of the row with the same labels, frozen, with a head of `hmsa attach`. That halves the trainings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import at_least, parse_with_overrides, positive_share
from hmsa.utils.files.writing import write_file
from scripts.tables.program import prepare, run_table, table_parser
from scripts.tables.runs import Run, Scoring, TableError, commit, perform_all, run_program
from scripts.tables.seed_statistics import mean_and_deviation, paired, percent_of_seeds

SCORED = Scoring(("0.5,1,2",))


class TableRow(NamedTuple):
    """What tells a row from the others."""

    multiscale: str
    labels: str  # of the coarse images: drawn by people (coarse), or by the teacher (auto)


ROWS = {
    "baseline": TableRow("single", "coarse"),
    "attention": TableRow("hierarchical", "coarse"),
    "auto-labels": TableRow("single", "auto"),
    "both": TableRow("hierarchical", "auto"),
}


class TeacherLabels(NamedTuple):
    """Labels that a teacher gave the coarse images."""

    root: Path
    kept_share: float


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; returns the exit status."""
    return run_table(make_table, parse(argv))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = table_parser(__doc__, name="table2")
    parser.add_argument(
        "--seeds", type=at_least(1), default=3, help="trainings of each row (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=positive_share(one_included=True),
        default=0.9,
        help="of the teacher's probability (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-share",
        type=positive_share(one_included=True),
        help="lower a class's threshold until this share of its pixels is kept (default: never)",
    )
    parser.add_argument(
        "--attach-epochs",
        metavar="N",
        type=at_least(1),
        help="attach attention to the networks without it, for N epochs (default: train both "
        "together)",
    )

    return parse_with_overrides(parser, argv)


def make_table(options: argparse.Namespace) -> int:
    """Train the first two rows, label with the second's networks, train the others, write it."""
    if options.attach_epochs and options.output is None:
        raise TableError(
            "--output: the published table trains attention and network together; name a folder "
            "for this other table"
        )
    drawing = prepare(options)
    seeds = range(options.seeds)
    first = [
        run_of(options, name, seed, drawing) for seed in seeds for name in ("attention", "baseline")
    ]
    rows = perform_all(first, jobs=options.jobs)

    # The students of a seed learn from the teacher of the same seed.
    second = []
    for seed in seeds:
        labels = label_coarse_images(options, run_of(options, "attention", seed, drawing))
        second += [run_of(options, name, seed, drawing, labels) for name in ("both", "auto-labels")]
    rows += perform_all(second, jobs=options.jobs)

    summary = summarise(rows)
    write_file(options.output / "table2.json", json.dumps(summary, indent=1) + "\n")
    write_file(options.output / "table2.md", markdown(summary))
    print(markdown(summary), end="")
    return 0


def run_of(
    options: argparse.Namespace,
    name: str,
    seed: int,
    drawing: str,
    labels: TeacherLabels | None = None,
) -> Run:
    """The training of one row and seed."""
    row = ROWS[name]
    overrides = [
        *options.overrides,
        f"model.multiscale={row.multiscale}",
        "data.extra.split=train_extra",
        f"data.extra.labels={row.labels}",
        "data.extra.probability=0.5",
    ]

    # Where the labels lie is not part of a row's recipe, but how many pixels were kept is: labels
    # of another teacher or threshold keep other ones.
    data_recipe = drawing
    if labels is not None:
        overrides.append(f"data.extra.root={labels.root}")
        data_recipe += str(labels.kept_share)

    # An attached head takes its recipe from the network that it is attached to.
    parent = None
    made_by: tuple[str, ...] = ()
    if options.attach_epochs and row.multiscale == "hierarchical":
        without = {"coarse": "baseline", "auto": "auto-labels"}[row.labels]
        parent = run_of(options, without, seed, drawing, labels)
        overrides = list(parent.overrides)
        made_by = ("attach", "--scales", *SCORED.lists[0].split(","))
        made_by += (f"optim.epochs={options.attach_epochs}",)

    return Run(
        method=name,
        seed=seed,
        config=options.config,
        overrides=tuple(overrides),
        scorings=(SCORED,),
        split=options.split,
        runs=options.runs,
        row=options.output / "rows" / f"{name}-{seed}.json",
        threads=options.threads,
        data_recipe=data_recipe,
        parent=parent,
        made_by=made_by,
    )


def label_coarse_images(options: argparse.Namespace, teacher: Run) -> TeacherLabels:
    """The labels that a teacher gives the coarse images; those that are there are kept."""
    output = options.runs / f"labels-{teacher.folder.name}-{options.threshold:g}"
    kept = []
    if options.keep_share is not None:
        output = output.with_name(f"{output.name}-keep{options.keep_share:g}")
        kept.append(f"autolabel.keep_share={options.keep_share:g}")

    run_program(
        "autolabel.py",
        "--checkpoint",
        str(teacher.best_checkpoint),
        "--split",
        "train_extra",
        "--scales",
        "0.5",
        "1",
        "2",
        "--threshold",
        f"{options.threshold:g}",
        "--output",
        str(output),
        f"runtime.threads={options.threads}",
        *kept,
        threads=options.threads,
        log=options.runs / "autolabel.log",
    )

    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    labels = TeacherLabels(output, manifest["kept_share"])
    print(
        f"teacher of seed {teacher.seed}: {100 * labels.kept_share:.1f} % of the pixels kept",
        flush=True,
    )
    return labels


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of each row, and what it gains over the baseline, paired by seed."""
    by_row = {
        name: {row["seed"]: row["scored"][0]["miou"] for row in rows if row["method"] == name}
        for name in ROWS
    }

    # Gains are paired: a row and the baseline of one seed share the order of their images.
    lines = []
    for name, by_seed in by_row.items():
        mean, deviation = mean_and_deviation(list(by_seed.values()))
        lines.append(
            {
                "name": name,
                "miou": mean,
                "deviation": deviation,
                "by_seed": by_seed,
                "gain": paired(by_seed, by_row["baseline"]),
            }
        )
    return {"lines": lines, "commit": commit()}


def markdown(summary: Mapping[str, Any]) -> str:
    """The table as the paper lays it out."""
    lines = [
        "| method | attention | auto-labels | mIoU % (mean ± sd) "
        "| over baseline (standard error) | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for line in summary["lines"]:
        attention, automatic, gain = "", "", "-"
        if ROWS[line["name"]].multiscale == "hierarchical":
            attention = "yes"
        if ROWS[line["name"]].labels == "auto":
            automatic = "yes"

        if line["name"] != "baseline":
            gain = f"{100 * line['gain']['mean']:+.2f}"
            if line["gain"]["standard_error"] is not None:
                gain += f" ({100 * line['gain']['standard_error']:.2f})"

        score = percent_of_seeds(line["miou"], line["deviation"])
        seeds = len(line["by_seed"])
        lines.append(f"| {line['name']} | {attention} | {automatic} | {score} | {gain} | {seeds} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
