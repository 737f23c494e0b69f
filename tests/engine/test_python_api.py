"""What a Python user meets: hmsa.load, predict, save_pretrained, and the loop of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hmsa
from hmsa.datasets import DataError, normalise, read_image
from hmsa.engine import segmenter
from hmsa.network import InferenceOptions, ModelError, build_model
from hmsa.network.inference import predict
from hmsa.network.model import PairBias
from hmsa.utils.words import UserError


def small(multiscale: str = "hierarchical") -> Any:
    return build_model(
        trunk="resnet18",
        decoder="fcn",
        decoder_channels=8,
        attention_channels=8,
        output_stride=16,
        multiscale=multiscale,
        num_classes=3,
    ).eval()


@pytest.fixture(scope="module")
def model() -> hmsa.Segmenter:
    return hmsa.Segmenter.from_model(small(), classes=["sky", "road", "pole"])


@pytest.fixture(scope="module")
def photo(street: Path) -> Path:
    return street / "images" / "val" / "val_0.png"


def test_import_is_light_and_everything_is_there() -> None:
    program = "import sys, hmsa; print(hmsa.__version__, 'torch' in sys.modules); hmsa.load"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split()[1:] == ["False"] and done.returncode == 0, done.stderr
    assert set(hmsa.__all__) <= set(dir(hmsa))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        hmsa.lod  # noqa: B018


def test_every_form_of_an_image_gives_the_same(model: hmsa.Segmenter, photo: Path) -> None:
    array = read_image(photo)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    options = InferenceOptions(scales=(0.5, 1.0))
    expected = predict(model.model, normalise(tensor[None]), options).logits[0]
    forms = [photo, str(photo), array, Image.open(photo), tensor, tensor[None], tensor / 255]
    for form in forms:
        label, confidence = model.predict(form)
        assert label.dtype == np.uint8 and np.array_equal(label, expected.argmax(0).numpy())
        np.testing.assert_allclose(confidence, expected.softmax(0).amax(0).numpy(), atol=1e-5)
    grey = model.predict(array[..., 0])
    assert np.array_equal(grey.label, model.predict(np.repeat(array[..., :1], 3, 2)).label)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), r"uint8 \[H, W, 3\] .* not float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixel"),
        (torch.zeros(2, 3, 4, 4), r"one image \[3, H, W\], not \[2, 3, 4, 4\]"),
        (torch.full((3, 4, 4), 2.0), "from 0 to 1, not 2 to 2; it must not be normalised"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "uint8 or floating point, not torch.int32"),
        (7, "not of type int"),
        ("absent.jpg", "absent.jpg"),
    ],
)
def test_what_is_no_image_is_said(model: hmsa.Segmenter, image: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        model.predict(image)


def test_options_and_attention(model: hmsa.Segmenter, photo: Path) -> None:
    plain, flipped = model.predict(photo), model.predict(photo, flip=True, scales=[1.0, 2.0])
    assert plain.attention is None
    assert not np.array_equal(plain.confidence, flipped.confidence)
    attention = model.predict(photo, attention=True).attention
    assert attention is not None and set(attention) == {0.5, 1.0}
    np.testing.assert_allclose(sum(attention.values()), 1, atol=1e-6)
    assert np.isfinite(model.predict(photo, tile=(64, 64)).confidence).all()
    with pytest.raises(ModelError, match="scale"):
        model.predict(photo, scales=[-1.0])


def test_pictures_and_files(model: hmsa.Segmenter, photo: Path, tmp_path: Path) -> None:
    found = model.predict(photo)
    assert found.colours().shape == found.overlay().shape == (64, 96, 3)
    assert sum(found.shares().values()) == pytest.approx(1)
    assert found.mask("road").sum() == round(found.shares().get("road", 0) * found.label.size)
    saved = np.asarray(Image.open(found.save(tmp_path / "ids.png", "labels")))
    assert np.array_equal(saved, found.raw_label())
    for kind in ("colours", "overlay", "confidence"):
        assert found.save(tmp_path / f"{kind}.png", kind).is_file()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="end the name in .png"):
        found.save(tmp_path / "x.jpg")
    with pytest.raises(UserError, match="did you mean 'colours'"):
        found.save(tmp_path / "x.png", "colors")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="road"):
        found.mask("rode")


def test_everything_prints_in_a_line(model: hmsa.Segmenter, photo: Path) -> None:
    shown = [repr(model), repr(model.model), repr(model.predict(photo))]
    shown.append(repr(model.model(torch.zeros(1, 3, 64, 64), keep_scales=True)))
    assert all("\n" not in text and len(text) < 200 for text in shown), shown
    assert "Hierarchical(ResNet + FCN, 3 classes" in shown[0] and "scales {0.5, 1}" in shown[3]


def test_a_saved_model_is_the_same_model(
    model: hmsa.Segmenter, photo: Path, tmp_path: Path
) -> None:
    model.model.attention_bias = {(0.5, 1.0): PairBias((0.25,))}
    model.save_pretrained(tmp_path / "saved")
    again = hmsa.Segmenter.from_pretrained(tmp_path / "saved", device="cpu")
    also = hmsa.load(tmp_path / "saved")
    expected = model.predict(photo).confidence
    model.model.attention_bias = {}
    for loaded in (again, also):
        assert np.array_equal(loaded.predict(photo).confidence, expected)
        assert loaded.spec == model.spec and loaded.config == model.config
        assert loaded.model.attention_bias == {(0.5, 1.0): PairBias((0.25,))}
    described = json.loads((tmp_path / "saved" / "config.json").read_text())["hmsa"]
    assert described["config"]["model"]["trunk"] == "resnet18"
    with pytest.raises(UserError, match="no option devise"):
        hmsa.Segmenter.from_pretrained(tmp_path / "saved", devise="cpu")


def test_a_run_is_loaded_and_said_where_there_is_none(trained: Path, photo: Path) -> None:
    by_run, by_file = hmsa.load(trained), hmsa.load(trained / "checkpoints" / "best.pt")
    assert by_run.classes == ("sky", "road", "pole")
    assert np.array_equal(by_run.predict(photo).label, by_file.predict(photo).label)
    for source, words in (("absent.pt", "absent.pt"), (trained / "tensorboard", "best.pt")):
        with pytest.raises(UserError, match=words):
            hmsa.load(source)
    with pytest.raises(UserError, match="'gpu' is not known; choose auto, cpu or cuda"):
        hmsa.load(trained, device="gpu")


def test_push_to_hub_sends_the_folder(
    model: hmsa.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixin = pytest.importorskip("huggingface_hub.hub_mixin")
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, **options: Any) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Any, **options: Any) -> str:
            sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}
            return "https://hub/commit"

    monkeypatch.setattr(mixin, "HfApi", Api)
    model.push_to_hub("me/streets")
    assert sent == {"me/streets": {"config.json", "model.safetensors", "README.md"}}


def test_what_the_hub_has_is_loaded(
    model: hmsa.Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    model.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options["revision"]))
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    loaded = hmsa.Segmenter.from_pretrained("me/streets", revision="v1")
    assert loaded.classes == model.classes
    assert ("me/streets", "model.safetensors", "v1") in asked


def test_without_the_library_of_the_hub_folders_still_work(
    model: hmsa.Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = importlib.util.spec_from_file_location("hmsa.engine.alone", segmenter.__file__)
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    other = alone.Segmenter.from_model(model.model, classes=model.spec)
    other.save_pretrained(tmp_path)
    assert alone.Segmenter.from_pretrained(tmp_path).classes == model.classes
    for use in (other.push_to_hub, alone.Segmenter.from_pretrained):
        with pytest.raises(UserError, match="pip install huggingface_hub"):
            use("me/streets")


def test_a_model_that_cannot_be_described_is_refused() -> None:
    with pytest.raises(ModelError, match="3 classes and 2 were named"):
        hmsa.Segmenter.from_model(small(), classes=["a", "b"])
    own = small("single")
    own.built_with = None
    with pytest.raises(ModelError, match="parts of one's own"):
        hmsa.Segmenter.from_model(own, classes=["a", "b", "c"])
