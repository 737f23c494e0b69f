"""Training on pairs of random ratio, a head that is told its pair, and its own learning rate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hmsa.engine import build
from hmsa.engine.arguments import train_command
from hmsa.network import InferenceOptions, ModelError, attach_attention, build_model
from hmsa.network.inference import predict, prepare_for_inference
from hmsa.network.model import Hierarchical, maps_of_pair, pair_of_each
from hmsa.utils.config import Config, ConfigError
from hmsa.utils.training.optimizer import parameter_groups
from tests.engine.conftest import configuration

SMALL = {"trunk": "resnet18", "decoder": "fcn", "decoder_channels": 8, "attention_channels": 8}


def scales_of(steps: int, seed: int = 0, **model: Any) -> list[tuple[float, ...]]:
    config = Config.from_dict({"model": model, "experiment": {"seed": seed}})
    return [build.training_scales(config, step=step) for step in range(steps)]


def test_the_ratio_of_a_step_follows_from_seed_and_step() -> None:
    assert scales_of(3, train_scales=[0.5, 1.0]) == [(0.5, 1.0)] * 3
    drawn = scales_of(200, random_ratio=[0.25, 0.5])
    assert drawn == scales_of(200, random_ratio=[0.25, 0.5])
    assert drawn[:5] != scales_of(5, seed=1, random_ratio=[0.25, 0.5])
    lower = [low for low, high in drawn if high == 1.0]
    assert len(set(lower)) == 200 and 0.25 <= min(lower) < 0.26 and 0.49 < max(lower) <= 0.5
    # Half of them are below the middle of the logarithm.
    assert 80 < sum(low < 0.25 * 2**0.5 for low in lower) < 120

    chain = scales_of(1, random_ratio=[0.5, 0.5], train_scales=[0.25, 0.5, 1.0, 2.0])
    assert chain == [pytest.approx((0.25, 0.5, 1.0, 2.0))]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"random_ratio": [0.5, 0.25]}, "write the smaller ratio first"),
        ({"random_ratio": [0.5, 1.5]}, "model.random_ratio"),
        ({"random_ratio": [0.3, 0.6], "multiscale": "single"}, "is for hierarchical attention"),
        ({"attention_reads_scales": True, "multiscale": "explicit"}, "is for hierarchical"),
        ({"random_ratio": [0.1, 0.5], "train_scales": [0.25, 0.5, 1]}, "scales below 0.015625"),
    ],
)
def test_what_makes_no_sense_is_said(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config.from_dict({"model": model})


def told(multiscale: str = "hierarchical", *, reads: bool = True) -> Any:
    torch.manual_seed(0)
    return build_model(
        multiscale=multiscale, num_classes=3, attention_reads_scales=reads, **SMALL
    ).eval()  # type: ignore[arg-type]


def attentions(model: Hierarchical, scales: tuple[float, ...]) -> dict[float, Any]:
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = model.predict_scales(image, scales)
    return {scale: part.attention for scale, part in own.items()}


@pytest.mark.parametrize("multiscale", ["hierarchical", "hierarchical_dual"])
def test_a_head_that_reads_scales_tells_pairs_apart(multiscale: str) -> None:
    model, plain = told(multiscale), told(multiscale, reads=False)
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    changed = [name for name, tensor in model.state_dict().items() if tensor.shape != shapes[name]]
    assert changed == ["attention.hidden.0.conv.weight"]
    assert model.attention.hidden[0].conv.in_channels == (
        plain.attention.hidden[0].conv.in_channels + 2
    )

    # The same scale beside another one: features are alike, and what the head is told is not.
    beside_one, beside_two = attentions(model, (0.5, 1.0)), attentions(model, (0.5, 2.0))
    assert not torch.allclose(beside_one[0.5], beside_two[0.5], atol=1e-4)
    if multiscale == "hierarchical":
        beside_one, beside_two = attentions(plain, (0.5, 1.0)), attentions(plain, (0.5, 2.0))
        assert torch.equal(beside_one[0.5], beside_two[0.5])

    # In strips and tiles, with folded norms, it is the same network.
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(image, scales=(0.5, 1.0)).logits
    options = InferenceOptions(scales=(0.5, 1.0))
    found = predict(prepare_for_inference(model), image, options).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_maps_name_scale_and_ratio() -> None:
    maps = maps_of_pair((0.25, 1.0), like=torch.zeros(2, 5, 3, 4))
    assert maps.shape == (2, 2, 3, 4)
    assert torch.equal(maps[:, 0], torch.full((2, 3, 4), -2.0))
    assert torch.equal(maps[:, 1], torch.full((2, 3, 4), 2.0))
    assert pair_of_each((1.0, 0.25, 0.5)) == {0.25: (0.25, 0.5), 0.5: (0.5, 1.0)}
    assert pair_of_each([0.5]) == {0.5: (0.5, 1.0)}


def test_who_cannot_tell_the_head_its_pair_says_so() -> None:
    image = torch.zeros(1, 3, 64, 96)
    with pytest.raises(ModelError, match="refining does not tell it: set refine to 0"):
        told().predict_scale(image, 1.0, attended=True)
    with pytest.raises(ModelError, match="not for single"):
        build_model(num_classes=3, multiscale="single", attention_reads_scales=True, **SMALL)  # type: ignore[arg-type]


def test_an_attached_head_can_read_scales() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, 3, 1))
    model = attach_attention(
        body, features="0", attention_channels=8, attention_reads_scales=True
    ).eval()
    assert not torch.allclose(
        attentions(model, (0.5, 1.0))[0.5], attentions(model, (0.5, 2.0))[0.5], atol=1e-4
    )


def test_attention_has_a_learning_rate_of_its_own() -> None:
    model = told(reads=False)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0}
    heads = model.parameters_of_heads()
    attention = model.parameters_of_attention()
    assert 0 < len(attention) < len(heads)
    groups = parameter_groups(
        model,
        head_parameters=heads,
        head_lr_multiplier=2.0,
        attention_parameters=attention,
        attention_lr_multiplier=3.0,
        **options,
    )
    rates = {len(group["params"]): group["base_lr"] for group in groups}
    trunk = len(list(model.parameters())) - len(heads)
    assert rates == pytest.approx(
        {trunk: 0.1, len(heads) - len(attention): 0.2, len(attention): 0.6}
    )
    (one,) = parameter_groups(
        model, head_parameters=heads, attention_parameters=attention, **options
    )
    assert [id(part) for part in one["params"]] == [id(part) for part in model.parameters()]


def test_a_training_goes_through_the_drawn_pairs(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    predict_scales = Hierarchical.predict_scales

    def noted(self: Hierarchical, image: Any, scales: Any, **options: Any) -> Any:
        if self.training:
            seen.append(tuple(scales))
        return predict_scales(self, image, scales, **options)

    monkeypatch.setattr(Hierarchical, "predict_scales", noted)
    model = {**SMALL, "random_ratio": [0.3, 0.7], "attention_reads_scales": True}
    loss = {"scale_weight": 0.05}
    file = configuration(tmp_path, street, model=model, loss=loss, optim={"epochs": 1})
    assert train_command([str(file)]) == 0
    assert seen == [
        build.training_scales(build.load_config(file), step=step) for step in range(len(seen))
    ]
    assert len(set(seen)) == len(seen) == 3

    # The terms of each scale keep one name, whatever was drawn.
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert set(re.findall(r"scale_[\d.]+", logged)) == {"scale_0.5", "scale_1.0"}
