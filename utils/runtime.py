"""Settings of torch that a run chooses: threads, determinism, precision."""

from __future__ import annotations

import os
import zlib

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None, "fp64": None}


def check_torch_version() -> None:
    """Refuse torch below 2.6: reading a checkpoint there can run code even with weights_only (CVE-2025-32434)."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 6):
        raise RuntimeError(
            f"torch {torch.__version__} is too old: checkpoints can run code when read (CVE-2025-32434); install torch>=2.6"
        )


def prepare_runtime(
    *, threads: int | None = None, deterministic: bool = False, tf32: bool = False, seed: int = 0
) -> None:
    """Set threads, determinism and TF32, and seed torch. `deterministic` makes an operation without a deterministic kernel an error."""
    check_torch_version()
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(seed)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype to autocast to, or None where the precision is the parameters' own."""
    return _AUTOCAST[precision]


def parameter_dtype(precision: str) -> torch.dtype:
    """The dtype parameters are kept in: fp64 for fp64 runs, else fp32."""
    return torch.float64 if precision == "fp64" else torch.float32


def seed_step(*, seed: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that dropout is a function of (seed, step, rank) and a resumed run draws what it would have drawn."""
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}".encode()))
