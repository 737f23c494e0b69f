"""Check a GPU, its driver and torch against what hmsa needs, in at most ten minutes.

    python scripts/gpu_check.py [--device cuda:0] [--json FILE] [--only environment equality ...]

Prints a line for everything that was looked at; the exit status is 1 where anything falls short.
--rehearse runs the same on the CPU with small networks: it shows that the script runs, and nothing
of a GPU. `pytest -m gpu` are the tests that need a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import run_command
from hmsa.utils.runtime import prepare_runtime
from hmsa.utils.words import UserError
from scripts.gpu_checks.environment import check_environment
from scripts.gpu_checks.equality import check_equality
from scripts.gpu_checks.findings import Check, Finding, GpuSetup, each_of
from scripts.gpu_checks.inference import check_inference
from scripts.gpu_checks.runs import check_runs, draw_scenes
from scripts.gpu_checks.sharing import check_sharing
from scripts.gpu_checks.steps import check_steps
from scripts.measuring.harness import device_name, require_place_for_rows, write_rows

CHECKS: dict[str, Check] = {
    "environment": check_environment,
    "equality": check_equality,
    "steps": check_steps,
    "runs": check_runs,
    "inference": check_inference,
    "sharing": check_sharing,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Check what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines there")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CHECKS), default=list(CHECKS), help="default: all"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run on the CPU, with small networks"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: check_gpu(arguments))


def check_gpu(arguments: argparse.Namespace) -> int:
    """Run the checks one after the other, print and write what they find.

    Raises:
        UserError: there is no such device, or the file cannot be written.
    """
    device = checked_device(arguments)
    if arguments.json is not None:
        require_place_for_rows(arguments.json)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        setup = GpuSetup(device=device, folder=Path(folder), rehearsal=arguments.rehearse)
        if {"steps", "runs", "inference"} & set(arguments.only):
            draw_scenes(setup)
        for name in arguments.only:
            # A check may have trained with TF32, with which the next one's numbers would differ.
            prepare_runtime(tf32=False)
            began = time.monotonic()
            for finding in each_of(setup, CHECKS[name]):
                print(line_of(name, finding), flush=True)
                rows.append({"check": name, **finding._asdict()})
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)

    failed = [row for row in rows if not row["passed"]]
    if arguments.json is not None:
        versions = {"torch": str(torch.__version__), "device": device_name(str(device))}
        write_rows(arguments.json, [{**versions, **row} for row in rows])
    print(
        f"{len(rows) - len(failed)} of {len(rows)} as they should be on {device_name(str(device))}"
    )
    return 1 if failed else 0


def checked_device(arguments: argparse.Namespace) -> torch.device:
    """The device to check.

    Raises:
        UserError: torch has no such device; never is the CPU taken in its place.
    """
    if arguments.rehearse:
        return torch.device("cpu")
    try:
        device = torch.device(arguments.device)
        # Whole trainings are among the checks, and take the first GPU that they see.
        if device.index not in (None, 0):
            raise UserError(
                f"--device {device}: checks take the first GPU that torch sees; leave it out and "
                f"set CUDA_VISIBLE_DEVICES={device.index}"
            )
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {arguments.device}: cannot be used ({reason}); name a GPU that nvidia-smi "
            "lists and install a torch built for its driver, or try the script with --rehearse"
        ) from error
    if device.type != "cuda":
        raise UserError(f"--device {arguments.device}: is no GPU; name cuda:0, or use --rehearse")
    return torch.device("cuda", 0)


def line_of(name: str, finding: Finding) -> str:
    """A finding as a line to read."""
    mark = "ok    " if finding.passed else "FAILED"
    wanted = f" ({finding.wanted})" if finding.wanted else ""
    return f"{mark} {name}: {finding.what}: {finding.found}{wanted}"


if __name__ == "__main__":
    sys.exit(main())
