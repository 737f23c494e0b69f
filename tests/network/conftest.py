"""The authors' models with weights that are a function of their names, and their results.

`tests/data/golden_network.json` is a selection of numbers from running the authors' code, stated
in float64.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hmsa.network import (
    InferenceOptions,
    MultiScaleModel,
    Prediction,
    build_model,
    load_weights,
)
from hmsa.network.decoders import Decoded
from hmsa.network.inference import predict, predict_label
from tests.network.authors_names import to_authors

NUMBERS = json.loads((Path(__file__).parents[1] / "data" / "golden_network.json").read_text())
HRNET = {"trunk": "hrnet_w48", "decoder": "ocr"}
RESNET = {"trunk": "resnet50", "decoder": "deeplabv3plus"}
GOLDEN = {
    "hrnet_ocr_mscale": {**HRNET, "multiscale": "hierarchical"},
    "hrnet_ocr": {**HRNET, "multiscale": "single"},
    "deepv3plus_r50_mscale": {**RESNET, "multiscale": "hierarchical"},
    "deepv3plus_r50": {**RESNET, "multiscale": "single"},
    "deepv3plus_r50_mscale_dual": {**RESNET, "multiscale": "hierarchical_dual"},
    "explicit_r50": {
        **RESNET,
        "multiscale": "explicit",
        "explicit_softmax": False,
        "explicit_batchnorm": False,
    },
    "explicit_r50_bn": {
        **RESNET,
        "multiscale": "explicit",
        "explicit_softmax": False,
        "explicit_batchnorm": True,
    },
}
GAINS = (
    (r"\.bn3\.weight$|branches\.\d+\.\d+\.bn2\.weight$", 0.25),
    (r"fuse_layers\.", 0.25),
    (r"^ocr\.conv3x3_ocr\.1\.0\.weight$", 0.4),
    (r"f_(pixel|object)\.3\.0\.weight$", 2.0),
)


def ruled_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name (the authors') by the rule of the golden numbers."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(1)
    draw = np.random.default_rng(zlib.crc32(key.encode()))
    if leaf == "running_var":
        values = 1.0 + 0.1 * draw.random(shape)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * draw.standard_normal(shape)
    elif len(shape) == 1:
        gain = next((gain for pattern, gain in GAINS if re.search(pattern, key)), 1.0)
        values = gain * (1.0 + 0.1 * draw.standard_normal(shape))
    else:
        values = draw.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def ruled_state_dict(model: MultiScaleModel) -> dict[str, Tensor]:
    """A state dict by the authors' names, with the rule's values, for this architecture."""
    shapes = to_authors(
        {key: tuple(value.shape) for key, value in model.state_dict().items()},
        multiscale=model.multiscale,
    )
    return {key: ruled_tensor(key, shape) for key, shape in shapes.items()}


class Golden:
    """A model with the rule's weights, the state dict they came from, and the authors' numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = build_model(**GOLDEN[name], num_classes=19, dropout=0.0).eval()
        self.state = ruled_state_dict(self.model)
        self.report = load_weights(
            self.model,
            {"state_dict": {f"module.{key}": value for key, value in self.state.items()}},
        )
        self.numbers = NUMBERS[name]

    def fingerprint(self) -> str:
        """sha256 over the sorted names of the state dict and their bytes."""
        digest = hashlib.sha256()
        for key in sorted(self.state):
            digest.update(key.encode())
            digest.update(self.state[key].numpy().tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def golden_of(name: str) -> Golden:
    """The golden model of that name; tests that change it work on a copy."""
    return Golden(name)


@pytest.fixture(scope="session", params=list(GOLDEN))
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden model in turn."""
    return golden_of(request.param)


@contextlib.contextmanager
def remembered(model: MultiScaleModel) -> Iterator[MultiScaleModel]:
    """A model that decodes each scale of its image once, however many lists of scales name it.

    Trunk and decoder are most of the work.
    """
    decoded: dict[tuple[object, ...], Decoded] = {}
    decode = model.decode_at

    def decode_at(image: Tensor, scale: float) -> Decoded:
        place = (tuple(image.shape), scale)
        if place not in decoded:
            decoded[place] = decode(image, scale)
        return decoded[place]

    model.decode_at = decode_at  # type: ignore[method-assign]
    try:
        yield model
    finally:
        del model.decode_at


def options_for(model: torch.nn.Module, **options: object) -> InferenceOptions:
    """Options of inference; scales are those of the model's training where none are given."""
    scales = options.pop("scales", None) or getattr(model, "train_scales", (1.0,))
    return InferenceOptions(scales=tuple(scales), **options)  # type: ignore[arg-type]


def predicted(
    model: torch.nn.Module,
    image: Tensor,
    *,
    keep_scales: bool = False,
    on_fallback: Callable[[str], None] | None = None,
    **options: object,
) -> Prediction:
    """`predict` with options as keywords."""
    return predict(
        model,
        image,
        options_for(model, **options),
        keep_scales=keep_scales,
        on_fallback=on_fallback,
    )


def labelled(
    model: torch.nn.Module,
    image: Tensor,
    *,
    with_confidence: bool = False,
    on_fallback: Callable[[str], None] | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    """`predict_label` with options as keywords."""
    return predict_label(
        model,
        image,
        options_for(model, **options),
        with_confidence=with_confidence,
        on_fallback=on_fallback,
    )


@pytest.fixture(scope="session")
def image() -> Tensor:
    """x_A of the golden numbers, [1, 3, 128, 256]."""
    return torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, 3, 128, 256)).astype(np.float32)
    )
