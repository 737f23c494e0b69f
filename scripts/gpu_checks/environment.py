"""Whether this card, its driver and this torch suit each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import torch

from .findings import Finding, GpuSetup, is_so, says


def check_environment(setup: GpuSetup) -> Iterator[Finding]:
    """Card, driver, torch, native bf16, cuDNN, NCCL."""
    yield says("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    if setup.device.type != "cuda":
        yield says("device", "the CPU: a rehearsal, which says nothing of a GPU")
        return

    card = torch.cuda.get_device_properties(setup.device)
    yield says("card", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{capability(setup)}")
    built_for = torch.cuda.get_arch_list()
    yield is_so(
        "torch is built for this card",
        is_built_for(capability(setup), built_for),
        otherwise=f"no: it is built for {', '.join(built_for)}; install a torch for this card "
        "(https://pytorch.org/get-started)",
    )

    # bf16 is emulated, and slow, on cards before Ampere.
    yield says(
        "bf16 of its own",
        "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no: use fp16",
    )
    yield says("cuDNN", str(torch.backends.cudnn.version()))
    if torch.distributed.is_nccl_available():
        yield says("NCCL", ".".join(str(part) for part in torch.cuda.nccl.version()))
    yield says(
        "allocator",
        os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "-",
    )


def capability(setup: GpuSetup) -> str:
    """The card's compute capability as torch writes it: 80 for 8.0."""
    major, minor = torch.cuda.get_device_capability(setup.device)
    return f"{major}{minor}"


def is_built_for(capability: str, architectures: Sequence[str]) -> bool:
    """Whether a torch built for `architectures` (sm_80, compute_90, ...) runs on a card.

    Machine code (sm) runs on cards of the same major number that are as new or newer; compute
    stands for code that the driver translates for every newer card.
    """
    own = int(capability)
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)[af]?", name)
        if found is None:
            continue
        kind, number = found[1], int(found[2])
        same_major = own // 10 == number // 10
        if number <= own and (kind == "compute" or same_major):
            return True
    return False
