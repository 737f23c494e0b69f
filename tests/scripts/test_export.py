"""Exported files answer as the model does, at several sizes, for one scale and for several."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hmsa.datasets import ClassInfo, DatasetSpec
from hmsa.engine.arguments import export_command
from hmsa.engine.export import TOLERANCE, export_description, export_model
from hmsa.network import InferenceOptions, ModelError, build_model
from hmsa.network.inference import predict
from hmsa.utils.words import UserError

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(
    not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional"
)


def built(trunk: str, decoder: str, multiscale: str) -> nn.Module:
    torch.manual_seed(11)
    model = build_model(trunk=trunk, decoder=decoder, multiscale=multiscale, num_classes=5).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.uniform_(-0.1, 0.1)
    return model


# At odd sizes, where every level is rounded up; even ones are in the tests below.
CASES = [
    ("resnet18", "deeplabv3plus", "single", None, (81, 130)),
    ("hrnet_w18_small", "ocr", "hierarchical", (0.5, 1.0, 2.0), (65, 98)),
]


# Programs (.pt2) at two sizes each are in tests/network/test_export.py.
FILES = [
    *(pytest.param(".onnx", *case, marks=needs_onnx) for case in CASES),
    *((".pt2", *case) for case in CASES),
]


@pytest.mark.parametrize(("suffix", "trunk", "decoder", "multiscale", "scales", "size"), FILES)
def test_the_file_agrees_with_the_model(
    tmp_path: Path,
    suffix: str,
    trunk: str,
    decoder: str,
    multiscale: str,
    scales: tuple[float, ...] | None,
    size: tuple[int, int],
) -> None:
    difference = export_model(
        built(trunk, decoder, multiscale),
        output=tmp_path / f"model{suffix}",
        size=size,
        scales=scales,
    )
    assert 0 <= difference <= TOLERANCE
    assert (tmp_path / f"model{suffix}").stat().st_size > 1_000_000


@needs_onnx
def test_the_onnx_file_stands_alone(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = built("resnet18", "fcn", "hierarchical")
    export_model(model, output=tmp_path / "model.onnx", size=(64, 64), scales=(0.5, 1.0), batch=2)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    image = torch.randn(2, 3, 64, 64)
    logits = session.run(["logits"], {"image": image.numpy()})[0]
    with torch.no_grad():
        expected = model(image, scales=(0.5, 1.0)).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=TOLERANCE, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_height_and_width_of_a_program_can_be_left_open(tmp_path: Path) -> None:
    difference = export_model(
        built("resnet18", "deeplabv3plus", "single"),
        output=tmp_path / "model.pt2",
        size=(96, 128),
        dynamic=True,
    )
    assert difference <= TOLERANCE


def test_scales_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="single-scale model cannot fuse"):
        export_model(
            built("resnet18", "fcn", "single"),
            output=tmp_path / "model.pt2",
            size=(64, 64),
            scales=(0.5, 1.0),
        )
    assert not list(tmp_path.iterdir())


def test_command_line_refuses_other_endings_and_absent_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export_command(["--checkpoint", "a.pt", "--output", "model.tflite", "--size", "64", "64"])
    assert "must end in .onnx or .pt2" in capsys.readouterr().err
    assert (
        export_command(
            [
                "--checkpoint",
                str(tmp_path / "absent.pt"),
                "--output",
                str(tmp_path / "model.onnx"),
                "--size",
                "64",
                "64",
            ]
        )
        == 2
    )
    assert "absent.pt" in capsys.readouterr().err


def test_no_output_is_the_checkpoint_or_another_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.pt2").write_bytes(b"weights")
    size, output = ["--size", "64", "64"], ["--output", str(tmp_path / "best.pt2")]
    for words, sentence in (
        (["--checkpoint", str(tmp_path / "best.pt2"), *output, *size], "is the checkpoint to read"),
        (["--checkpoint", str(tmp_path / "best.pt"), *output, *output, *size], "one file twice"),
        (["--checkpoint", str(tmp_path / "best.pt"), *output, "--size", "0", "64"], "from 1 on"),
    ):
        with pytest.raises(SystemExit) as caught:
            export_command(words)
        assert caught.value.code == 2 and sentence in capsys.readouterr().err
    assert (tmp_path / "best.pt2").read_bytes() == b"weights"


def test_an_export_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    output = tmp_path / "model.pt2"
    output.write_bytes(b"an earlier export")
    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(UserError, match="model.pt2: cannot be written .No space left"):
        export_model(built("resnet18", "fcn", "single"), output=output, size=(64, 64))
    assert output.read_bytes() == b"an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


@needs_onnx
def test_an_open_onnx_file_names_its_axes_and_describes_itself(tmp_path: Path) -> None:
    import onnxruntime

    model = built("resnet18", "deeplabv3plus", "single")
    spec = DatasetSpec("mine", tuple(ClassInfo(f"class {n}", (n, 2, 3), (n,)) for n in range(5)))
    difference = export_model(
        model,
        output=tmp_path / "model.onnx",
        size=(64, 96),
        scales=(0.5, 1.0),
        dynamic=True,
        combine="average",
        description=export_description(spec, (0.5, 1.0)),
    )
    assert difference <= TOLERANCE
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (image,) = session.get_inputs()
    assert image.shape == ["batch", 3, "height", "width"]
    carried = json.loads(session.get_modelmeta().custom_metadata_map["hmsa"])
    assert carried["classes"][4] == "class 4" and carried["colours"][1] == [1, 2, 3]
    assert carried["scales"] == [0.5, 1.0] and len(carried["mean"]) == len(carried["std"]) == 3

    # Three images of another size, averaged over both scales as evaluation does.
    images = torch.randn(3, 3, 80, 112)
    logits = session.run(["logits"], {"image": images.numpy()})[0]
    expected = predict(model, images, InferenceOptions(scales=(0.5, 1.0))).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=TOLERANCE, rtol=0)


def test_a_program_describes_itself(tmp_path: Path) -> None:
    model, output = built("resnet18", "fcn", "single"), tmp_path / "model.pt2"
    export_model(model, output=output, size=(64, 64), description={"classes": ["a"]})
    extra = {"hmsa": ""}
    torch.export.load(output, extra_files=extra)
    assert json.loads(extra["hmsa"]) == {"classes": ["a"]}
