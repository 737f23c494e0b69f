"""Which network weights belong to, from their names and shapes alone."""

from __future__ import annotations

import pytest
import torch

from hmsa.network import ModelError, build_model, load_weights
from hmsa.network.weights.recognition import recognise_model
from tests.network.authors_names import to_authors

USUAL = {"explicit_batchnorm": True, "explicit_softmax": True, "align_corners": False}
MODELS = {
    "hrnet_w48": {"trunk": "hrnet_w48", "decoder": "ocr", "multiscale": "hierarchical"},
    "small": {
        "trunk": "hrnet_w18_small",
        "decoder": "ocr",
        "multiscale": "hierarchical",
        "head": "paper",
        "decoder_channels": 24,
        "attention_channels": 8,
    },
    "dual": {"trunk": "resnet18", "decoder": "deeplabv3plus", "multiscale": "hierarchical_dual"},
    "paper": {
        "trunk": "resnet50",
        "decoder": "deeplabv3plus",
        "multiscale": "hierarchical",
        "head": "paper",
    },
    "single": {"trunk": "resnet34", "decoder": "fcn", "multiscale": "single"},
    "explicit": {"trunk": "resnet101", "decoder": "deeplabv3plus", "multiscale": "explicit"},
    "bare": {
        "trunk": "resnet50",
        "decoder": "deeplabv3plus",
        "multiscale": "explicit",
        "explicit_batchnorm": False,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_follows_from_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(num_classes=7, **MODELS[name])
    found = recognise_model(dict(model.state_dict()))
    assert (found.kind, found.num_classes) == ("ours", 7)
    assert {**USUAL, **found.options} == {**USUAL, **MODELS[name]}


@pytest.mark.parametrize("name", ["hrnet_w48", "dual", "bare"])
def test_the_authors_files_tell_the_same(name: str) -> None:
    with torch.device("meta"):
        model = build_model(num_classes=65, **MODELS[name])
    theirs = to_authors(dict(model.state_dict()), multiscale=str(MODELS[name]["multiscale"]))
    found = recognise_model({"state_dict": {f"module.{key}": theirs[key] for key in theirs}})
    assert (found.kind, found.num_classes) == ("authors", 65)

    # Their attention to scale has no soft-max.
    expected = dict(MODELS[name])
    if expected["multiscale"] == "explicit":
        expected["explicit_softmax"] = False
    assert {**USUAL, **found.options} == {**USUAL, **expected}


def test_hrnet_ocrs_own_files_need_aligned_corners() -> None:
    with torch.device("meta"):
        model = build_model(num_classes=19, trunk="hrnet_w48", decoder="ocr", multiscale="single")
    theirs = to_authors(dict(model.state_dict()), multiscale="hierarchical")
    flat = {key.removeprefix("ocr.").removeprefix("backbone."): theirs[key] for key in theirs}
    found = recognise_model(flat)
    assert found.kind == "hrnet_ocr"
    assert found.options == {**MODELS["hrnet_w48"], "multiscale": "single", "align_corners": True}


def test_what_tensors_do_not_tell_is_said() -> None:
    small = build_model(num_classes=3, trunk="resnet18", decoder="fcn", multiscale="single")
    with pytest.raises(ModelError, match="holds a trunk alone"):
        recognise_model(dict(small.trunk.state_dict()))

    unknown = dict(small.state_dict())
    for key in [key for key in unknown if key.startswith("trunk.layer3.1.")]:
        del unknown[key]
    with pytest.raises(ModelError, match="trunk is none that is known .* by --config"):
        recognise_model(unknown)
    # Where the trunk is known the others are still found, and loading says what is missing.
    known = recognise_model(unknown, known={"trunk": "resnet18"})
    assert known.options == {"trunk": "resnet18", "decoder": "fcn", "multiscale": "single"}
    with pytest.raises(ModelError, match="missing from it"):
        load_weights(small, known.tensors)
