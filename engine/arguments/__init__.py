"""The command lines of `hmsa train`, `hmsa eval` and the other commands.

Nothing here imports torch at the top, so that `--help`, a mistyped option and a mistake in the
configuration are answered at once. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from .inference import (
    autolabel_command,
    eval_command,
    parse_autolabel,
    parse_eval,
    parse_predict,
    predict_command,
)
from .options import (
    COMBINE,
    OVER,
    SAVED_BY_DEFAULT,
    ScalesAction,
    read_refine,
    read_scale,
    read_scales,
)
from .tools import (
    benchmark_command,
    check_command,
    compare_command,
    convert_command,
    export_command,
    panel_command,
    parse_benchmark,
    parse_check,
    parse_compare,
    parse_convert,
    parse_export,
    parse_panel,
)
from .training import (
    attach_command,
    calibrate_command,
    init_command,
    parse_attach,
    parse_calibrate,
    parse_init,
    parse_train,
    train_command,
)

__all__ = [
    "COMBINE",
    "COMMANDS",
    "OVER",
    "SAVED_BY_DEFAULT",
    "ScalesAction",
    "attach_command",
    "autolabel_command",
    "benchmark_command",
    "calibrate_command",
    "check_command",
    "compare_command",
    "convert_command",
    "eval_command",
    "export_command",
    "hmsa_command",
    "init_command",
    "panel_command",
    "parse_attach",
    "parse_autolabel",
    "parse_benchmark",
    "parse_calibrate",
    "parse_check",
    "parse_compare",
    "parse_convert",
    "parse_eval",
    "parse_export",
    "parse_init",
    "parse_panel",
    "parse_predict",
    "parse_train",
    "predict_command",
    "read_refine",
    "read_scale",
    "read_scales",
    "train_command",
]

# The commands by name, each with one phrase for the usage of `hmsa`.
COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "init": (init_command, "look at a folder of images and masks, write a configuration for it"),
    "train": (train_command, "train a network as a YAML configuration says"),
    "eval": (eval_command, "score a checkpoint, hand a split in, or predict any images"),
    "predict": (predict_command, "predict images and videos with any model"),
    "autolabel": (autolabel_command, "label images with a trained network"),
    "calibrate": (calibrate_command, "fit the attention to a list of scales, in a minute or two"),
    "attach": (attach_command, "give a trained single-scale model hierarchical attention"),
    "export": (export_command, "write a model as ONNX or as a PyTorch program"),
    "check": (check_command, "look at every file of a data set before a training does"),
    "compare": (compare_command, "put several evaluations side by side, as a table or a page"),
    "convert": (convert_command, "make weights of any kind one file that is usable alone"),
    "panel": (panel_command, "draw what a network sees in one image, scale by scale"),
    "benchmark": (benchmark_command, "time a configuration's training steps on this machine"),
}


def hmsa_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """The `hmsa` command: run the command that the first argument names.

    Args:
        argv: the words after `hmsa`; by default those this program was started with.
        program: the name to show in usages instead of `hmsa COMMAND`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        command, _ = COMMANDS[words[0]]
        return command(words[1:], program=program)

    from hmsa import __version__
    from hmsa.utils.words import did_you_mean

    usage = "usage: hmsa COMMAND ...\n\n" + "\n".join(
        f"  hmsa {name:<12}{phrase}" for name, (_, phrase) in COMMANDS.items()
    )
    usage += "\n\n`hmsa COMMAND --help` tells the options of a command."
    if words and words[0] in ("--version", "-V"):
        print(f"hmsa {__version__}")
        return 0
    if words and words[0] in ("--help", "-h", "help"):
        print(usage)
        return 0

    # No command, or one that does not exist.
    print(usage, file=sys.stderr)
    if words:
        print(
            f"error: '{words[0]}' is not a command of hmsa{did_you_mean(words[0], COMMANDS)}; "
            f"choose one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
    return 2
