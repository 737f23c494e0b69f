"""Table 2 of the paper in miniature: baseline, + attention, + auto-labels, + both, with one recipe and equal steps.

    python scripts/table2.py [--config configs/demo/table2.yaml] [--seeds 3] [--jobs 2] [section.key=value ...]

All four train on the fine images and the same coarsely labelled ones at 50/50: the first two with the coarse labels people drew, the last two with
the labels that their seed's teacher (the second row's network) gave the same images. Rows without attention are scored with the average of three
scales. Restartable: what is there is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hmsa.engine.command_line import at_least, parse_with_overrides
from scripts.table1 import mean_and_deviation, paired
from scripts.tables.runs import (
    Run,
    Scoring,
    best_checkpoint,
    commit,
    door,
    perform_all,
    prepare,
    run_table,
    table_parser,
)

SCORED = Scoring(("0.5,1,2",))
ROWS = {  # name: multiscale, labels of the coarse images
    "baseline": ("single", "coarse"),
    "attention": ("hierarchical", "coarse"),
    "auto-labels": ("single", "auto"),
    "both": ("hierarchical", "auto"),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = table_parser(__doc__, name="table2")
    parser.add_argument(
        "--seeds", type=at_least(1), default=3, help="trainings of each row (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=_share,
        default=0.9,
        help="of the teacher's probability (default: %(default)s)",
    )
    return parse_with_overrides(parser, argv)


def _share(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")


def run_of(
    options: argparse.Namespace,
    name: str,
    seed: int,
    drawn: str,
    *,
    labels_root: Path | None = None,
    made_with: str = "",
) -> Run:
    """The training of one row and seed."""
    multiscale, labels = ROWS[name]
    overrides = [
        *options.overrides,
        f"model.multiscale={multiscale}",
        "data.extra.split=train_extra",
        f"data.extra.labels={labels}",
        "data.extra.probability=0.5",
    ]
    if labels_root is not None:
        overrides.append(f"data.extra.root={labels_root}")
    return Run(
        name,
        seed,
        options.config,
        tuple(overrides),
        (SCORED,),
        options.split,
        options.runs,
        options.output / "rows" / f"{name}-{seed}.json",
        threads=options.threads,
        data_recipe=drawn + made_with,
    )


def autolabel(options: argparse.Namespace, teacher: Run) -> tuple[Path, str]:
    """The tree of labels that a teacher gives the coarse images, and the settings it was made with; what is done is kept."""
    checkpoint = best_checkpoint(teacher)
    output = options.runs / f"labels-{checkpoint.parent.parent.name}-{options.threshold:g}"
    door(
        "autolabel.py",
        "--checkpoint",
        str(checkpoint),
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
        threads=options.threads,
        log=options.runs / "autolabel.log",
    )
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    print(
        f"teacher of seed {teacher.seed}: {100 * manifest['kept_share']:.1f} % of the pixels kept",
        flush=True,
    )
    return output, str(manifest["kept_share"])


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of each row, and what it gains over the baseline, paired by seed."""
    by_row = {
        name: {row["seed"]: row["scored"][0]["miou"] for row in rows if row["method"] == name}
        for name in ROWS
    }
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


def markdown(summary: dict[str, Any]) -> str:
    """The table as the paper lays it out."""
    lines = [
        "| method | attention | auto-labels | mIoU % (mean ± sd) | over baseline (standard error) | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for line in summary["lines"]:
        multiscale, labels = ROWS[line["name"]]
        spread = "" if line["deviation"] is None else f" ± {100 * line['deviation']:.1f}"
        error = (
            ""
            if line["gain"]["standard_error"] is None
            else f" ({100 * line['gain']['standard_error']:.2f})"
        )
        gain = "-" if line["name"] == "baseline" else f"{100 * line['gain']['mean']:+.2f}{error}"
        lines.append(
            f"| {line['name']} | {'yes' if multiscale == 'hierarchical' else ''} | {'yes' if labels == 'auto' else ''} "
            f"| {100 * line['miou']:.1f}{spread} | {gain} | {len(line['by_seed'])} |"
        )
    return "\n".join(lines) + "\n"


def main(options: argparse.Namespace) -> int:
    """Train the first two rows, label with the second's networks, train the last two, write the table."""
    drawn = prepare(options)
    seeds = range(options.seeds)
    first = [
        run_of(options, name, seed, drawn) for seed in seeds for name in ("attention", "baseline")
    ]
    rows = perform_all(first, jobs=options.jobs)
    labelled = {
        seed: autolabel(options, run_of(options, "attention", seed, drawn)) for seed in seeds
    }
    second = [
        run_of(
            options, name, seed, drawn, labels_root=labelled[seed][0], made_with=labelled[seed][1]
        )
        for seed in seeds
        for name in ("both", "auto-labels")
    ]
    rows += perform_all(second, jobs=options.jobs)
    summary = summarise(rows)
    (options.output / "table2.json").write_text(
        json.dumps(summary, indent=1) + "\n", encoding="utf-8"
    )
    (options.output / "table2.md").write_text(markdown(summary), encoding="utf-8")
    print(markdown(summary), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_table(main, parse()))
