"""Any weights predict any image: from the authors' file to a folder of save_pretrained."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa.datasets import CITYSCAPES, MAPILLARY, DatasetSpec, normalise
from hmsa.datasets.layouts.mapillary import load_mapillary_spec
from hmsa.engine import build, model_source
from hmsa.engine.arguments import autolabel_command, predict_command
from hmsa.engine.arguments import convert_command as convert
from hmsa.network import build_model
from hmsa.network.inference import InferenceOptions, predict_label
from hmsa.utils.training.checkpoint import CheckpointError
from tests.datasets.trees import photo, save
from tests.network.authors_names import to_authors

safetensors = pytest.importorskip("safetensors.torch")
SMALL = {"trunk": "hrnet_w18_small", "decoder": "ocr", "multiscale": "hierarchical"}
SCALES = ["--scales", "0.5", "1"]


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file as the authors write theirs: their names, a NumPy number beside them."""
    torch.manual_seed(3)
    model = build_model(num_classes=19, **SMALL)
    state = to_authors(dict(model.state_dict()), multiscale="hierarchical")
    path = tmp_path_factory.mktemp("authors") / "turtle.pth"
    content = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save({**content, "mean_iu": np.float64(0.8)}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save(tmp_path / "photos/a.png", photo((64, 96)))
    return tmp_path / "photos"


def load(path: Path) -> build.Loaded:
    return build.load_model(path, config_file=None, overrides=(), device=torch.device("cpu"))


def test_the_authors_file_predicts_and_labels_without_any_data_set(
    authors: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert predict_command([str(authors), str(photos), "--output", str(output), *SCALES]) == 0
    legend = json.loads((output / "classes.json").read_text())
    assert [item["name"] for item in legend] == list(CITYSCAPES.names)

    # The picture holds what the network says, in Cityscapes' ids.
    loaded = load(authors)
    image = torch.from_numpy(photo((64, 96))).permute(2, 0, 1)[None]
    options = InferenceOptions(scales=(0.5, 1.0))
    label, _ = predict_label(loaded.model, normalise(image), options)
    written = np.asarray(Image.open(output / "labels/a.png"))
    assert np.array_equal(written, CITYSCAPES.to_raw[label[0].numpy()])

    labels = tmp_path / "labels"
    words = ["--checkpoint", str(authors), "--images", str(photos), "--output", str(labels)]
    assert autolabel_command([*words, "--threshold", "0", *SCALES]) == 0
    automatic = np.asarray(Image.open(next(labels.rglob("a*.png"))))
    assert np.array_equal(automatic, written)


def test_converted_weights_are_usable_alone(
    authors: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As safetensors, as a checkpoint, as a folder of save_pretrained, and from the hub."""
    expected = load(authors)
    files = [tmp_path / "ours.safetensors", tmp_path / "ours.pt"]
    for file in files:
        assert convert([str(authors), str(file)]) == 0

    folder = tmp_path / "pretrained"
    folder.mkdir()
    tensors = {key: value.contiguous() for key, value in expected.model.state_dict().items()}
    safetensors.save_file(tensors, folder / "model.safetensors")
    described = model_source.description(expected.config, expected.spec)
    (folder / "config.json").write_text(json.dumps({"hmsa": described}))

    hub = types.ModuleType("huggingface_hub")
    asked = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append(name)
        return str(folder)

    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for place in (*files, folder, Path("hf:owner/name")):
        loaded = load(place)
        assert (loaded.config, loaded.spec) == (expected.config, expected.spec)
        found = loaded.model.state_dict()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert asked == ["owner/name"]

    metadata = model_source.carried_description(files[0])
    assert metadata is not None and metadata["mean"] == [0.485, 0.456, 0.406]


def test_names_of_published_weights_stand_for_their_file(
    authors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path))
    name = "cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth"
    with pytest.raises(Exception, match=f"save it as {tmp_path}"):
        model_source.model_file(name)
    (tmp_path / name).write_bytes(authors.read_bytes())
    assert model_source.model_file(name) == tmp_path / name


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("hrnet_ocr_cs_8162_torch.pth", "did you mean 'hrnet_ocr_cs_8162_torch11.pth'"),
        ("hf:name", "is named hf:owner/name"),
        ("folder", "without checkpoints/best.pt"),
        ("mean.safetensors", "mean .* is not"),
        ("damaged.safetensors", "metadata 'hmsa': damaged"),
    ],
)
def test_what_is_no_model_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    weights = {"a": torch.zeros(1)}
    described = {"config": {}, "spec": {}, "mean": [0, 0, 0]}
    safetensors.save_file(weights, "mean.safetensors", metadata={"hmsa": json.dumps(described)})
    safetensors.save_file(weights, "damaged.safetensors", metadata={"hmsa": "{"})
    with pytest.raises(CheckpointError, match=said):
        load(Path(named))


def test_classes_follow_from_their_number() -> None:
    assert model_source.classes_by_number(19) is CITYSCAPES
    assert model_source.classes_by_number(65) is MAPILLARY
    spec = model_source.classes_by_number(4)
    assert isinstance(spec, DatasetSpec) and spec.names == tuple(f"class {i}" for i in range(4))


def test_mapillarys_classes_are_those_of_its_package(tmp_path: Path) -> None:
    """The spec that comes with hmsa is the one that a config.json of these entries gives."""
    entries = [
        {
            "name": f"{item.category}--{number}",
            "readable": item.name.replace("_", " "),
            "color": item.color,
            "instances": item.has_instances,
        }
        for number, item in enumerate(MAPILLARY.classes)
    ]
    entries.append({"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0]})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"labels": entries}))
    assert load_mapillary_spec(path) == (MAPILLARY, "1.2")
    assert MAPILLARY.num_classes == 65 and len(set(MAPILLARY.names)) == 65
