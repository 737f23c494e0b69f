"""Two processes that share the device over gloo compute what one computes."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hmsa.loss import build_criterion
from hmsa.network import build_model
from hmsa.utils.processes import Processes
from hmsa.utils.synchronised_norm import synchronise_batch_norm

from .equality import CLASSES, IGNORE, noise_batch
from .findings import Finding, GpuSetup, not_above, relative_difference


def check_sharing(setup: GpuSetup) -> Iterator[Finding]:
    """Gradients and batch-norm statistics of four images, at once and in two halves, in fp64."""
    for checkpointing in (False, True):
        name = "two processes against one"
        if checkpointing:
            name += ", activation checkpointing"
        wanted = one_update(setup.device, checkpointing=checkpointing, rank=0, world_size=1)

        # Each process takes half of the images; rank 0 leaves its result in a file.
        store, result = setup.folder / f"store-{checkpointing}", setup.folder / "sharing.pt"
        torch.multiprocessing.spawn(
            _half, args=(str(setup.device), checkpointing, str(store), str(result)), nprocs=2
        )
        found = torch.load(result, weights_only=True)
        for part, tensor in wanted.items():
            yield not_above(f"{name}: {part}", relative_difference(found[part], tensor), 1e-9)


def _half(rank: int, device: str, checkpointing: bool, store: str, result: str) -> None:
    """One of the two processes."""
    os.environ["LOCAL_RANK"] = "0"  # both use the one GPU
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=3),
    )
    found = one_update(torch.device(device), checkpointing=checkpointing, rank=rank, world_size=2)
    if rank == 0:
        torch.save(found, Path(result))
    dist.destroy_process_group()


def one_update(
    device: torch.device, *, checkpointing: bool, rank: int, world_size: int
) -> dict[str, Tensor]:
    """The gradients and the running statistics after one backward pass over this rank's images."""
    torch.manual_seed(0)
    model: nn.Module = build_model(
        trunk="hrnet_w18_small",
        decoder="ocr",
        num_classes=CLASSES,
        dropout=0.0,
        activation_checkpointing=checkpointing,
    )
    processes = Processes(rank=rank, world_size=world_size, local_rank=0, device=device)
    model = copy.deepcopy(synchronise_batch_norm(model, processes)).to(device).double().train()
    wrapped: Any = processes.wrap(model)

    image, label = noise_batch((64, 128), count=4)
    own = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    valid_pixels = (label != IGNORE).sum().to(device)
    criterion = build_criterion(num_classes=CLASSES, ignore_label=IGNORE, main="rmi")
    prediction = wrapped(image[own].to(device).double())
    terms = criterion(
        prediction, label[own].to(device), valid_pixels=valid_pixels, parts=world_size
    )
    torch.stack(list(terms.values())).sum().backward()

    gradients = [part.grad.flatten() for part in model.parameters() if part.grad is not None]
    statistics = [
        value.flatten() for name, value in model.named_buffers() if name.endswith("running_var")
    ]
    return {"gradients": torch.cat(gradients).cpu(), "statistics": torch.cat(statistics).cpu()}
