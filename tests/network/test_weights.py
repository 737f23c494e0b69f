"""Checkpoints of every kind load completely or say in one sentence why not; none runs code."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from hmsa.network import ModelError, build_model, load_trunk_weights, load_weights
from hmsa.network.weights.key_names import AUTHORS_OCR, from_authors
from tests.network.authors_names import to_authors

NARROW = {
    "decoder_channels": 16,
    "attention_channels": 8,
}  # names and their number are those of the published widths
HRNET = {"trunk": "hrnet_w18_small", "decoder": "ocr", **NARROW}
RESNET = {"trunk": "resnet18", "decoder": "deeplabv3plus", **NARROW}


def model_of(parts: dict, *, multiscale: str = "hierarchical", num_classes: int = 4, **options):
    return build_model(**parts, multiscale=multiscale, num_classes=num_classes, **options)


def authors_state(model) -> dict[str, torch.Tensor]:
    return to_authors(model.state_dict(), multiscale=model.multiscale)


def assert_equal_weights(model, other) -> None:
    for (key, one), two in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), key


def save_authors_checkpoint(path, model, **extra) -> None:
    state = {f"module.{key}": value for key, value in authors_state(model).items()}
    torch.save({"epoch": 3, "arch": "x", "state_dict": state, "command": "train.py", **extra}, path)


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "hierarchical_dual", "explicit"])
@pytest.mark.parametrize("parts", [HRNET, RESNET], ids=["hrnet", "resnet"])
def test_the_authors_checkpoints(tmp_path, multiscale, parts):
    source, model = model_of(parts, multiscale=multiscale), model_of(parts, multiscale=multiscale)
    save_authors_checkpoint(tmp_path / "a.pth", source)
    report = load_weights(model, tmp_path / "a.pth")
    assert report.kind == "authors"
    assert_equal_weights(model, source)


def test_names_go_both_ways():
    for parts in (HRNET, RESNET):
        for options in (
            {},
            {"multiscale": "explicit"},
            {"multiscale": "explicit", "explicit_batchnorm": False},
        ):
            state = model_of(parts, **options).state_dict()
            theirs = to_authors(state, multiscale=options.get("multiscale", "hierarchical"))
            assert not any(key.startswith(("trunk.", "decoder.", "attention.")) for key in theirs)
            assert list(from_authors(theirs)) == list(state)


def test_numpy_numbers_under_both_names(tmp_path):
    """The authors' files carry NumPy scalars, pickled by NumPy 1 or 2 (numpy.core, numpy._core)."""
    source = model_of(RESNET)
    path = tmp_path / "new.pth"
    save_authors_checkpoint(
        path, source, mean_iu=np.float64(0.85), __metric=np.float32(0.5), count=np.int64(3)
    )
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(old, "w") as written:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
                content = content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
            written.writestr(name, content)
    for file in (path, old):
        model = model_of(RESNET)
        load_weights(model, file)
        assert_equal_weights(model, source)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran_code",)


@pytest.mark.parametrize("wrap", [lambda evil: {"state_dict": {}, "x": evil}, lambda evil: evil])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, wrap):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Evil()), "evil.pth")
    for protocol in (2, 5):
        with open(f"plain{protocol}.pth", "wb") as file:
            pickle.dump(wrap(Evil()), file, protocol=protocol)
    for name in ("evil.pth", "plain2.pth", "plain5.pth"):
        with pytest.raises(ModelError, match=f"{name}.*would run code") as caught:
            load_weights(model_of(RESNET), name)
        assert "\n" not in str(caught.value)
        assert ("mkdir" in str(caught.value)) == (
            name != "plain5.pth"
        )  # PyTorch's reader stops before it has the name
    assert not (tmp_path / "ran_code").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02}q\x00."]
)
def test_damaged_files_are_one_sentence(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="weights.pth") as caught:
        load_weights(model_of(RESNET), path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "weights.pth"
    save_authors_checkpoint(path, model_of(RESNET))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="damaged"):
        load_weights(model_of(RESNET), path)
    with pytest.raises(ModelError, match="is not a file"):
        load_weights(model_of(RESNET), tmp_path / "absent.pth")


@functools.cache
def small_model():
    """A model that no test changes."""
    return model_of({"trunk": "resnet18", "decoder": "fcn"}, multiscale="single")


