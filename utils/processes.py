"""The one file that knows torch.distributed: joining processes, agreeing, reducing, synchronised batch norm.

Alone (no torchrun) every method works without a process group, so that the doors read the same on a laptop and on a node.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

Network = TypeVar("Network", bound=nn.Module)


class ProcessError(RuntimeError):
    """The processes cannot work together; the message says in one sentence what to do."""


class AgreedError(ValueError):
    """A user error that some rank met and all ranks now raise: `silent` is true on every rank but the one that speaks."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


@dataclass(frozen=True)
class Processes:
    """This process among the others: `rank` of `world_size`, working on `device`."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """All-reduced sum over ranks, in the dtype given (int64 stays exact). Works in place on a copy."""
        if self.world_size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def any(self, *flags: bool | Tensor) -> list[bool]:
        """For each flag whether it is true on at least one rank. One collective and one host read for all of them."""
        stacked = torch.stack(
            [
                torch.as_tensor(flag, device=self.device).to(torch.uint8).reshape(())
                for flag in flags
            ]
        )
        if self.world_size > 1:
            dist.all_reduce(stacked, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in stacked.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def agreement(self, *user_errors: type[Exception]) -> Iterator[None]:
        """What one rank cannot do, no rank goes on with: a user error inside the block is raised on all ranks.

        The lowest failing rank speaks; the others carry the same message marked `silent`. Every rank must reach the end of the block,
        so it holds no collective of its own. Other exceptions pass through untouched.
        """
        failure: Exception | None = None
        try:
            yield
        except user_errors as error:
            failure = error
        messages = self.gather(None if failure is None else str(failure))
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if not failed:
            return
        if failure is not None and self.world_size == 1:
            raise failure
        raise AgreedError(messages[failed[0]], silent=self.rank != failed[0]) from failure

    def wrap(
        self, model: nn.Module, *, static_graph: bool = False, find_unused_parameters: bool = False
    ) -> nn.Module:
        """`model` under DistributedDataParallel, or as it is when alone. Buffers are not broadcast: synchronised BN keeps them equal."""
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        renamed = (
            "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        )  # since torch 2.14
        options: dict[str, Any] = {
            "forward_sync_buffers" if renamed else "broadcast_buffers": False
        }
        return DistributedDataParallel(
            model,
            device_ids=device_ids,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
            **options,
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the group. A rank that only lost contact with a failing one ends here, so that the other's traceback is the one to read."""
        if self.world_size > 1 and error is not None and lost_contact(error):
            end_after(error)
        if error is None:
            self.close()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def launched_rank() -> int:
    """The rank torchrun (or srun through it) gave this process, 0 when alone. Needs no group."""
    return int(os.environ.get("RANK", "0"))


