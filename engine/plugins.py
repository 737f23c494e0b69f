"""Parts of the user's own, named in a configuration as `module:name`, as the packages want them.

Each function here imports one kind of part and hands it only the keywords that it takes. What it
makes or returns is looked at once, so that a wrong thing is one sentence with the key and the name,
and not a traceback from the depth of a training.
"""

from __future__ import annotations

import inspect
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from hmsa.datasets import DataError
from hmsa.network.decoders import Decoded, Decoder
from hmsa.network.trunks import Features, Trunk
from hmsa.utils.imported import ImportedError, called, imported_callable

PROBE = 64  # pixels of the image that a trunk and a decoder are tried on


# --- what is handed over ---


def made_by(
    function: Callable[..., Any], *args: Any, key: str, reference: str, **offered: Any
) -> Any:
    """What `function` returns for those of the offered keywords that it takes.

    Raises:
        ImportedError: it needs something else, or fails.
    """
    options = taken(function, offered)
    try:
        signature(function).bind(*args, **options)
    except TypeError as error:
        names = ", ".join(offered) or "nothing"
        raise ImportedError(
            f"{key}: {reference!r} cannot be called as it will be ({error}); it is offered {names}"
        ) from error
    return called(function, *args, key=key, reference=reference, **options)


def taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered keywords that a function has, or all when it takes any."""
    parameters = signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    names = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return {name: value for name, value in offered.items() if name in names}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a call; that of a module is its `forward`'s, and unknown ones take all."""
    if isinstance(function, nn.Module):
        function = function.forward
    # torch's own __init__ seems to take any keyword, and takes none.
    if inspect.isclass(function) and function.__init__ is nn.Module.__init__:
        return inspect.signature(lambda: None)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **options: None)


# --- network ---


def own_trunk(reference: str) -> Callable[..., Trunk]:
    """A function that makes the trunk `model.trunk: module:name`, for `build_model`.

    Raises:
        ImportedError: there is no such function or class; when it is called: what it makes is no
            trunk.
    """
    key = "model.trunk"
    function = imported_callable(reference, key=key)

    def make(**options: Any) -> Trunk:
        trunk = made_by(function, key=key, reference=reference, **options)
        _require_module(trunk, Trunk, key=key, reference=reference)
        features = _tried(
            trunk, torch.zeros(1, 3, PROBE, PROBE), Features, key=key, reference=reference
        )
        for name, maps, channels, stride in (
            ("fine", features.fine, trunk.fine_channels, trunk.fine_stride),
            ("semantic", features.semantic, trunk.channels, trunk.stride),
        ):
            _require_maps(maps, channels, name=name, key=key, reference=reference)
            if abs(maps.shape[2] - PROBE / stride) > 1:
                raise ImportedError(
                    f"{key}: {reference!r} declares stride {stride} for {name!r}, and its maps of "
                    f"an image of {PROBE} x {PROBE} are {maps.shape[2]} x {maps.shape[3]}"
                )
        return trunk

    return make


def own_decoder(reference: str) -> Callable[..., Decoder]:
    """A function that makes the decoder `model.decoder: module:name`, for `build_model`.

    Raises:
        ImportedError: there is no such function or class; when it is called: what it makes is no
            decoder.
    """
    key = "model.decoder"
    function = imported_callable(reference, key=key)

    def make(*, trunk: Trunk, num_classes: int, **options: Any) -> Decoder:
        decoder = made_by(
            function,
            key=key,
            reference=reference,
            trunk=trunk,
            num_classes=num_classes,
            trunk_channels=trunk.channels,
            **options,
        )
        _require_module(decoder, Decoder, key=key, reference=reference)
        features = _without_training(trunk, torch.zeros(1, 3, PROBE, PROBE))
        decoded = _tried(decoder, features, Decoded, key=key, reference=reference, with_aux=True)

        expected = {"logits": num_classes, "features": decoder.feature_channels}
        if decoded.aux is not None:
            expected["aux"] = num_classes
        for name, channels in expected.items():
            maps = getattr(decoded, name)
            _require_maps(maps, channels, name=name, key=key, reference=reference)
        return decoder

    return make


