"""Table 1 of the paper in miniature: single scale, average and maximum, explicit attention, hierarchical attention, with one recipe.

    python scripts/table1.py [--config configs/demo/table1.yaml] [--seeds 5] [--models single hierarchical] [--jobs 2] [section.key=value ...]

Draws the data of the default recipe, trains every model with several seeds (restartable: a row that is there is kept), scores them on
the test split at the paper's lists of scales, measures what a training step of each costs beside single scale's, and writes rows, table1.md,
table1.json and two charts to --output.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hmsa.engine.command_line import at_least, parse_with_overrides
from hmsa.utils.config import load_config
from scripts.tables.charts import cost_chart, gain_chart
from scripts.tables.runs import (
    Run,
    Scoring,
    commit,
    perform,
    perform_all,
    prepare,
    run_table,
    table_parser,
)

THREE, FOUR = "0.5,1,2", "0.25,0.5,1,2"
MODELS: dict[str, tuple[tuple[str, ...], tuple[Scoring, ...]]] = {
    "single": (
        ("model.multiscale=single",),
        (Scoring(("1", "0.5", "2", THREE, FOUR)), Scoring((THREE, FOUR), ("eval.combine=max",))),
    ),
    "explicit": (("model.multiscale=explicit",), (Scoring((THREE,)),)),
    "hierarchical": (("model.multiscale=hierarchical",), (Scoring((THREE, FOUR, "0.5,1", "1")),)),
    "hierarchical_dual": (
        ("model.multiscale=hierarchical_dual",),
        (Scoring((THREE, FOUR, "0.5,1")),),
    ),
    "fused at features": (
        ("model.multiscale=hierarchical", "model.fuse_at=features"),
        (Scoring((THREE, FOUR)),),
    ),
}
# What a line of the table shows: its name, the model, the scales, and how a single-scale model combines them.
LINES = (
    ("single scale", "single", (1.0,), "average"),
    ("average", "single", (0.5, 1.0, 2.0), "average"),
    ("average", "single", (0.25, 0.5, 1.0, 2.0), "average"),
    ("max", "single", (0.5, 1.0, 2.0), "max"),
    ("max", "single", (0.25, 0.5, 1.0, 2.0), "max"),
    ("explicit", "explicit", (0.5, 1.0, 2.0), "average"),
    ("hierarchical", "hierarchical", (0.5, 1.0, 2.0), "average"),
    ("hierarchical", "hierarchical", (0.25, 0.5, 1.0, 2.0), "average"),
    ("hierarchical, both scales' features", "hierarchical_dual", (0.5, 1.0, 2.0), "average"),
    ("hierarchical, both scales' features", "hierarchical_dual", (0.25, 0.5, 1.0, 2.0), "average"),
    ("hierarchical, fused at features", "fused at features", (0.5, 1.0, 2.0), "average"),
    ("hierarchical, fused at features", "fused at features", (0.25, 0.5, 1.0, 2.0), "average"),
)
SEEDS = {
    "single": 5,
    "hierarchical": 5,
    "explicit": 3,
    "hierarchical_dual": 3,
    "fused at features": 3,
}
THIN = (
    "pole",
    "traffic light",
    "traffic sign",
    "person",
    "rider",
    "motorcycle",
    "bicycle",
    "fence",
    "Pole",
    "SignSymbol",
    "Fence",
    "Pedestrian",
    "Bicyclist",
)


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
        "--no-costs",
        action="store_true",
        help="do not measure steps; take the costs that are in --output, if any",
    )
    return parse_with_overrides(parser, argv)


def runs_of(options: argparse.Namespace, drawn: str) -> list[Run]:
    """Every training of the table, seed by seed, so that an unfinished table is even; `drawn` tells how its data was drawn."""
    found = []
    for seed in range(max(SEEDS.values()) if options.seeds is None else options.seeds):
        for model in options.models:
            if seed < (SEEDS[model] if options.seeds is None else options.seeds):
                overrides, scorings = MODELS[model]
                row = options.output / "rows" / f"{model.replace(' ', '_')}-{seed}.json"
                found.append(
                    Run(
                        model,
                        seed,
                        options.config,
                        (*options.overrides, *overrides),
                        scorings,
                        options.split,
                        options.runs,
                        row,
                        threads=options.threads,
                        data_recipe=drawn,
                    )
                )
    return found


def scored(row: dict[str, Any], scales: Sequence[float], combine: str) -> dict[str, Any] | None:
    """The entry of a row at these scales."""
    return next(
        (
            entry
            for entry in row["scored"]
            if entry["scales"] == list(scales) and entry["combine"] == combine
        ),
        None,
    )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(ours: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """The difference over the seeds that both have: mean, standard error, number."""
    seeds = sorted(ours.keys() & other.keys())
    if not seeds:
        return None
    differences = [ours[seed] - other[seed] for seed in seeds]
    mean, deviation = mean_and_deviation(differences)
    return {
        "mean": mean,
        "standard_error": None if deviation is None else deviation / math.sqrt(len(seeds)),
        "seeds": len(seeds),
    }


def summarise(rows: Sequence[dict[str, Any]], costs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """All figures of the table as plain values."""
    lines: list[dict[str, Any]] = []
    for name, model, scales, combine in LINES:
        by_seed = {
            row["seed"]: entry["miou"]
            for row in rows
            if row["method"] == model and (entry := scored(row, scales, combine)) is not None
        }
        if by_seed:
            mean, deviation = mean_and_deviation(list(by_seed.values()))
            lines.append(
                {
                    "name": name,
                    "model": model,
                    "scales": list(scales),
                    "combine": combine,
                    "miou": mean,
                    "deviation": deviation,
                    "by_seed": by_seed,
                    "cost": costs.get(model),
                }
            )
    by_key: dict[tuple[str, int], dict[int, float]] = {
        (line["name"], len(line["scales"])): line["by_seed"] for line in lines
    }
    pairs = {
        "hierarchical {0.5,1,2} - average {0.5,1,2}": (("hierarchical", 3), ("average", 3)),
        "hierarchical {0.5,1,2} - single {1}": (("hierarchical", 3), ("single scale", 1)),
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
    }
    differences = {
        name: paired(by_key[ours], by_key[other])
        for name, (ours, other) in pairs.items()
        if ours in by_key and other in by_key
    }
    return {
        "lines": lines,
        "differences": differences,
        "gains": gains(rows),
        "attention": attention(rows),
        "commit": commit(),
    }


def gains(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Class -> IoU of hierarchical {0.5,1,2} minus that of single {1}, mean over the seeds that both have."""
    ours = {
        row["seed"]: scored(row, (0.5, 1.0, 2.0), "average")
        for row in rows
        if row["method"] == "hierarchical"
    }
    single = {
        row["seed"]: scored(row, (1.0,), "average") for row in rows if row["method"] == "single"
    }
    found: dict[str, list[float]] = {}
    for seed in ours.keys() & single.keys():
        a, b = (
            (ours[seed] or {}).get("per_class") or {},
            (single[seed] or {}).get("per_class") or {},
        )
        for name in a:
            if a[name] is not None and b.get(name) is not None:
                found.setdefault(name, []).append(a[name] - b[name])
    return {name: statistics.fmean(values) for name, values in found.items()}