def join(*, device: str = "auto", timeout_minutes: float = 30.0) -> Processes:
    """Join the processes that torchrun started, or stand alone.

    `device` is auto, cpu or cuda. nccl is used on CUDA, gloo elsewhere. Raises ProcessError when CUDA is asked for and absent, or when the
    rendezvous cannot be reached within the time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if use_cuda and not torch.cuda.is_available():
        raise ProcessError(
            "runtime.device: 'cuda' was asked for but torch sees no CUDA device; use runtime.device=cpu or auto"
        )
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ProcessError(
            f"process {local_rank} of this node has no GPU of its own ({torch.cuda.device_count()} visible); "
            f"start torchrun with --nproc-per-node {torch.cuda.device_count()} or fewer"
        )
    place = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if world_size > 1:
        _initialise("nccl" if use_cuda else "gloo", timeout_minutes)
    return Processes(
        rank=launched_rank(), world_size=world_size, local_rank=local_rank, device=place
    )


def _initialise(backend: str, timeout_minutes: float) -> None:
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    timeout = timedelta(minutes=timeout_minutes)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
            store = dist.PrefixStore(
                agreed_round(store, rank, world_size, timeout_s=timeout.total_seconds()), store
            )
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ProcessError(
            f"the other processes could not be reached at {address} ({reason}); check MASTER_ADDR and MASTER_PORT, the "
            "firewall between the nodes, and that every node was started"
        ) from error


def agreed_round(store: dist.Store, rank: int, world_size: int, *, timeout_s: float) -> str:
    """A word that all ranks started together agree on, and no rank started before them has used. For use as the prefix of `store`'s keys.

    torchrun keeps one store over all its restarts (torch 2.14: dynamic_rendezvous.py), and a restart count that nodes do not share. Under plain
    keys a restarted rank that is first reads the address of a dead peer and waits for it until the timeout. Here each rank shows a word of its
    own; rank 0 answers under that word with its own, and again when the word changes, until every rank has confirmed.
    """
    own = uuid.uuid4().hex
    store.set(f"hmsa/here/{rank}", own)
    if rank != 0:
        word = store.get(f"hmsa/round/{own}").decode()
        store.set(f"hmsa/agreed/{word}/{rank}", "")
        return word
    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout_s
    while missing:
        for other in sorted(missing):
            if store.check([f"hmsa/here/{other}"]):
                store.set(f"hmsa/round/{store.get(f'hmsa/here/{other}').decode()}", own)
            if store.check([f"hmsa/agreed/{own}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(
                f"rank {', '.join(map(str, sorted(missing)))} did not come within {timeout_s:g} s"
            )
        time.sleep(0.01)
    return own


def lost_contact(error: BaseException) -> bool:
    """Whether `error` says that another process went away (its own message is the one to read), not that this one is at fault."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "gloo/transport",
        "NCCL",
    )
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def no_sync(model: nn.Module, *, last: bool) -> Any:
    """Context for one micro-batch of an accumulated step: gradients are reduced in the last one only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class _SynchronisedNorm(torch.autograd.Function):
    """Batch normalisation over the batches of all ranks: one gather forward, one all-reduce backward, no host synchronisation.

    Statistics travel as (mean, sum of squared deviations, count) and are merged after Chan et al. (1979), which does not cancel as
    E[x^2] - E[x]^2 does, and allows ranks of unequal size.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = image.shape[1]
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        count = wide.new_tensor(image.numel() // max(channels, 1)).reshape(1)
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        own = torch.cat([torch.nan_to_num(mean), torch.nan_to_num(variance) * count, count])
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, own)
        means, squares, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = (squares + counts * (means - mean) ** 2).sum(0) / total
        ctx.save_for_backward(image, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        scale = weight.to(wide.dtype)
        result = nn.functional.batch_norm(
            wide, mean, variance, scale, bias.to(wide.dtype), training=False, eps=eps
        )
        return result.to(image.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        image, weight, mean, variance, total = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        inverse = torch.rsqrt(variance + ctx.eps)
        shape = (1, -1, 1, 1)
        normalised = (image.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        bias_gradient = wide.sum((0, 2, 3))
        weight_gradient = (wide * normalised).sum((0, 2, 3))
        sums = torch.cat([bias_gradient, weight_gradient])
        dist.all_reduce(sums)
        mean_gradient, mean_product = (sums / total).chunk(2)
        inner = wide - mean_gradient.view(shape) - normalised * mean_product.view(shape)
        result = inner * (inverse * weight.to(mean.dtype)).view(shape)
        return (
            result.to(gradient.dtype),
            weight_gradient.to(weight.dtype),
            bias_gradient.to(weight.dtype),
            None,
        )


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d over the images of all ranks, on any backend; torch's SyncBatchNorm refuses CPU tensors, and DDP refuses its subclasses there.

    State-dict keys are BatchNorm2d's. `synchronised` tells layers with an exception for a lone image that it is not alone.
    """

    synchronised = True

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Module calls it by
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        result, mean, variance, total = _SynchronisedNorm.apply(
            input, self.weight, self.bias, self.eps
        )
        if self.track_running_stats:
            self._update(mean.detach(), variance.detach(), total.detach())
        return result

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        )
        self.num_batches_tracked.add_(1)
        momentum = (
            self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        )
        unbiased = variance * (total / (total - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def synchronise_batch_norm(model: Network, processes: Processes) -> Network:
    """`model` with every BatchNorm2d synchronised over the ranks, when there are several. State-dict keys do not change.

    On CUDA torch's own SyncBatchNorm is taken (fused kernels); elsewhere ours, since torch's refuses CPU tensors.
    """
    if processes.world_size == 1:
        return model
    if processes.device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
    return model


def restarted() -> bool:
    """Whether torchrun started this process again after a failure, with the command line of the first time."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def recorded(main: Callable[[], int]) -> Callable[[], int]:
    """`main` with its exception noted for torchrun, which then shows the failing rank's traceback last."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return main
    from torch.distributed.elastic.multiprocessing.errors import record

    return cast(Callable[[], int], record(main))


def end_after(error: BaseException) -> None:
    """On a rank that only lost contact with a failing one: one line instead of a second traceback, then leave at once."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    print(
        f"rank {launched_rank()}: another process went away, stopping ({reason[:160]})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