def nothing_loaded(source, match, *, strict=True):
    """Both ways of loading refuse `source` in one sentence and change nothing."""
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loads = (
        lambda: load_weights(model, source, strict=strict, say=lambda text: None),
        lambda: load_trunk_weights(model.trunk, source),
    )
    for load in loads:
        with pytest.raises(ModelError, match=match) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Log in</html>", "is a web page"),
        (b"\xef\xbb\xbf\n <HTML><body>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "pointer of Git LFS"),
        ("größe: 12\n".encode(), "is text"),
        (b'{"layer": [1, 2]}', "is text"),
        (b"\0" * 4096, "damaged"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "damaged"),
        (b"PK\x03\x04" + b"\0" * 600, "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file_of_weights_is_named(tmp_path, content, match, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    nothing_loaded(path, f"weights{suffix}.*{match}")


@pytest.mark.parametrize("place", ["folder", "fifo", "zero", "absent", "long", "nul"])
def test_what_is_no_file_is_named(tmp_path, place):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    path = {"zero": "/dev/zero", "long": tmp_path / ("n" * 300), "nul": "a\0b"}.get(
        place, tmp_path / place
    )
    nothing_loaded(path, "is a folder" if place == "folder" else "is not a file")


def changed(change) -> dict[str, torch.Tensor]:
    """The state dict of a model with one tensor changed."""
    state = small_model().state_dict()
    key = "trunk.layer1.0.conv1.weight"
    return {**state, key: change(state[key].clone())}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensor: tensor.fill_(torch.nan), "NaN or infinite in 1 tensors"),
        (lambda tensor: tensor.index_fill_(0, torch.tensor(3), torch.inf), "NaN or infinite"),
        (lambda tensor: tensor.double() * 1e300, "NaN or infinite"),
        (lambda tensor: tensor.to_sparse(), "sparse or nested"),
        (lambda tensor: tensor.to_sparse_coo(), "sparse or nested"),
        (lambda tensor: torch.complex(tensor, tensor), "complex64, not floating point"),
        (lambda tensor: (100 * tensor).to(torch.int8), "int8, not floating point"),
        (lambda tensor: tensor > 0, "bool, not floating point"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "qint8"),
        (lambda tensor: tensor.to("meta"), "without values"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_a_model_does_not_have_are_named(tmp_path, change, match, strict, on_disk):
    source = changed(change)
    if on_disk:
        torch.save({"model": source}, tmp_path / "weights.pth")
        source, match = tmp_path / "weights.pth", f"weights.pth.*({match}|damaged)"
    nothing_loaded(source, match, strict=strict)


def test_half_precision_and_wide_numbers_are_taken(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = model_of({"trunk": "resnet18", "decoder": "fcn"}, multiscale="single")
        load_weights(model, changed(lambda tensor, dtype=dtype: tensor.to(dtype)))


def test_a_number_that_is_none_in_a_layer_that_is_left_out_is_no_fault():
    """Fine-tuning leaves class layers out, and their numbers with them."""
    parts = {"trunk": "resnet18", "decoder": "fcn"}
    state = model_of(parts, multiscale="single", num_classes=7).state_dict()
    state = {
        key: value * torch.nan if value.shape[:1] == (7,) else value for key, value in state.items()
    }
    load_weights(model_of(parts, multiscale="single"), state, strict=False, say=lambda text: None)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_dict_that_holds_itself_is_named(tmp_path, on_disk):
    itself = {}
    itself["model"] = itself
    ring = {"state_dict": {"model": {}}}
    ring["state_dict"]["model"]["model_dict"] = ring
    for number, source in enumerate((itself, ring)):
        if on_disk:
            path = tmp_path / f"{number}.pth"
            torch.save(source, path)
            source = path
        nothing_loaded(source, "holds a dict that holds itself")


def hrnet_ocr_state(model) -> dict[str, torch.Tensor]:
    """Flat, as HRNet-OCR's own repository names them."""
    return {
        key.removeprefix("backbone.").removeprefix("ocr."): value
        for key, value in authors_state(model).items()
    }


@pytest.mark.parametrize("prefix", ["", "model."])
def test_hrnet_ocrs_own_checkpoints_demand_aligned_corners(tmp_path, prefix):
    source = model_of(HRNET, multiscale="single")
    state = {prefix + key: value for key, value in hrnet_ocr_state(source).items()}
    torch.save({**state, "loss.criterion.weight": torch.ones(4)}, tmp_path / "best.pth")
    model = model_of(HRNET, multiscale="single", align_corners=True)
    assert load_weights(model, tmp_path / "best.pth").kind == "hrnet_ocr"
    assert_equal_weights(model, source)
    with pytest.raises(ModelError, match="align_corners=True"):
        load_weights(model_of(HRNET, multiscale="single"), tmp_path / "best.pth")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "step": 5}, lambda s: {"state_dict": s}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_our_own_and_bare_state_dicts(tmp_path, wrap, prefix):
    source, model = model_of(RESNET), model_of(RESNET)
    torch.save(
        wrap({prefix + key: value for key, value in source.state_dict().items()}),
        tmp_path / "ours.pt",
    )
    assert load_weights(model, tmp_path / "ours.pt").kind == "ours"
    assert_equal_weights(model, source)


def test_buffers_of_the_loss_are_ignored():
    source, model = model_of(RESNET), model_of(RESNET)
    report = load_weights(model, {**source.state_dict(), "criterion.weight": torch.ones(4)})
    assert report.unexpected == ()
    state = {f"module.{key}": value for key, value in authors_state(source).items()}
    assert (
        load_weights(
            model, {"state_dict": {**state, "module.criterion.nll.weight": torch.ones(4)}}
        ).unexpected
        == ()
    )


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, model = model_of(RESNET), model_of(RESNET)
    safetensors.save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert_equal_weights(model, source)
    for content in (b"\x07\0\0\0\0\0\0\0nothing", (tmp_path / "w.safetensors").read_bytes()[:-1]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="bad.safetensors is damaged"):
            load_weights(model, tmp_path / "bad.safetensors")


def test_the_contents_of_a_file_say_what_it_is_not_its_name(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source = model_of(RESNET)
    safetensors.save_file(source.state_dict(), tmp_path / "w.pth")
    torch.save(source.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        model = model_of(RESNET)
        load_weights(model, tmp_path / name)
        assert_equal_weights(model, source)


def test_a_trunk_file_fills_the_trunk_and_leaves_the_heads():
    import torchvision

    source = torchvision.models.resnet18(weights=None)
    model = model_of(RESNET)
    before = model.decoder.state_dict()["head.output.weight"].clone()
    report = load_weights(model, source.state_dict())
    assert report.kind == "trunk" and report.fraction == 1
    assert torch.equal(model.trunk.conv1.weight, source.conv1.weight)
    assert torch.equal(model.decoder.head.output.weight, before)


def test_old_files_without_batch_counters_are_complete():
    source, model = model_of(RESNET), model_of(RESNET)
    state = {
        key: value
        for key, value in source.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert load_weights(model, state).missing == ()


def test_another_number_of_classes_names_both_numbers():
    source = model_of(HRNET, num_classes=65)
    with pytest.raises(
        ModelError, match="65 classes and the model has 19.*num_classes=65"
    ) as caught:
        load_weights(model_of(HRNET, num_classes=19), source.state_dict())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: state.pop("trunk.conv1.weight"),
            r"1 missing from it \(trunk.conv1.weight\)",
        ),
        (
            lambda state: state.update({"trunk.extra": torch.ones(1)}),
            r"1 unexpected \(trunk.extra\)",
        ),
        (
            lambda state: state.update({"trunk.conv1.weight": torch.ones(3)}),
            r"1 of another shape \(trunk.conv1.weight\)",
        ),
    ],
)
def test_strict_loading_names_what_does_not_fit_and_changes_nothing(change, message):
    model = model_of(RESNET)
    state = model_of(RESNET).state_dict()
    change(state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_architectures_are_refused():
    with pytest.raises(ModelError, match="does not fit the model"):
        load_weights(model_of(RESNET), {"state_dict": authors_state(model_of(HRNET))})
    with pytest.raises(ModelError, match="does not fill the trunk"):
        load_weights(
            model_of({"trunk": "resnet18", "decoder": "fcn"}), model_of(HRNET).trunk.state_dict()
        )
    with pytest.raises(ModelError, match="of no kind known here"):
        load_weights(model_of(RESNET), {"embedding.weight": torch.ones(3)})


def test_fine_tuning_skips_exactly_the_class_and_attention_layers(capsys):
    """Mapillary (65 classes, no attention) to Cityscapes (19 classes, attention)."""
    source = model_of(HRNET, multiscale="single", num_classes=65)
    model = model_of(HRNET, multiscale="hierarchical", num_classes=19)
    state = {"state_dict": {f"module.{key}": value for key, value in authors_state(source).items()}}
    report = load_weights(model, state, strict=False)
    theirs = dict(
        zip(
            model.state_dict(),
            to_authors(model.state_dict(), multiscale="hierarchical"),
            strict=True,
        )
    )
    skipped = {theirs[key] for key in report.skipped}
    assert skipped == {
        key
        for key in theirs.values()
        if key.startswith(("ocr.cls_head.", "ocr.aux_head.2.", "scale_attn."))
    }
    assert report.unexpected == ()
    assert torch.equal(model.trunk.conv1.weight, source.trunk.conv1.weight)
    printed = capsys.readouterr().out
    assert f"loaded     {len(report.loaded):>5}" in printed
    assert (
        "reshaped" in printed
        and "skipped       17" in printed
        and "attention.hidden.* 12" in printed
    )


def test_fine_tuning_reshapes_what_differs_by_ones():
    source, model = model_of(HRNET), model_of(HRNET)
    state = source.state_dict()
    state["decoder.classifier.weight"] = state["decoder.classifier.weight"][:, :, 0, 0]
    report = load_weights(model, state, strict=False, say=lambda text: None)
    assert report.reshaped == ("decoder.classifier.weight",)
    assert_equal_weights(model, source)


def test_fine_tuning_fails_below_the_set_fraction_and_changes_nothing():
    model = model_of(HRNET)
    state = {
        key: value
        for key, value in model_of(HRNET).state_dict().items()
        if not key.startswith("trunk.stage")
    }
    before = model.trunk.conv1.weight.clone()
    with pytest.raises(ModelError, match="less than the 50 % asked for"):
        load_weights(model, state, strict=False, say=lambda text: None)
    assert torch.equal(model.trunk.conv1.weight, before)
    load_weights(model, state, strict=False, min_fraction=0.1, say=lambda text: None)
    assert not torch.equal(model.trunk.conv1.weight, before)


def test_no_two_of_the_authors_names_collide():
    theirs, ours = zip(*AUTHORS_OCR, strict=True)
    assert len(set(theirs)) == len(theirs) and len(set(ours)) == len(ours)
