"""A trained model in Python: load it, predict an image, save it, share it.

import hmsa
model = hmsa.load("runs/mine")
label, confidence = model.predict("photo.jpg")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import ClassInfo, DataError, DatasetSpec, read_image, resize_long_edge
from hmsa.datasets.spec import spread_color
from hmsa.network import ModelError, MultiScaleModel
from hmsa.utils.config import Config
from hmsa.utils.files.writing import write_file, written_whole
from hmsa.utils.runtime import check_torch_version
from hmsa.utils.words import UserError

from . import build
from .build import Loaded
from .model_source import DESCRIPTION, KEY, TENSORS, description
from .pictures import Needs, attends, infer, share_maps
from .segmentation import Segmentation

REPOSITORY = "https://arxiv.org/abs/2005.10821"


class FolderMixin:
    """Stands for huggingface_hub's mixin where that library is not installed."""

    def __init_subclass__(cls, **information: Any) -> None:
        super().__init_subclass__()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> Any:
        """Write the model into a folder; to share it needs huggingface_hub."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Read a folder of `save_pretrained`; a name on the Hub needs huggingface_hub."""
        if Path(pretrained_model_name_or_path).is_dir():
            return load(pretrained_model_name_or_path, **options)
        raise _hub_is_missing()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Needs huggingface_hub."""
        raise _hub_is_missing()

    def _save_pretrained(self, save_directory: Path) -> None:
        raise NotImplementedError


def hub_mixin() -> type:
    """huggingface_hub's mixin, or where it is not installed what does the same with folders."""
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:
        return FolderMixin
    return PyTorchModelHubMixin


def _hub_is_missing() -> UserError:
    return UserError("the Hugging Face Hub needs its library: pip install huggingface_hub")


# Both have the same methods, of which mypy sees those above.
if TYPE_CHECKING:
    HubMixin = FolderMixin
else:
    HubMixin = hub_mixin()


