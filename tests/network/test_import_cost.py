"""Inference in eager mode leaves torch's compiler alone: importing it takes a second and 60 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, torch
from hmsa.network import InferenceOptions, build_model
from hmsa.network.inference import predict, predict_label, prepare_for_inference
before = "torch._dynamo" in sys.modules
for multiscale in ("single", "hierarchical", "hierarchical_dual", "explicit"):
    model = build_model(trunk="hrnet_w18_small", decoder="ocr", multiscale=multiscale,
                        num_classes=3).eval()
    model = prepare_for_inference(model, autocast_dtype=None)
    options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True, over="probabilities")
    image = torch.zeros(1, 3, 64, 64)
    predict(model, image, options, keep_scales=True)
    predict_label(model, image, options, with_confidence=True)
print(before, "torch._dynamo" in sys.modules)
"""


def test_inference_does_not_import_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
