"""SGD, AdamW and LAMB with a choice of implementation; apex's fused ones only when asked for and really there."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

_APEX_CLASS = {"sgd": "FusedSGD", "adamw": "FusedAdam", "lamb": "FusedLAMB"}


class OptimizerError(ValueError):
    """The optimiser asked for cannot be had; the message says why and what to do."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    head_parameters: Iterable[nn.Parameter] = (),
    head_lr_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters by (head or trunk, decayed or not); every parameter is in exactly one, empty groups are left out.

    `decay_norm_and_bias` false exempts batch-norm scales and all biases (one-dimensional parameters) from weight decay.
    """
    heads = {id(parameter) for parameter in head_parameters}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = decay_norm_and_bias or parameter.ndim > 1
            groups.setdefault(
                (id(parameter) in heads and head_lr_multiplier != 1.0, decayed), []
            ).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (head_lr_multiplier if head else 1.0),
            "base_lr": lr * (head_lr_multiplier if head else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (head, decayed), parameters in groups.items()
    ]


def build_optimizer(
    groups: list[dict[str, Any]],
    *,
    optimizer: str = "sgd",
    backend: str = "auto",
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser over `groups`.

    `backend`: torch (a loop), foreach, fused, apex, or auto = foreach when a GradScaler is in use (`scaled`) or on CPU, fused on CUDA otherwise.
    Fused SGD starts from zeroed momentum: left to itself torch keeps uninitialised memory when the first step overflows (ENGINEERING 2.4).
    Raises OptimizerError when apex is asked for and NVIDIA's is not importable, or when LAMB is asked for without it.
    """
    if backend == "apex" or optimizer == "lamb":
        if backend not in ("apex", "auto"):
            raise OptimizerError(
                "optim.optimizer: 'lamb' exists in NVIDIA apex only; set optim.backend to apex, or optim.optimizer to sgd or adamw"
            )
        return _apex_optimizer(
            groups, optimizer=optimizer, momentum=momentum, nesterov=nesterov, betas=betas
        )
    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    if backend == "auto":
        backend = "fused" if on_cuda and not scaled else "foreach"
    options: dict[str, Any] = {"foreach": backend == "foreach", "fused": backend == "fused"}
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, **options)
    built = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **options)
    if backend == "fused" and momentum:
        zero_momentum(built)
    return built


def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum buffer of zeros; with dampening 0 the first step is then the same as without."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault(
                "momentum_buffer", torch.zeros_like(parameter, memory_format=torch.preserve_format)
            )


def apex_problem() -> str | None:
    """Why NVIDIA apex's fused optimisers cannot be used here, or None when they can."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return "NVIDIA apex is not installed (build it from its source repository; the PyPI package called apex is unrelated)"
    if not any(
        (Path(folder) / "optimizers").is_dir() for folder in found.submodule_search_locations or ()
    ):
        return (
            "the installed package 'apex' is not NVIDIA's but the unrelated Pyramid toolkit of that name from PyPI "
            f"({_version('apex')}); uninstall it and build NVIDIA apex from its source repository"
        )
    if importlib.util.find_spec("amp_C") is None:
        return "NVIDIA apex was installed without its CUDA extensions; build it again with APEX_CPP_EXT=1 APEX_CUDA_EXT=1"
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
    groups: list[dict[str, Any]],
    *,
    optimizer: str,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    problem = apex_problem()
    if problem is not None:
        raise OptimizerError(
            f"optim.backend: apex was asked for but {problem}; or set optim.backend to auto"
        )
    kind = getattr(importlib.import_module("apex.optimizers"), _APEX_CLASS[optimizer])
    if optimizer == "sgd":
        return kind(groups, lr=groups[0]["lr"], momentum=momentum, nesterov=nesterov)
    if optimizer == "adamw":
        return kind(groups, betas=betas, adam_w_mode=True)
    return kind(groups, betas=betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def scaled_learning_rate(
    lr: float, *, batch: int, reference_batch: int | None, scaling: str
) -> float:
    """`lr` for a global batch of `batch` images when it was chosen for `reference_batch`: none, linear or sqrt scaling."""
    if reference_batch is None or scaling == "none":
        return lr
    ratio = batch / reference_batch
    return lr * (ratio if scaling == "linear" else ratio**0.5)
