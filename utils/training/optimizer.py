"""SGD, Adam, AdamW and LAMB with a choice of implementation; apex's fused ones when asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..words import UserError

_APEX_CLASS = {"sgd": "FusedSGD", "adam": "FusedAdam", "adamw": "FusedAdam", "lamb": "FusedLAMB"}


class OptimizerError(UserError, ValueError):
    """The optimiser asked for cannot be had; the message says why and what to do."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    head_parameters: Iterable[nn.Parameter] = (),
    head_lr_multiplier: float = 1.0,
    attention_parameters: Iterable[nn.Parameter] = (),
    attention_lr_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters by (learning rate, decayed or not), without the empty ones.

    Those of heads have `lr` times `head_lr_multiplier`, and of these the ones of attention times
    `attention_lr_multiplier` as well.

    Every parameter is in exactly one group. Without `decay_norm_and_bias` batch-norm scales and all
    biases (one-dimensional parameters) have no weight decay.
    """
    multipliers = {id(parameter): head_lr_multiplier for parameter in head_parameters}
    for parameter in attention_parameters:
        multipliers[id(parameter)] = head_lr_multiplier * attention_lr_multiplier

    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # Heads are a group of their own only where they have a learning rate of their own.
        multiplier = multipliers.get(id(parameter), 1.0)
        is_decayed = decay_norm_and_bias or parameter.ndim > 1
        grouped.setdefault((multiplier, is_decayed), []).append(parameter)

    # `base_lr` stays, and `lr` follows the schedule from it in every step.
    groups = []
    for (multiplier, is_decayed), parameters in grouped.items():
        base_lr = lr * multiplier
        groups.append(
            {
                "params": parameters,
                "lr": base_lr,
                "base_lr": base_lr,
                "weight_decay": weight_decay * is_decayed,
            }
        )
    return groups


def build_optimizer(
    groups: list[dict[str, Any]],
    *,
    optimizer: str = "sgd",
    backend: str = "auto",
    momentum: float = 0.9,
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser over `groups`; `scaled` says whether a GradScaler is in use.

    `backend` is torch (a loop over parameters), foreach, fused, apex, or auto: foreach on the CPU
    and with a GradScaler, fused on CUDA otherwise.

    Raises:
        OptimizerError: apex is asked for and NVIDIA's cannot be imported, or LAMB without apex.
    """
    if backend == "apex" or optimizer == "lamb":
        if backend not in ("apex", "auto"):
            raise OptimizerError(
                "optim.optimizer: 'lamb' exists in NVIDIA apex only; set optim.backend to apex, "
                "or optim.optimizer to sgd, adam or adamw"
            )
        return _apex_optimizer(groups, optimizer=optimizer, momentum=momentum)

    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    if backend == "auto":
        # A GradScaler makes the fused ones wait for the device in every step.
        backend = "foreach"
        if on_cuda and not scaled:
            backend = "fused"

    options: dict[str, Any] = {"foreach": backend == "foreach", "fused": backend == "fused"}
    if optimizer == "adam":
        return torch.optim.Adam(groups, **options)
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)

    built = torch.optim.SGD(groups, momentum=momentum, **options)
    if backend == "fused" and momentum:
        zero_momentum(built)
    return built


def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum buffer of zeros.

    With dampening 0 the first step is then the same as without. Left to itself, torch's fused SGD
    makes the buffers from uninitialised memory in its first step, and leaves them like that when a
    GradScaler skips this step because of an overflow.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            optimizer.state[parameter].setdefault("momentum_buffer", zeros)


def apex_problem() -> str | None:
    """Why NVIDIA apex's fused optimisers cannot be used here, or None when they can."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return (
            "NVIDIA apex is not installed (build it from its source repository; the PyPI package "
            "called apex is unrelated)"
        )

    # The folder tells NVIDIA's package from the other one without importing either.
    folders = found.submodule_search_locations or ()
    if not any((Path(folder) / "optimizers").is_dir() for folder in folders):
        return (
            "the installed package 'apex' is not NVIDIA's but the unrelated Pyramid toolkit of "
            f"that name from PyPI ({_version('apex')}); uninstall it and build NVIDIA apex from "
            "its source repository"
        )
    # The fused optimisers are in this extension; without it they fail at their first step.
    if importlib.util.find_spec("amp_C") is None:
        return (
            "NVIDIA apex was installed without its CUDA extensions; build it again with "
            "APEX_CPP_EXT=1 APEX_CUDA_EXT=1"
        )

    try:
        importlib.import_module("apex.optimizers")
    except ImportError as error:
        return f"NVIDIA apex cannot be imported ({error}); build it again for this torch"
    return None


def _version(package: str) -> str:
    try:
        return f"version {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return "no version known"


def _apex_optimizer(
    groups: list[dict[str, Any]], *, optimizer: str, momentum: float
) -> torch.optim.Optimizer:
    problem = apex_problem()
    if problem is not None:
        raise OptimizerError(
            f"optim.backend: apex was asked for but {problem}; or set optim.backend to auto"
        )

    # The three take different arguments.
    kind = getattr(importlib.import_module("apex.optimizers"), _APEX_CLASS[optimizer])
    if optimizer == "sgd":
        return kind(groups, lr=groups[0]["lr"], momentum=momentum)
    if optimizer in ("adam", "adamw"):
        return kind(groups, adam_w_mode=optimizer == "adamw")
    return kind(groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def scaled_learning_rate(
    lr: float, *, batch: int, reference_batch: int | None, scaling: str
) -> float:
    """`lr` for a global batch of `batch` images when it was chosen for `reference_batch`.

    `scaling` is none, linear or sqrt.
    """
    if reference_batch is None or scaling == "none":
        return lr

    ratio = batch / reference_batch
    if scaling == "sqrt":
        ratio **= 0.5
    return lr * ratio
