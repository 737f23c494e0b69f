"""Draw the pictures of docs/how_it_works.md: what a trained network makes of one image.

    python scripts/documentation/method.py --checkpoint best.pt --index 3 --output docs/method

The checkpoint is one that `hmsa calibrate` wrote. Its weights are those of the training, so that
without the attention biases it shows the network as it was trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hmsa.engine.command_line import parse_with_overrides, run_command
from hmsa.engine.pictures import share_maps
from hmsa.network import Prediction
from hmsa.network.model import Hierarchical
from hmsa.utils.files.png import write_png
from hmsa.utils.report.colours import scale_colours
from hmsa.utils.report.visualise import colorize, error_map, heat, panel
from hmsa.utils.words import UserError
from scripts.documentation.street_view import StreetView, open_view, view_parser

Captioned = tuple[str, np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures; returns the exit status."""
    parser = view_parser(__doc__, width=260, output="folder for the PNG files")
    parser.add_argument("--refine", type=float, default=0.3, help="default: %(default)s")
    options = parse_with_overrides(parser, argv)
    return run_command(lambda: draw_method(options))


def draw_method(options: argparse.Namespace) -> int:
    """Predict the image in every way that the page tells of, and write the pictures.

    Raises:
        UserError: the checkpoint is not calibrated, or a file cannot be read or written.
    """
    street = open_view(options)
    model = street.loaded.model
    if not isinstance(model, Hierarchical) or not model.attention_bias:
        raise UserError(f"{options.checkpoint}: is not calibrated; run hmsa calibrate on it first")

    pictures = {
        "equation.png": equation(street),
        "chain.png": chain(street),
        "calibration.png": calibration(street),
        "refinement.png": refinement(street, options.refine),
    }
    for name, tiles in pictures.items():
        drawn = panel(tiles, columns=3, width=options.width)
        write_png(options.output / name, drawn, level=9)
        print(f"wrote {options.output / name}, {drawn.shape[1]} x {drawn.shape[0]}")
    return 0


def equation(street: StreetView) -> list[Captioned]:
    """Two scales and the attention between them."""
    with street.as_trained():
        fused = street.predict(0.5, 1.0)
        lower, higher = street.predict(0.5), street.predict(1.0)
    return [
        ("image", street.photograph),
        ("0.5x alone: L_lower", street.coloured(lower)),
        ("1x alone: L_higher", street.coloured(higher)),
        ("attention a: bright trusts 0.5x", heat(share_maps(fused)[0.5])),
        ("fused: L", street.coloured(fused)),
        ("label", colorize(street.label, street.palette)),
    ]


def chain(street: StreetView) -> list[Captioned]:
    """Three scales from the highest down: each alone, its attention, and the result so far."""
    with street.as_trained():
        alone = {scale: street.predict(scale) for scale in (2.0, 1.0, 0.5)}
        two, three = street.predict(1.0, 2.0), street.predict(0.5, 1.0, 2.0)
    return [
        ("2x alone", street.coloured(alone[2.0])),
        ("1x alone", street.coloured(alone[1.0])),
        ("0.5x alone", street.coloured(alone[0.5])),
        ("image", street.photograph),
        ("attention of 1x", heat(share_maps(two)[1.0])),
        ("attention of 0.5x", heat(share_maps(three)[0.5])),
        ("1. begin with 2x", street.coloured(alone[2.0])),
        ("2. mix in 1x", street.coloured(two)),
        ("3. mix in 0.5x: the result", street.coloured(three)),
    ]


def calibration(street: StreetView) -> list[Captioned]:
    """Four scales with the attention as it was trained, and calibrated."""
    scales = (0.25, 0.5, 1.0, 2.0)
    with street.as_trained():
        before = street.predict(*scales)
    after = street.predict(*scales)
    return [
        ("image", street.photograph),
        ("as trained: share of 0.25x and 0.5x", heat(share_of_small(before))),
        ("calibrated: share of 0.25x and 0.5x", heat(share_of_small(after))),
        bias_curves(street),
        ("errors as trained", street.errors(before)),
        ("errors calibrated", street.errors(after)),
    ]


def bias_curves(street: StreetView) -> Captioned:
    """What the mean bias of each pair makes of its attention, in the colour of the lower scale."""
    model = street.loaded.model
    assert isinstance(model, Hierarchical)
    biases = {
        pair[0]: float(np.mean(bias.lower) + np.mean(bias.higher))
        for pair, bias in sorted(model.attention_bias.items())
    }
    height, width = street.label.shape

    # A square, with attention from 0 to 1 to the right, and what it becomes upwards.
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    side, left = height - 12, (width - height) // 2
    cv2.rectangle(picture, (left, 6), (left + side, 6 + side), (128, 128, 128), 1)
    cv2.line(picture, (left, 6 + side), (left + side, 6), (200, 200, 200), 1, cv2.LINE_AA)

    attention = np.linspace(0, 1, 201)
    for bias, colour in zip(biases.values(), scale_colours(len(biases)), strict=True):
        # sigmoid(logit(a) + b), written without the logarithm
        odds = np.exp(bias)
        moved = attention * odds / (1 - attention + attention * odds)
        points = np.stack([left + attention * side, 6 + (1 - moved) * side], axis=1)
        ink = [int(value) for value in colour]
        cv2.polylines(picture, [points.round().astype(np.int32)], False, ink, 2, cv2.LINE_AA)

    numbers = ", ".join(f"{scale:g}x {bias:+.1f}" for scale, bias in biases.items())
    return f"a to a'; mean biases {numbers}", picture


def share_of_small(prediction: Prediction) -> np.ndarray:
    """How much the scales below 1 count together, float [H, W]."""
    small = [share for scale, share in share_maps(prediction).items() if scale < 1]
    return np.sum(small, axis=0)


def refinement(street: StreetView, share: float) -> list[Captioned]:
    """2x everywhere, and where attention asks for it."""
    low, everywhere = street.predict(0.5, 1.0), street.predict(0.5, 1.0, 2.0)
    refined = street.predict(0.5, 1.0, 2.0, refine=share)

    # Where 2x was not computed, its share of the result is 0.
    counted = share_maps(refined)[2.0] > 1e-4
    pale = cv2.convertScaleAbs(street.photograph, alpha=0.25, beta=190)
    shown = np.where(counted[..., None], street.photograph, pale)

    # What the lower scales leave to 2x, times how unsure they are: the priority of the page.
    unsure = 1 - low.logits[0].softmax(dim=0).amax(dim=0).numpy()
    priority = share_maps(everywhere)[2.0] * unsure
    changed = street.predicted(refined) != street.predicted(everywhere)
    return [
        ("{0.5, 1}", street.coloured(low)),
        ("priority: bright asks for 2x", heat(priority, high=float(priority.max()) / 2)),
        (f"2x on {100 * share:g} %: not where it is pale", shown),
        ("{0.5, 1, 2}, 2x everywhere", street.coloured(everywhere)),
        (f"{{0.5, 1, 2}}, 2x on {100 * share:g} %", street.coloured(refined)),
        (f"other classes (red): {100 * changed.mean():.1f} %", difference(street, changed)),
    ]


def difference(street: StreetView, changed: np.ndarray) -> np.ndarray:
    """Changed pixels in red on the pale image."""
    none = np.zeros(changed.shape, dtype=np.uint8)
    return error_map(changed.astype(np.uint8), none, image=street.photograph)


if __name__ == "__main__":
    sys.exit(main())
