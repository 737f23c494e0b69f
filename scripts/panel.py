"""What a network sees in one image of a split, as one picture: ``python scripts/panel.py --checkpoint best.pt --index 4 --output panel.png``.

Image, label, prediction, error, the attention of each scale and the scale that counts most where (figure 3 of the paper).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import at_least, parse_with_overrides, run_door


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of train.py")
    parser.add_argument("--split", help="default: the validation split of its configuration")
    parser.add_argument(
        "--index", type=int, default=0, help="which image of the split, from 0 (default)"
    )
    parser.add_argument("--scales", nargs="+", type=float, metavar="S", help="default: eval.scales")
    parser.add_argument(
        "--width",
        type=at_least(16),
        default=420,
        help="of each picture in pixels (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data/cityscapes",
    )
    return parse_with_overrides(parser, argv)


def main(options: argparse.Namespace) -> int:
    """Predict and draw."""
    import torch

    from hmsa.datasets import DataError
    from hmsa.engine import build as assemble
    from hmsa.engine.pictures import pictures_of
    from hmsa.utils.files.image_writer import ImageWriter
    from hmsa.utils.report.panels import panel

    loaded = assemble.load_model(
        options.checkpoint,
        config_file=None,
        overrides=options.overrides,
        device=torch.device("cpu"),
    )
    files = assemble.split_files(
        loaded.config, options.split or loaded.config.data.val_split, expected=loaded.spec
    )
    if not 0 <= options.index < len(files):
        raise DataError(
            f"--index: {options.index} is none of the {len(files)} images; choose one from 0 to {len(files) - 1}"
        )
    inference = assemble.Inference.of(loaded.config.eval, scales=options.scales)
    found = pictures_of(loaded.model, files, inference, options.index)
    with ImageWriter() as writer:
        writer.submit(options.output, panel(list(found.items()), columns=5, width=options.width))
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    OPTIONS = parse()

    def user_errors() -> tuple[type[Exception], ...]:
        from hmsa.engine import build as assemble

        return assemble.USER_ERRORS

    sys.exit(run_door(lambda: main(OPTIONS), user_errors=user_errors))