def attention(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure 3 as numbers: scale -> its mean share of the fused result in thin classes and in large ones (hierarchical, {0.5,1,2})."""
    shares = [
        row["attention_share"]
        for row in rows
        if row["method"] == "hierarchical" and row["attention_share"]
    ]
    found: dict[str, dict[str, float]] = {}
    for scale in shares[0] if shares else ():
        thin = [
            share[scale][name]
            for share in shares
            for name in share[scale]
            if name in THIN and share[scale][name] is not None
        ]
        large = [
            share[scale][name]
            for share in shares
            for name in share[scale]
            if name not in THIN and share[scale][name] is not None
        ]
        found[scale] = {"thin": statistics.fmean(thin), "large": statistics.fmean(large)}
    return found


def markdown(summary: dict[str, Any]) -> str:
    """The table as the paper lays it out, with the paired differences and figure 3's numbers below it."""
    lines = [
        "| method | scales | mIoU % (mean ± sd) | seeds | training FLOPs | step s | step | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in summary["lines"]:
        cost = line["cost"]
        spread = "" if line["deviation"] is None else f" ± {100 * line['deviation']:.1f}"
        paid = (
            "- | - | - | -"
            if cost is None
            else f"{cost['flops']:.2f}x | {cost['step_s']:.3f} | {cost['step']:.2f}x | {cost['memory']:.2f}x"
        )
        name = (
            line["name"]
            if len(line["scales"]) == 1 or line["model"] != "single"
            else f"{line['name']} of single scale"
        )
        lines.append(
            f"| {name} | {' '.join(f'{scale:g}' for scale in line['scales'])} | {100 * line['miou']:.1f}{spread} | {len(line['by_seed'])} "
            f"| {paid} |"
        )
    lines += [
        "",
        "| difference, paired by seed | points | standard error | seeds |",
        "|---|---|---|---|",
    ]
    for name, found in summary["differences"].items():
        if found is not None:
            error = (
                "-" if found["standard_error"] is None else f"{100 * found['standard_error']:.2f}"
            )
            lines.append(f"| {name} | {100 * found['mean']:+.2f} | {error} | {found['seeds']} |")
    if summary["attention"]:
        lines += [
            "",
            "| share of the fused result | thin classes | large classes |",
            "|---|---|---|",
        ]
        lines += [
            f"| {scale}x | {share['thin']:.2f} | {share['large']:.2f} |"
            for scale, share in summary["attention"].items()
        ]
    return "\n".join(lines) + "\n"


def measure_costs(
    options: argparse.Namespace, models: Sequence[str], *, rounds: int = 7
) -> dict[str, dict[str, float]]:
    """Model -> FLOPs, seconds and peak memory of a training step relative to single scale's: the same crops, alternately, in this process."""
    from hmsa.utils.training.cost import count_flops
    from scripts.benchmarks.harness import peak_extra_mib, time_alternately

    chosen = list(dict.fromkeys(["single", *models]))
    arguments: dict[str, dict[str, Any]] = {
        model: {"config": str(options.config), "overrides": [*options.overrides, *MODELS[model][0]]}
        for model in chosen
    }
    steps: list[Callable[[], Any]] = [training_step(**arguments[model]) for model in chosen]
    seconds = time_alternately(tuple(steps), device="cpu", rounds=rounds, warm_up=2)
    operations = [count_flops(step) for step in steps]
    del steps
    memory = [peak_extra_mib(training_step, arguments=arguments[model]) for model in chosen]
    return {
        model: {
            "flops": operations[number] / operations[0],
            "step_s": seconds[number],
            "step": seconds[number] / seconds[0],
            "memory_mib": memory[number],
            "memory": memory[number] / memory[0],
        }
        for number, model in enumerate(chosen)
    }


def training_step(*, config: str, overrides: list[str]) -> Callable[[], Any]:
    """Forward, loss and backward of one batch of noise, as train.py does them."""
    import torch

    from hmsa.engine import build as assemble
    from hmsa.utils.runtime import autocast_dtype

    settings = load_config(Path(config), overrides)
    files = assemble.split_files(settings, settings.data.train_split)
    model = assemble.place(
        assemble.model_from(settings, num_classes=files.spec.num_classes, trunk_weights=False),
        settings,
        torch.device("cpu"),
    )
    criterion, half = (
        assemble.criterion(settings, files),
        autocast_dtype(settings.runtime.precision),
    )
    generator = torch.Generator().manual_seed(0)
    size = (settings.data.batch_size, *settings.data.crop)
    image = torch.randn(size[0], 3, *size[1:], generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    label = torch.randint(0, files.spec.num_classes, size, generator=generator, dtype=torch.uint8)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            prediction = model(
                image, keep_scales=criterion.needs_scales, lazy=assemble.lazily(settings)
            )
        torch.stack(
            list(criterion(prediction, label, valid_pixels=label.numel(), parts=1).values())
        ).sum().backward()

    return step


def main(options: argparse.Namespace) -> int:
    """Make what is missing of what was asked for, then write the table of all rows that are there."""
    drawn = prepare(options)
    asked = runs_of(options, drawn)
    rows = perform_all(asked, jobs=options.jobs)
    everything = runs_of(
        argparse.Namespace(**{**vars(options), "models": list(MODELS), "seeds": None}), drawn
    )
    rows += [perform(run) for run in everything if run not in asked and run.is_done()]
    stored = options.output / "costs.json"
    if not options.no_costs:
        present = [model for model in MODELS if any(row["method"] == model for row in rows)]
        stored.write_text(
            json.dumps(measure_costs(options, present), indent=1) + "\n", encoding="utf-8"
        )
    costs = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    summary = summarise(rows, costs)
    (options.output / "table1.json").write_text(
        json.dumps(summary, indent=1) + "\n", encoding="utf-8"
    )
    (options.output / "table1.md").write_text(markdown(summary), encoding="utf-8")
    if any(line["cost"] is not None for line in summary["lines"]):
        (options.output / "cost.svg").write_text(cost_chart(summary["lines"]), encoding="utf-8")
    if summary["gains"]:
        (options.output / "gains.svg").write_text(
            gain_chart(summary["gains"], THIN), encoding="utf-8"
        )
    print(markdown(summary), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_table(main, parse()))
