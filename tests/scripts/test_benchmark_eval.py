"""The benchmark of evaluation compares two ways to the same answer."""

from __future__ import annotations

import argparse

import pytest
import torch

from hmsa.network import InferenceOptions
from scripts.benchmarks import eval as benchmark
from scripts.measuring.harness import ROW_KEYS, Disagreement

SMALL = benchmark.Material(
    parts={"trunk": "hrnet_w18_small", "decoder": "ocr"}, size=(64, 96), device="cpu"
)
SCALES = (0.5, 1.0, 2.0)


def test_the_straightforward_way_gives_the_models_own_logits() -> None:
    model, image, _ = SMALL.make()
    with torch.no_grad():
        expected = model(image, scales=SCALES).logits
    maps = benchmark.straightforward(model.requires_grad_(False), image, SCALES)
    torch.testing.assert_close(
        maps["fused"]["logits"], expected, atol=1e-4 * float(expected.abs().max()), rtol=0
    )
    assert set(maps) == {*SCALES, "fused"}
    assert maps[2.0]["aux"].shape == (1, 19, 128, 192)
    assert maps[0.5]["attention"].shape == (1, 1, 32, 48)


def test_ours_and_baseline_score_alike() -> None:
    options = InferenceOptions(scales=SCALES, flip=True)
    ours, baseline = (
        build(material=SMALL, options=options, against=None)()
        for build in (benchmark.ours, benchmark.baseline)
    )
    agreement = benchmark.Agreement(0.999)
    agreement(ours, baseline)
    assert agreement.share >= 0.999 and int(ours[1].sum()) == int(baseline[1].sum()) > 0
    with pytest.raises(Disagreement, match="same label"):
        agreement(((ours[0] + 1) % 19, ours[1]), baseline)
    with pytest.raises(Disagreement, match="counted"):
        agreement((ours[0], ours[1] + 1), baseline)


@pytest.mark.usefixtures("forked_measuring")
def test_rows_have_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        benchmark.NETWORKS,
        "demo",
        ({"trunk": "resnet18", "decoder": "fcn", "output_stride": 16}, (64, 64)),
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1)
    benchmark.add_arguments(parser)
    rows = benchmark.run(
        parser.parse_args(["--networks", "demo", "--precisions", "bf16", "--scales", "0.5", "1"])
    )
    assert [row["name"] for row in rows] == ["eval demo bf16"]
    for row in rows:
        assert (
            set(ROW_KEYS) <= set(row)
            and row["ratio"] > 0
            and row["memory_ratio"] is not None
            and "%" in row["note"]
        )
