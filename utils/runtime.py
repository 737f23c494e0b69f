"""Settings of torch that a run chooses: threads, determinism, precision."""

from __future__ import annotations

import os
import zlib

import torch

from .words import UserError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None, "fp64": None}


class RuntimeSettingError(UserError, RuntimeError):
    """torch cannot run as the runtime section says; the message says what to change."""


def check_torch_version() -> None:
    """Refuse torch below 2.6, where reading a checkpoint can run code (CVE-2025-32434).

    Raises:
        RuntimeSettingError: torch is older.
    """
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 6):
        raise RuntimeSettingError(
            f"torch {torch.__version__} is too old: checkpoints can run code when read "
            "(CVE-2025-32434); install torch>=2.6"
        )


def prepare_runtime(
    *, threads: int | None = None, deterministic: bool = False, tf32: bool = False, seed: int = 0
) -> None:
    """Set threads, determinism and TF32, and seed torch.

    With `deterministic` an operation that has no deterministic kernel is an error.

    Raises:
        RuntimeSettingError: torch is too old.
    """
    check_torch_version()
    if threads is not None:
        torch.set_num_threads(threads)

    # cuBLAS is deterministic only with a fixed workspace, and cuDNN's search for the fastest kernel
    # may choose another one in every run.
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True

    # TF32 has the range of fp32 and the precision of fp16; only asked for is it used.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(seed)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype to autocast to, or None where the precision is the parameters' own."""
    return _AUTOCAST[precision]


def parameter_dtype(precision: str) -> torch.dtype:
    """The dtype parameters are kept in: fp64 for fp64 runs, else fp32."""
    if precision == "fp64":
        return torch.float64
    return torch.float32


def seed_step(*, seed: int, step: int, rank: int) -> None:
    """Seed torch for one step.

    Dropout is then a function of (seed, step, rank), and a resumed run draws what it would have
    drawn without the interruption.
    """
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}".encode()))