def _require_module(part: Any, kind: type[nn.Module], *, key: str, reference: str) -> None:
    """ImportedError unless `part` is a module that declares what those of `kind` do."""
    if not isinstance(part, nn.Module):
        raise ImportedError(
            f"{key}: {reference!r} makes something of type {type(part).__name__}, not a "
            "torch.nn.Module"
        )
    missing = [name for name in inspect.get_annotations(kind) if not hasattr(part, name)]
    if missing:
        raise ImportedError(
            f"{key}: {reference!r} makes a module that does not declare {', '.join(missing)}; "
            f"see hmsa.network.{kind.__module__.split('.')[-2]}.{kind.__name__}"
        )


def _without_training(part: nn.Module, *args: Any, **options: Any) -> Any:
    """What a new part gives in evaluation mode, which changes no statistics of it."""
    part.eval()
    with torch.no_grad():
        result = part(*args, **options)
    part.train()
    return result


def _tried(
    part: nn.Module, image: Any, kind: Any, *, key: str, reference: str, **options: Any
) -> Any:
    """What a new part makes of `image`, which must be a `kind`.

    Raises:
        ImportedError: it fails, or makes something else.
    """
    result = called(_without_training, part, image, key=key, reference=reference, **options)
    if not isinstance(result, kind):
        raise ImportedError(
            f"{key}: the module of {reference!r} returns a value of type "
            f"{type(result).__name__}, not {kind.__name__}({', '.join(kind._fields)})"
        )
    return result


def _require_maps(maps: Any, channels: int, *, name: str, key: str, reference: str) -> None:
    """ImportedError unless `maps` is a tensor [1, channels, h, w]."""
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != channels:
        found = type(maps).__name__
        if isinstance(maps, Tensor):
            found = f"of shape {list(maps.shape)}"
        raise ImportedError(
            f"{key}: {name!r} of {reference!r} must be maps [N, {channels}, h, w] by what it "
            f"declares, and is {found}"
        )


# --- loss ---


class OwnLoss:
    """A loss of the user's own with the signature of those in `hmsa.loss`.

    A function of (logits, label) is enough; ignore_label, valid_pixels, parts and num_classes are
    handed to one that takes them. One that does not know `valid_pixels` gives the mean over the
    valid pixels of what it sees, and is weighed by them here, so that it is the same mean for any
    number of processes.
    """

    def __init__(self, reference: str, *, key: str, num_classes: int) -> None:
        """Raises ImportedError when there is no such function."""
        function = imported_callable(reference, key=key)
        if inspect.isclass(function):
            function = made_by(function, key=key, reference=reference)
        self.function, self.reference, self.key = function, reference, key
        self.num_classes = num_classes
        self.__name__ = reference.rpartition(":")[2]

    def __call__(
        self,
        logits: Tensor,
        label: Tensor,
        *,
        ignore_label: int,
        valid_pixels: Tensor | int | None = None,
        parts: int = 1,
    ) -> Tensor | dict[str, Tensor]:
        """The loss: a scalar, or a dict of scalars by name.

        Args:
            logits: floating point [N, C, H, W].
            label: integer [N, H, W]; the function gets it as int64, as torch's own losses want it.
            ignore_label: pixels of this label do not count.
            valid_pixels: see `hmsa.loss.pixels.mean_over_pixels`.
            parts: see there.

        Raises:
            ImportedError: the function fails, or returns something else.
        """
        offered = {
            "ignore_label": ignore_label,
            "valid_pixels": valid_pixels,
            "parts": parts,
            "num_classes": self.num_classes,
        }
        result = made_by(
            self.function, logits, label.long(), key=self.key, reference=self.reference, **offered
        )
        terms = result if isinstance(result, dict) else {self.__name__: result}
        for name, term in terms.items():
            self._require_scalar(name, term)

        divides = {"valid_pixels", "parts"} <= taken(self.function, offered).keys()
        if valid_pixels is not None and not divides:
            share = (
                parts
                * (label != ignore_label).sum()
                / torch.as_tensor(valid_pixels, device=label.device).clamp(min=1)
            )
            terms = {name: term * share for name, term in terms.items()}
        return terms

    def _require_scalar(self, name: str, term: Any) -> None:
        if isinstance(term, Tensor) and term.ndim == 0 and term.dtype.is_floating_point:
            return
        found = type(term).__name__
        if isinstance(term, Tensor):
            found = f"a tensor of {term.dtype} {list(term.shape)}"
        raise ImportedError(
            f"{self.key}: {self.reference!r} must return one number as a tensor, or a dict of "
            f"them, and {name!r} is {found}"
        )


