"""One image and the network that looks at it: what the pictures of the documentation share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hmsa.datasets import normalise
from hmsa.engine.build import Loaded, load_model, split_files
from hmsa.engine.command_line import at_least
from hmsa.network import InferenceOptions, Prediction
from hmsa.network.inference import predict
from hmsa.network.model import Hierarchical
from hmsa.utils.report.visualise import colorize, error_map
from hmsa.utils.words import UserError


def view_parser(description: str | None, *, width: int, output: str) -> argparse.ArgumentParser:
    """The options of a picture; `width` is the default one, `output` says what is written."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--index", type=at_least(0), default=0, help="image of the split")
    parser.add_argument("--width", type=at_least(64), default=width, help="of each picture")
    parser.add_argument("--output", type=Path, required=True, help=output)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def open_view(options: argparse.Namespace) -> StreetView:
    """Load the network of --checkpoint and read the image of --split that --index counts to.

    Raises:
        UserError: a file cannot be read, or the split has fewer images.
    """
    loaded = load_model(
        options.checkpoint,
        config_file=None,
        overrides=options.overrides,
        device=torch.device("cpu"),
    )
    files = split_files(loaded.config, options.split, expected=loaded.spec)
    if options.index >= len(files):
        raise UserError(f"--index: the split has {len(files)} images, counted from 0")

    return StreetView(
        loaded=loaded,
        photograph=files.read_image(options.index),
        label=files.read_label(options.index),
        palette=files.spec.palette,
        ignore_label=files.spec.ignore_label,
    )


@dataclass(frozen=True)
class StreetView:
    """One image with its label, and the network that looks at it."""

    loaded: Loaded
    photograph: np.ndarray
    label: np.ndarray
    palette: np.ndarray
    ignore_label: int

    def predict(self, *scales: float, refine: float = 1.0) -> Prediction:
        """The network's answer at these scales, with that of each scale."""
        return self.predict_with(InferenceOptions(scales=scales, refine=refine))

    def predict_with(self, options: InferenceOptions) -> Prediction:
        """The same for any options of inference."""
        image = normalise(torch.from_numpy(self.photograph)[None].permute(0, 3, 1, 2))
        return predict(self.loaded.model, image, options, keep_scales=True)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Without the attention biases meanwhile."""
        model = self.loaded.model
        assert isinstance(model, Hierarchical)
        held, model.attention_bias = model.attention_bias, {}
        try:
            yield
        finally:
            model.attention_bias = held

    def predicted(self, prediction: Prediction) -> np.ndarray:
        """The label of the fused result, uint8 [H, W]."""
        return prediction.logits[0].argmax(0).to(torch.uint8).numpy()

    def coloured(self, prediction: Prediction) -> np.ndarray:
        """The same in the colours of the classes."""
        return colorize(self.predicted(prediction), self.palette)

    def errors(self, prediction: Prediction) -> np.ndarray:
        """Wrong pixels in red."""
        return error_map(
            self.predicted(prediction), self.label, self.ignore_label, image=self.photograph
        )
