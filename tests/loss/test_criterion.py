"""The criterion: named, weighted terms; the settings of the paper and of the authors' code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hmsa.loss import (
    LOSSES,
    LossError,
    binary_cross_entropy,
    build_criterion,
    cross_entropy,
    rmi_loss,
    weighted_rmi_loss,
)
from hmsa.network import build_model

# Where the paper and the authors' code differ (docs/release_notes.md, losses).
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"main": "rmi", "aux": "cross_entropy", "scale_weight": 0.0},
    "release": {"main": "rmi", "aux": "bce", "scale_weight": 0.05},
}


def prediction(
    *, size: tuple[int, int] = (24, 20), dtype: torch.dtype = torch.float64, aux: bool = True
) -> SimpleNamespace:
    """Logits at image size, and per-scale predictions each at the size of its scaled image."""
    half = (size[0] // 2, size[1] // 2)
    scales = {
        1.0: SimpleNamespace(logits=torch.randn(2, 4, *size, dtype=dtype)),
        0.5: SimpleNamespace(logits=torch.randn(2, 4, *half, dtype=dtype)),
    }
    aux_logits = torch.randn(2, 4, *size, dtype=dtype) if aux else None
    return SimpleNamespace(
        logits=torch.randn(2, 4, *size, dtype=dtype), aux=aux_logits, scales=scales
    )


def random_label(size: tuple[int, int] = (24, 20)) -> Tensor:
    label = torch.randint(4, (2, *size), dtype=torch.uint8)
    label[torch.rand(label.shape) < 0.1] = 255
    return label


def upsampled(logits: Tensor) -> Tensor:
    return functional.interpolate(logits, (24, 20), mode="bilinear", align_corners=False)


def test_settings_of_the_paper() -> None:
    given, label = prediction(), random_label()
    criterion = build_criterion(num_classes=4, **SETTINGS["paper"])
    rmi = rmi_loss(given.logits, label, num_classes=4)
    expected = {
        "bce": 0.5 * rmi["bce"],
        "rmi": 0.5 * rmi["rmi"],
        "aux": 0.4 * cross_entropy(given.aux, label),
    }
    assert not criterion.needs_scales
    torch.testing.assert_close(criterion(given, label), expected)


def test_settings_of_the_release() -> None:
    given, label = prediction(), random_label()
    criterion = build_criterion(num_classes=4, **SETTINGS["release"])
    rmi = rmi_loss(given.logits, label, num_classes=4)
    expected = {
        "bce": 0.5 * rmi["bce"],
        "rmi": 0.5 * rmi["rmi"],
        "aux": 0.4 * binary_cross_entropy(given.aux, label),
        "scale_0.5": 0.05 * binary_cross_entropy(upsampled(given.scales[0.5].logits), label),
        "scale_1.0": 0.05 * binary_cross_entropy(given.scales[1.0].logits, label),
    }
    assert criterion.needs_scales
    torch.testing.assert_close(criterion(given, label), expected)


def test_scales_follow_a_cross_entropy_main_loss() -> None:
    given, label = prediction(), random_label()
    terms = build_criterion(num_classes=4, main="cross_entropy", scale_weight=0.2)(given, label)
    assert list(terms) == ["cross_entropy", "aux", "scale_0.5", "scale_1.0"]
    torch.testing.assert_close(
        terms["scale_1.0"], 0.2 * cross_entropy(given.scales[1.0].logits, label)
    )


@pytest.mark.parametrize("main", LOSSES)
def test_every_name_serves_in_every_role(main: str) -> None:
    given, label = prediction(), random_label()
    criterion = build_criterion(
        num_classes=4, main=main, aux=main, scale_weight=1.0, scale_loss=main, aux_weight=1.0
    )
    given.aux = given.scales[1.0].logits = given.logits
    terms = criterion(given, label)
    main_loss = sum(criterion.main(given.logits, label).values())
    assert terms["aux"].item() == pytest.approx(main_loss.item(), rel=1e-12)
    assert terms["scale_1.0"].item() == pytest.approx(main_loss.item(), rel=1e-12)
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_of_another_size_are_resized_to_the_label(align_corners: bool) -> None:
    given, label = prediction(size=(6, 5), aux=False), random_label()
    criterion = build_criterion(num_classes=4, main="cross_entropy", align_corners=align_corners)
    resized = functional.interpolate(
        given.logits, (24, 20), mode="bilinear", align_corners=align_corners
    )
    torch.testing.assert_close(
        criterion(given, label), {"cross_entropy": cross_entropy(resized, label)}
    )


def test_terms_that_are_not_asked_for_are_not_there() -> None:
    label = random_label()
    for given, settings in ((prediction(aux=False), {}), (prediction(), {"aux_weight": 0.0})):
        criterion = build_criterion(num_classes=4, main="cross_entropy", **settings)
        assert list(criterion(given, label)) == ["cross_entropy"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_mean_over_parts_is_the_loss_of_the_batch(settings: str) -> None:
    given, label = prediction(), random_label()
    label[0, :15] = 255
    criterion = build_criterion(num_classes=4, **SETTINGS[settings])
    whole = criterion(given, label)
    sums = dict.fromkeys(whole, torch.zeros((), dtype=torch.float64))
    for part in (slice(0, 1), slice(1, 2)):
        scales = {
            scale: SimpleNamespace(logits=own.logits[part]) for scale, own in given.scales.items()
        }
        cut = SimpleNamespace(logits=given.logits[part], aux=given.aux[part], scales=scales)
        for name, term in criterion(
            cut, label[part], valid_pixels=(label != 255).sum(), parts=2
        ).items():
            sums[name] = sums[name] + term / 2
    torch.testing.assert_close(sums, whole, rtol=1e-12, atol=0)


def test_options_reach_their_losses() -> None:
    given, label = prediction(aux=False), random_label()
    rmi = {"radius": 2, "pool": "max", "pool_size": 3, "weight": 0.8, "lambda_way": 0}
    found = build_criterion(num_classes=4, main="rmi", rmi=rmi)(given, label)
    torch.testing.assert_close(found, weighted_rmi_loss(given.logits, label, num_classes=4, **rmi))  # type: ignore[arg-type]
    plain = rmi_loss(given.logits, label, num_classes=4, radius=2, pool="max", pool_size=3)
    torch.testing.assert_close(found, {"bce": plain["bce"], "rmi": 0.8 * plain["rmi"]})
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = build_criterion(num_classes=4, main="cross_entropy", class_weights=weights.tolist())(
        given, label
    )
    torch.testing.assert_close(
        found["cross_entropy"], cross_entropy(given.logits, label, class_weights=weights)
    )
    # Binary cross-entropy has weights of its own, alone and beside RMI.
    for name in ("bce", "rmi"):
        criterion = build_criterion(num_classes=4, main=name, binary_class_weights=weights.tolist())
        binary = binary_cross_entropy(given.logits, label, class_weights=weights)
        share = {"bce": 1.0, "rmi": 0.5}[name]
        torch.testing.assert_close(criterion(given, label)["bce"], share * binary)
        criterion = build_criterion(num_classes=4, main=name, class_weights=weights.tolist())
        plain = share * binary_cross_entropy(given.logits, label)
        torch.testing.assert_close(criterion(given, label)["bce"], plain)
    for name, options in (
        ("ohem", {"threshold": 0.2}),
        ("bootstrapped", {"fraction": 0.1}),
        ("relaxed_boundary", {"window": 5}),
    ):
        found = build_criterion(num_classes=4, main=name, **{name: options})(given, label)  # type: ignore[arg-type]
        torch.testing.assert_close(found[name], LOSSES[name](given.logits, label, **options))
        assert found[name] != LOSSES[name](given.logits, label)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        (
            {"main": "dise"},
            "main must be one of cross_entropy, rmi, bootstrapped, ohem, bce, relaxed_boundary, "
            "dice, focal, lovasz, not 'dise' (did you mean 'dice'?).",
        ),
        (
            {"rmi": {"radios": 3}},
            "'radios' is no option of the loss 'rmi'; it has covariance_epsilon, lambda_way, "
            "log_epsilon, pool, pool_size, probability_epsilon, radius, weight.",
        ),
        ({"rmi": {"pool": "median"}}, "pool must be one of avg, max, interp, not 'median'."),
        ({"rmi": {"lambda_way": 2}}, "lambda_way must be 0 or 1, not 2."),
        ({"class_weights": [1.0, 2.0]}, "class_weights must hold 4 values, not 2."),
        (
            {"binary_class_weights": [1.0, 2.0]},
            "binary_class_weights must hold 4 values, not 2.",
        ),
    ],
)
def test_mistakes_are_named(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LossError) as caught:
        build_criterion(num_classes=4, **keywords)
    assert str(caught.value) == sentence


def test_missing_scales_are_named() -> None:
    given = prediction()
    given.scales = None
    with pytest.raises(LossError, match="keep_scales=True"):
        build_criterion(num_classes=4, scale_weight=0.1)(given, random_label())


def test_labels_outside_the_classes_are_named_where_asking_costs_nothing() -> None:
    label = random_label()
    label[0, 3, 4] = 200
    with pytest.raises(
        LossError,
        match="label holds 200, which is neither a class below 4 nor the ignore label 255",
    ):
        build_criterion(num_classes=4)(prediction(), label)


def test_logits_of_the_labels_size_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def loss(logits: Tensor, label: Tensor, **options: Any) -> Tensor:
        seen.append(logits)
        return logits.sum()

    monkeypatch.setitem(LOSSES, "bce", loss)
    given = prediction(aux=False)
    build_criterion(num_classes=4, main="bce")(given, random_label())
    assert seen[0] is given.logits


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_scale_at_feature_resolution_takes_the_size_of_its_image_first(
    align_corners: bool, dtype: torch.dtype
) -> None:
    """So does the authors' code; half precision is widened before it is interpolated."""
    given, label = prediction(aux=False), random_label()
    features = {0.5: torch.randn(2, 4, 3, 3).to(dtype), 2.0: torch.randn(2, 4, 12, 10).to(dtype)}
    given.scales = {scale: SimpleNamespace(logits=own) for scale, own in features.items()}
    criterion = build_criterion(
        num_classes=4, scale_weight=1.0, scale_loss="bce", align_corners=align_corners
    )
    found = criterion(given, label)

    for scale, own in features.items():
        logits = own.double() if dtype == torch.float64 else own.float()
        for size in ((int(24 * scale), int(20 * scale)), (24, 20)):
            logits = functional.interpolate(
                logits, size, mode="bilinear", align_corners=align_corners
            )
        torch.testing.assert_close(found[f"scale_{scale}"], binary_cross_entropy(logits, label))


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "explicit"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_model_trains_with_every_setting(multiscale: str, settings: str) -> None:
    """Each scale's own loss included, with one scale as with several."""
    model = build_model(
        trunk="hrnet_w18_small",
        decoder="ocr",
        multiscale=multiscale,
        num_classes=4,
        decoder_channels=16,
        attention_channels=8,
    ).train()
    criterion = build_criterion(num_classes=4, **SETTINGS[settings])
    image, label = torch.randn(2, 3, 66, 90), random_label((66, 90))

    prediction = model(image, keep_scales=criterion.needs_scales)
    terms = criterion(prediction, label)
    torch.stack(list(terms.values())).sum().backward()

    scales = {name for name in terms if name.startswith("scale_")}
    assert len(scales) == (len(model.train_scales) if settings == "release" else 0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