# --- augmentation ---


class OwnAugmentation:
    """`data.augment: module:name`: what the user does with every finished training crop.

    It is a function of (image, label, rng) that returns both, or an `albumentations.Compose`. All
    random numbers come from the sample's own generator, a function of (seed, epoch, position), so
    that a resumed training draws the same ones.
    """

    def __init__(self, reference: str) -> None:
        """Raises ImportedError when there is no such function, or processes cannot receive it."""
        self.reference = reference
        self.function = imported_callable(reference, key="data.augment")
        if inspect.isclass(self.function):
            self.function = made_by(self.function, key="data.augment", reference=reference)

        self.is_composed = hasattr(self.function, "set_random_state")
        if type(self.function).__module__.startswith("albumentations") and not self.is_composed:
            raise ImportedError(
                f"data.augment: {reference!r} needs an albumentations whose random numbers can be "
                "given: pip install 'albumentations>=2.0'"
            )
        try:
            pickle.dumps(self.function)
        except Exception as error:
            raise ImportedError(
                f"data.augment: {reference!r} cannot be sent to loader processes "
                f"({type(error).__name__}: {error}); define what it uses by def or class at the "
                "top of its module, not by lambda"
            ) from error

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The crop, changed.

        Args:
            image: uint8 RGB [h, w, 3].
            label: uint8 [h, w], train ids.
            rng: the sample's generator.

        Raises:
            DataError: the function fails, or returns something else than both, as they were.
        """
        name = f"data.augment: {self.reference!r}"
        try:
            if self.is_composed:
                composed: Any = self.function
                composed.set_random_state(rng, random.Random(int(rng.integers(2**63))))
                changed = composed(image=image, mask=label)
                result = (changed["image"], changed["mask"])
            else:
                result = self.function(image, label, rng)
        except Exception as error:
            text = " ".join(str(error).split())
            raise DataError(f"{name} failed: {type(error).__name__}: {text}") from error

        if not isinstance(result, tuple) or len(result) != 2:
            raise DataError(
                f"{name} must return (image, label), and returned a value of type "
                f"{type(result).__name__}"
            )
        for what, before, after in zip(("image", "label"), (image, label), result, strict=True):
            is_array = isinstance(after, np.ndarray)
            if not is_array or after.shape != before.shape or after.dtype != before.dtype:
                found = type(after).__name__
                if is_array:
                    found = f"{after.dtype} {list(after.shape)}"
                raise DataError(
                    f"{name} must return the {what} as uint8 {list(before.shape)}, and returned "
                    f"{found}; normalising and tensors are hmsa's own work"
                )
        return result


# --- loggers ---


class OwnLogger:
    """`runtime.loggers: [module:name]`: whoever writes down the numbers of a run.

    A class or function that is called when the training begins, with those of folder (a Path),
    name (of the run), configuration (a dict) and first_step that it takes. What it makes has
    `numbers(step, values)`, with values such as {"train/loss": 0.3}, and may have
    `picture(name, step, image)`, image uint8 [H, W, 3], and `close()`.
    """

    def __init__(self, reference: str) -> None:
        """Raises ImportedError when there is no such class or function."""
        self.title = reference
        self.function = imported_callable(reference, key="runtime.loggers")
        self.made: Any = None

    def begin(self, folder: Path, *, name: str, configuration: str, first_step: int) -> None:
        """Make the user's logger.

        Raises:
            ImportedError: it cannot be made, or has no `numbers`.
        """
        self.made = made_by(
            self.function,
            key="runtime.loggers",
            reference=self.title,
            folder=folder,
            name=name,
            configuration=yaml.safe_load(configuration),
            first_step=first_step,
        )
        if not callable(getattr(self.made, "numbers", None)):
            raise ImportedError(
                f"runtime.loggers: {self.title!r} makes something of type "
                f"{type(self.made).__name__}, without numbers(step, values)"
            )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one row of metrics.jsonl."""
        self.made.numbers(step, dict(values))

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture uint8 [H, W, 3], where the user's logger takes pictures."""
        if hasattr(self.made, "picture"):
            self.made.picture(name, step, picture)

    def close(self) -> None:
        """The end of the training."""
        if hasattr(self.made, "close"):
            self.made.close()