class Segmenter(
    HubMixin,
    library_name="hmsa",
    tags=["image-segmentation", "semantic-segmentation"],
    paper_url=REPOSITORY,
    pipeline_tag="image-segmentation",
):
    """A network with its weights, its classes and the way it is best used.

    `hmsa.load` makes one from files, `Segmenter.from_model` from a network built in Python.
    `save_pretrained(folder)`, `from_pretrained(folder_or_name)` and `push_to_hub(name)` are those
    of huggingface_hub: a folder holds `config.json` and `model.safetensors`.

    Attributes:
        model: the network, an `nn.Module` in evaluation mode.
        config: the configuration it was trained with.
        spec: the classes with their colours and ids.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        self.config = loaded.config
        self.spec = loaded.spec
        self.path = loaded.path

    @classmethod
    def from_model(
        cls,
        model: MultiScaleModel,
        *,
        classes: Sequence[str] | DatasetSpec,
        scales: Sequence[float] | None = None,
    ) -> Segmenter:
        """A network that `build_model` made, ready to predict and to save.

        Args:
            model: made from names of trunk and decoder, not from functions of one's own.
            classes: names in the order of the logits, or the `spec` of the training files.
            scales: of inference; by default those of training.

        Raises:
            UserError: the classes are not as many as the network's, or it was not made from names.
        """
        spec = classes
        if not isinstance(spec, DatasetSpec):
            infos = [
                ClassInfo(name, spread_color(number), (number,)) for number, name in enumerate(spec)
            ]
            spec = DatasetSpec("own", tuple(infos))
        if spec.num_classes != model.num_classes:
            raise ModelError(
                f"the model has {model.num_classes} classes and {spec.num_classes} were named."
            )
        if model.built_with is None:
            raise ModelError(
                "a model made from parts of one's own cannot be described by names: train it "
                "with `hmsa train`, which knows them as module:name."
            )

        chosen = list(scales or model.train_scales)
        config = Config.from_dict(
            {
                "data": {"dataset": "folder"},
                "model": model.built_with,
                "eval": {"scales": chosen},
                "autolabel": {"scales": chosen},
            }
        )
        return cls(Loaded(model=model, config=config, spec=spec, sha256=""))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their train ids."""
        return self.spec.names

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Segmenter:
        """Move the network to another device; returns this object."""
        self.model.to(device)
        return self

    def __repr__(self) -> str:
        names = ", ".join(self.classes[:4])
        if len(self.classes) > 4:
            names += ", ..."
        scales = ", ".join(f"{scale:g}" for scale in self.config.eval.scales)
        return (
            f"Segmenter({self.model!r}, {len(self.classes)} classes: {names}; scales {{{scales}}}, "
            f"on {self.device})"
        )

    def predict(
        self,
        image: str | Path | np.ndarray | Tensor | Any,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        tile: tuple[int, int] | None = None,
        refine: float | Literal["auto"] | None = None,
        attention: bool = False,
    ) -> Segmentation:
        """Segment one image of any size.

        Args:
            image: a file; an RGB array uint8 [H, W, 3] or grey [H, W]; a picture of Pillow; or a
                tensor [3, H, W], uint8 or floating point from 0 to 1, not normalised.
            scales: scales to combine; by default the checkpoint's own, `config.eval.scales`.
            flip: average with the mirrored image; by default as `config.eval.flip`.
            tile: (height, width) above which the image is cut into tiles; by default as
                `config.eval.tile`.
            refine: share of the image, or "auto", on which scales above 1 are computed; by default
                as `config.eval.refine`.
            attention: also give how much each scale counts, which takes more memory.

        Returns:
            A `Segmentation` with `label` and `confidence` of the image's own size.

        Raises:
            UserError: the file is no image, the array has another form, or the model does not take
                these scales.
        """
        picture = as_picture(image, max_pixels=self.config.data.max_pixels)
        size = (picture.shape[0], picture.shape[1])
        options = build.inference_options(self.config.eval, scales=scales, flip=flip, refine=refine)
        if tile is not None:
            options = replace(options, tile=tile)

        # A network that was trained on smaller images sees this one as small; the result is not.
        seen = picture
        if self.config.data.long_edge is not None:
            seen = resize_long_edge(picture, None, long_edge=self.config.data.long_edge)[0]
        tensor = torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)[None]
        wanted = Needs(confidence=True, attention=attention and attends(self.model, options))
        result = infer(self.model, tensor, options, wanted, size=size)

        shares = None
        if wanted.attention:
            assert result.prediction is not None
            shares = share_maps(result.prediction)
        assert result.confidence is not None
        return Segmentation(
            label=result.label[0].cpu().numpy(),
            confidence=result.confidence[0].cpu().numpy(),
            classes=self.classes,
            spec=self.spec,
            image=picture,
            attention=shares,
        )

    # --- what huggingface_hub's mixin calls ---

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json and model.safetensors, each whole or not at all."""
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise UserError(
                "save_pretrained needs the safetensors library: pip install safetensors"
            ) from error
        rows = build.rows_of_bias(getattr(self.model, "attention_bias", {}))
        described = description(self.config, self.spec, rows)

        # Tensors that share memory cannot be written; copies in one layout can.
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.model.state_dict().items()
        }
        with written_whole(save_directory / TENSORS, durable=True) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", KEY: json.dumps(described)})
        text = json.dumps({"model_type": "hmsa", KEY: described}, indent=2)
        write_file(save_directory / DESCRIPTION, text + "\n", durable=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "auto",
        **options: Any,
    ) -> Segmenter:
        """Read a folder, or what the Hub has under that name."""
        if options:
            raise UserError(f"from_pretrained has no option {', '.join(options)}; it has device")
        if Path(model_id).is_dir():
            return load(model_id, device=device)

        from huggingface_hub import hf_hub_download

        path = ""
        for name in (DESCRIPTION, TENSORS):
            path = hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return load(Path(path).parent, device=device)


def load(source: str | Path, *, device: str | torch.device = "auto") -> Segmenter:
    """Load a trained model.

    Args:
        source: a run folder, a checkpoint, a folder of `save_pretrained`, a name of published
            weights, a file of the authors' or HRNet-OCR's weights, or `hf:owner/name`.
        device: "auto" is a GPU where there is one.

    Raises:
        UserError: there is no such file or name, or it is damaged.

    Example:
        >>> import hmsa
        >>> model = hmsa.load("runs/mine")  # doctest: +SKIP
        >>> label, confidence = model.predict("photo.jpg")  # doctest: +SKIP
    """
    check_torch_version()
    return Segmenter(
        build.load_model(source, config_file=None, overrides=[], device=chosen_device(device))
    )


def chosen_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        UserError: torch knows no such device, or has none here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is not known; choose auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch sees no CUDA device here; choose cpu or auto")
    return chosen


def as_picture(image: Any, *, max_pixels: int) -> np.ndarray:
    """Any form of an image as uint8 RGB [H, W, 3].

    Raises:
        DataError: it is none of the forms that `Segmenter.predict` takes.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, max_pixels=max_pixels)
    if isinstance(image, Tensor):
        return _picture_of_tensor(image)
    if not isinstance(image, np.ndarray):
        # Pillow's pictures of any mode; without their own conversion, alpha and palettes would
        # be taken for colours.
        if not hasattr(image, "convert"):
            raise DataError(
                f"an image is a file, an array, a tensor or a picture of Pillow, not of "
                f"type {type(image).__name__}"
            )
        image = np.asarray(image.convert("RGB"))

    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim not in (2, 3):
        raise DataError(
            f"an array must be uint8 [H, W, 3] (RGB) or [H, W] (grey), not {image.dtype} "
            f"{list(image.shape)}"
        )
    if not image.size:
        raise DataError(f"an image of {list(image.shape)} has no pixel")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return np.asarray(image)


def _picture_of_tensor(image: Tensor) -> np.ndarray:
    """A tensor [3, H, W] or [1, 3, H, W] as uint8 RGB [H, W, 3]."""
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise DataError(f"a tensor must be one image [3, H, W], not {list(image.shape)}")

    if image.dtype.is_floating_point:
        low, high = (float(value) for value in image.aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a floating-point tensor must hold values from 0 to 1, not {low:g} to {high:g}; "
                "it must not be normalised, and values up to 255 are for uint8"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"a tensor must be uint8 or floating point, not {image.dtype}")
    return image.permute(1, 2, 0).cpu().numpy()
