"""Draw README's picture: one image at two scales, which scale is trusted where, and the result.

    python scripts/documentation/hero.py --checkpoint best.pt --index 3 --output docs/hero.png

Three pictures in a row stay legible at the width in which GitHub shows a README.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hmsa.engine.arguments import ScalesAction
from hmsa.engine.build import inference_options
from hmsa.engine.command_line import parse_with_overrides, run_command
from hmsa.engine.pictures import share_maps
from hmsa.utils.files.png import write_png
from hmsa.utils.report.colours import scale_colours
from hmsa.utils.report.panels import panel
from hmsa.utils.report.visualise import colorize
from hmsa.utils.words import UserError
from scripts.documentation.street_view import open_view, view_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; returns the exit status."""
    parser = view_parser(__doc__, width=420, output="PNG file")
    parser.add_argument("--scales", nargs="+", action=ScalesAction, default=[0.5, 1.0, 2.0])
    options = parse_with_overrides(parser, argv)
    return run_command(lambda: draw_hero(options))


def draw_hero(options: argparse.Namespace) -> int:
    """Predict the image and write the picture.

    Raises:
        UserError: the checkpoint has no attention, or a file cannot be read or written.
    """
    street = open_view(options)
    inference = inference_options(street.loaded.config.eval, scales=options.scales)
    prediction = street.predict_with(inference)
    if prediction.scales is None or len(prediction.scales) < 2:
        raise UserError(f"{options.checkpoint}: has no attention between scales to show")

    # Each scale's own answer at the size of the image, in colours.
    def coloured(logits: torch.Tensor) -> np.ndarray:
        label = logits[0].argmax(0).to(torch.uint8).numpy()
        size = (street.photograph.shape[1], street.photograph.shape[0])
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        return colorize(label, street.palette)

    smallest, largest = min(prediction.scales), max(prediction.scales)
    tiles = [
        ("image", street.photograph),
        (f"at {smallest:g}x alone", coloured(prediction.scales[smallest].logits)),
        (f"at {largest:g}x alone", coloured(prediction.scales[largest].logits)),
        (legend(prediction.scales), trusted(share_maps(prediction))),
        ("the result: each scale where it is right", coloured(prediction.logits)),
        ("label", colorize(street.label, street.palette)),
    ]

    drawn = panel(tiles, columns=3, width=options.width)
    write_png(options.output, drawn, level=9)
    print(f"wrote {options.output}, {drawn.shape[1]} x {drawn.shape[0]}")
    return 0


def legend(scales: Mapping[float, object]) -> str:
    """The caption of the picture of trust."""
    names = ("orange", "green", "blue")
    if len(scales) != len(names):
        return "scale that counts most"
    parts = [f"{name} {scale:g}x" for name, scale in zip(names, sorted(scales), strict=True)]
    return "trusted: " + ", ".join(parts)


def trusted(shares: Mapping[float, np.ndarray]) -> np.ndarray:
    """The colour of the scale that counts most at each pixel, paler the less it counts."""
    order = sorted(shares)
    stacked = np.stack([shares[scale] for scale in order])
    colours = scale_colours(len(order)).astype(np.float32)[stacked.argmax(0)]
    strength = stacked.max(0)[..., None]

    # A share of a third, which is the least that can win among three, is half white.
    weight = 0.5 + 0.5 * (strength - 1 / len(order)) / (1 - 1 / len(order))
    return (weight * colours + (1 - weight) * 255).round().astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
