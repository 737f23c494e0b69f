"""What a command may be given as a model, and the file on this machine that it stands for.

That is a run folder, a checkpoint, a folder of `save_pretrained`, a name of published weights, a
file of the authors or of HRNet-OCR, or `hf:owner/name`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hmsa.datasets import CITYSCAPES, MAPILLARY, ClassInfo, DatasetSpec
from hmsa.datasets.augment.normalisation import MEAN, STD
from hmsa.datasets.spec import spread_color
from hmsa.network import ModelError
from hmsa.network.weights.pretrained import WEIGHTS, resolve_weights
from hmsa.network.weights.recognition import Recognised
from hmsa.utils.config import Config
from hmsa.utils.files.regular import read_regular
from hmsa.utils.training.checkpoint import CheckpointError
from hmsa.utils.words import did_you_mean, reason_of

HUB = "hf:"
DESCRIPTION = "config.json"
TENSORS = "model.safetensors"
KEY = "hmsa"  # under which a file of others' formats carries our description
MOST_BYTES = 1 << 24  # of a description

# Classes that come with the package, by their number: what published weights were trained for.
PUBLISHED_CLASSES = {CITYSCAPES.num_classes: CITYSCAPES, MAPILLARY.num_classes: MAPILLARY}


def model_file(named: str | Path) -> Path:
    """The file of weights that `named` stands for; published ones are fetched once.

    Raises:
        UserError: there is no such file, folder or name, or it cannot be fetched.
    """
    text = os.fspath(named)
    if text.startswith(HUB):
        return _from_hub(text) / TENSORS
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / DESCRIPTION).is_file() and (path / TENSORS).is_file():
            return path / TENSORS
        return best_of_run(path)
    if path.exists():
        return path

    # Names of published weights come after files, which may be called alike.
    whole_models = [name for name, weights in WEIGHTS.items() if weights.trunk is None]
    if text in whole_models:
        return resolve_weights(text, trunk="")
    near = did_you_mean(text, whole_models)
    raise CheckpointError(f"{path}: no such checkpoint file{near}")


def best_of_run(folder: Path) -> Path:
    """The checkpoint to use of a run folder, or of its folder of checkpoints.

    Raises:
        CheckpointError: there is no best.pt in it.
    """
    for path in (folder / "checkpoints" / "best.pt", folder / "best.pt"):
        if path.is_file():
            return path
    raise CheckpointError(
        f"{folder}: is a folder without checkpoints/best.pt; name a run whose training has been "
        f"validated once, a folder with {DESCRIPTION} and {TENSORS}, or a checkpoint file"
    )


def _from_hub(text: str) -> Path:
    """The folder that holds what the Hugging Face Hub has as hf:owner/name or hf:owner/name@REV."""
    name, _, revision = text.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise CheckpointError(f"{text}: a model of the hub is named {HUB}owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{text} needs the library of the hub: pip install huggingface_hub"
        ) from error

    # The library has errors of many kinds for what does not exist, needs a login or is not reached.
    offline = os.environ.get("HMSA_OFFLINE", "") not in ("", "0")
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[DESCRIPTION, TENSORS],
            local_files_only=offline,
        )
    except Exception as error:
        raise CheckpointError(
            f"{text}: cannot be fetched ({type(error).__name__}: {reason_of(error)}); check the "
            "name and the connection, or give the path of a folder that holds it"
        ) from error
    if not (Path(folder) / TENSORS).is_file():
        raise CheckpointError(
            f"{text}: holds no {TENSORS}; name a model that save_pretrained of hmsa has written"
        )
    return Path(folder)


# --- what a file says about itself ---


def description(
    config: Config, spec: DatasetSpec, attention_bias: Sequence[Sequence[Any]] = ()
) -> dict[str, Any]:
    """All that makes weights usable alone, as plain values.

    It stands under "hmsa" in `config.json` beside the weights, and in the metadata of safetensors.
    """
    values: dict[str, Any] = {
        "config": config.to_dict(),
        "spec": spec.to_dict(),
        "mean": list(MEAN),
        "std": list(STD),
    }
    if attention_bias:
        values["attention_bias"] = [list(row) for row in attention_bias]
    return values


def carried_description(path: Path) -> dict[str, Any] | None:
    """The description that a safetensors file carries, or that lies in `config.json` beside it.

    Raises:
        CheckpointError: there is one, and it is damaged or was trained for other input.
    """
    text = _metadata(path).get(KEY)
    place = f"{path}: metadata '{KEY}'"
    beside = path.with_name(DESCRIPTION)
    if text is None and path.name == TENSORS and beside.is_file():
        place = str(beside)
        text = _described_beside(beside)
    if text is None:
        return None

    try:
        values = json.loads(text)
        if not all(isinstance(values[key], dict) for key in ("config", "spec")):
            raise ValueError("its config and spec must be objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{place}: damaged ({type(error).__name__}: {error}); write the file again"
        ) from error
    for name, ours in (("mean", MEAN), ("std", STD)):
        if list(values.get(name, ours)) != list(ours):
            raise CheckpointError(
                f"{place}: {name} {values[name]} is not {list(ours)}, which images are normalised "
                "by here"
            )
    return dict(values)


def _described_beside(path: Path) -> str | None:
    """The text under "hmsa" in a config.json; None where it has none."""
    try:
        values = json.loads(read_regular(path)[:MOST_BYTES])
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); write it again") from error
    if not isinstance(values, dict) or KEY not in values:
        return None
    return json.dumps(values[KEY])


def _metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file; empty for files of other kinds.

    Format: eight bytes with the length of a header in JSON, then that header
    (https://github.com/huggingface/safetensors#format).
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MOST_BYTES:
                return {}
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(header, dict):
        return {}
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does."""
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
    except OSError:
        return False
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 2**32


# --- files that say nothing about themselves ---


def configuration_of(found: Recognised, overrides: Sequence[str], *, source: str) -> Config:
    """The configuration of recognised weights: their network, and how it is best used."""
    data: dict[str, Any] = {"dataset": "folder"}
    if found.num_classes == CITYSCAPES.num_classes:
        data = {"dataset": "cityscapes", "root": "data/cityscapes"}
    elif found.num_classes == MAPILLARY.num_classes:
        data = {"dataset": "mapillary", "root": "data/mapillary"}

    # One scale for a network that was trained at one, as it was published.
    values: dict[str, Any] = {"data": data, "model": found.options}
    if found.options["multiscale"] == "single":
        values |= {"eval": {"scales": [1.0]}, "autolabel": {"scales": [1.0]}}
    return Config.from_dict(values, overrides, source=source)


def classes_by_number(count: int) -> DatasetSpec:
    """Cityscapes' or Mapillary's classes by their number, else classes without names."""
    if count in PUBLISHED_CLASSES:
        return PUBLISHED_CLASSES[count]
    if count > 255:
        raise ModelError(f"the weights are for {count} classes, and at most 255 can be told apart.")
    classes = tuple(
        ClassInfo(f"class {number}", spread_color(number), (number,)) for number in range(count)
    )
    return DatasetSpec(f"{count} classes", classes)
