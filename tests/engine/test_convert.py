"""Weights survive every conversion, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hmsa.engine.arguments import convert_command as main
from hmsa.network import build_model, load_weights
from hmsa.utils.config import Config
from hmsa.utils.training.checkpoint import FORMAT
from tests.datasets.trees import toy_spec

safetensors = pytest.importorskip("safetensors.torch")
SMALL = ["--trunk", "hrnet_w18_small", "--decoder", "ocr"]


def small(multiscale: str = "hierarchical", **options: object) -> nn.Module:
    torch.manual_seed(7)
    return build_model(
        trunk="hrnet_w18_small", decoder="ocr", multiscale=multiscale, num_classes=6, **options
    )  # type: ignore[arg-type]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_to_safetensors_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "ours.pt")
    assert main([str(tmp_path / "ours.pt"), str(tmp_path / "ours.safetensors"), *SMALL]) == 0
    assert equal(safetensors.load_file(tmp_path / "ours.safetensors"), dict(model.state_dict()))
    assert main([str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth"), *SMALL]) == 0
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True), dict(model.state_dict()))
    assert f"{len(model.state_dict())} tensors" in capsys.readouterr().out
    fresh = small()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    load_weights(fresh, tmp_path / "ours.safetensors")
    assert equal(dict(fresh.state_dict()), dict(model.state_dict()))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "back.pth",
        "ours.pt",
        "ours.safetensors",
    ]


def test_a_checkpoint_of_a_training_says_itself_what_model_it_is(tmp_path: Path) -> None:
    """Widths and heads that no option of this script names."""
    options = {
        "trunk": "hrnet_w18_small",
        "decoder": "ocr",
        "decoder_channels": 24,
        "attention_channels": 8,
        "head": "paper",
    }
    model = build_model(num_classes=3, **options)  # type: ignore[arg-type]
    spec = toy_spec(3).to_dict()
    content = {
        "format": FORMAT,
        "model": model.state_dict(),
        "config": Config.from_dict({"model": options}).to_dict(),
        "spec": spec,
    }
    torch.save(content, tmp_path / "best.pt")
    assert main([str(tmp_path / "best.pt"), str(tmp_path / "best.safetensors")]) == 0
    assert equal(safetensors.load_file(tmp_path / "best.safetensors"), dict(model.state_dict()))
    assert main([str(tmp_path / "best.pt"), str(tmp_path / "trunk.pth"), "--trunk-only"]) == 0
    assert equal(
        torch.load(tmp_path / "trunk.pth", weights_only=True), dict(model.trunk.state_dict())
    )


def authors_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict by the authors' names, with the prefix of their checkpoints."""
    from hmsa.network.weights import key_names

    result = {}
    for name, value in model.state_dict().items():
        pairs = [*key_names.AUTHORS_OCR, *key_names.ATTENTION_HEADS["scale_attn.conv2.weight"]]
        theirs = next(
            their + name.removeprefix(our) for their, our in pairs if name.startswith(our)
        )
        result["module." + theirs] = value
    return result


def test_a_checkpoint_of_the_authors_becomes_ours(tmp_path: Path) -> None:
    model = small()
    state = authors_names(model)
    assert "module.backbone.conv1.weight" in state and "module.scale_attn.conv2.weight" in state
    torch.save(
        {"state_dict": state, "epoch": 1, "arch": "ocrnet.HRNet_Mscale"}, tmp_path / "authors.pth"
    )
    assert main([str(tmp_path / "authors.pth"), str(tmp_path / "ours.safetensors"), *SMALL]) == 0
    assert equal(safetensors.load_file(tmp_path / "ours.safetensors"), dict(model.state_dict()))


def test_trunks_are_written_by_the_names_of_their_imagenet_files(tmp_path: Path) -> None:
    model = small("single")
    trunk = {**model.trunk.state_dict(), "classifier.weight": torch.zeros(1000, 8)}
    torch.save(trunk, tmp_path / "imagenet.pth")
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    assert (
        main(
            [
                str(tmp_path / "imagenet.pth"),
                str(tmp_path / "a.safetensors"),
                "--trunk",
                "hrnet_w18_small",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                str(tmp_path / "whole.pth"),
                str(tmp_path / "b.safetensors"),
                *SMALL,
                "--multiscale",
                "single",
                "--trunk-only",
            ]
        )
        == 0
    )
    for name in ("a", "b"):
        assert equal(
            safetensors.load_file(tmp_path / f"{name}.safetensors"), dict(model.trunk.state_dict())
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*SMALL, "--multiscale", "single"], "does not fit the model"),
        (["--trunk", "hrnet_w18"], "does not fit the model"),
        (["--trunk", "hrnet_w18_smal"], "did you mean"),
    ],
)
def test_the_wrong_model_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    torch.save(small().state_dict(), tmp_path / "ours.pth")
    assert main([str(tmp_path / "ours.pth"), str(tmp_path / "out.safetensors"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
    assert [file.name for file in tmp_path.iterdir()] == ["ours.pth"]


def test_bad_files_and_endings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent.pth"), str(tmp_path / "out.pth")]) == 2
    assert "absent.pth: no such checkpoint file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["a.pth", "b.onnx"])
    assert "must end in .safetensors or .pt or .pth" in capsys.readouterr().err


def test_the_input_is_never_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However it is spelt; what is read stays as it was."""
    torch.save(small().state_dict(), tmp_path / "ours.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.pth").symlink_to(tmp_path / "ours.pth")
    before = (tmp_path / "ours.pth").read_bytes()
    for same in ("ours.pth", "folder/../ours.pth", "other.pth"):
        with pytest.raises(SystemExit) as caught:
            main([str(tmp_path / "ours.pth"), str(tmp_path / same), *SMALL])
        assert caught.value.code == 2
        assert "is the file to read; name another file to write" in capsys.readouterr().err
    assert (tmp_path / "ours.pth").read_bytes() == before


def test_a_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(small().state_dict(), tmp_path / "ours.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "folder.pth"), *SMALL])
    assert "folder.pth is a folder; name a file" in capsys.readouterr().err
    assert main([str(tmp_path / "ours.pth"), str(tmp_path / "ours.pth" / "x.pth"), *SMALL]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "x.pth" in error
