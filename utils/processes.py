"""The one file that knows torch.distributed: joining processes, agreeing, reducing, batch norm.

Without torchrun there is a single process, and every method works without a process group: the
same code runs on a laptop and on a cluster.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from .words import UserError

Network = TypeVar("Network", bound=nn.Module)


class ProcessError(UserError, RuntimeError):
    """The processes cannot work together; the message says in one sentence what to do."""


class AgreedError(UserError, ValueError):
    """A user error that some rank met and that all ranks raise.

    `silent` is true on every rank but one, so that the sentence is printed once.
    """

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
        """Sum over ranks, in the dtype given (int64 stays exact); `values` are not changed."""
        if self.world_size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def any(self, *flags: bool | Tensor) -> list[bool]:
        """For each flag, a bool or scalar tensor, whether it is true on at least one rank.

        All flags share one collective and one wait of the host for the device. Ranks decide by such
        flags whether to skip a step, save or stop: if each decided for itself, one would wait in a
        collective that the others never enter, until the timeout.
        """
        scalars = [
            torch.as_tensor(flag, device=self.device).to(torch.uint8).reshape(()) for flag in flags
        ]
        stacked = torch.stack(scalars)
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
        """If one rank raises a user error within the block, all ranks raise it at its end.

        Without this, the rank with the error would end while the others wait for it in their next
        collective until the timeout. Every rank must reach the end of the block, so it must hold no
        collective of its own. Exceptions that are none of `user_errors` (by default `UserError`)
        pass through unchanged.

        Raises:
            AgreedError: the message of the lowest rank with an error; `silent` on the others.
        """
        expected = user_errors or (UserError,)
        failure: Exception | None = None
        try:
            yield
        except expected as error:
            failure = error

        # Every rank tells the others, also when all is well: no rank knows beforehand.
        messages = self.gather(None if failure is None else str(failure))
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if not failed:
            return
        # A single process raises what was raised, so that its class is kept.
        if failure is not None and self.world_size == 1:
            raise failure
        raise AgreedError(messages[failed[0]], silent=self.rank != failed[0]) from failure

    def wrap(self, model: nn.Module, *, static_graph: bool = False) -> nn.Module:
        """`model` under DistributedDataParallel, or as it is in a single process.

        Buffers are not sent in each step: synchronised batch norm keeps them equal.
        """
        if self.world_size == 1:
            return model
        device_ids = None
        if self.device.type == "cuda":
            device_ids = [self.device.index]

        # torch 2.14 has renamed the option that broadcasts buffers before each forward pass.
        options: dict[str, Any] = {"broadcast_buffers": False}
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
            options = {"forward_sync_buffers": False}
        return DistributedDataParallel(
            model,
            device_ids=device_ids,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
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
        """Leave the group.

        A rank that only lost contact with a failing one ends here with one line, so that the
        traceback of the failing one is the last thing to read.
        """
        if self.world_size > 1 and error is not None and lost_contact(error):
            end_after(error)
        if error is None:
            self.close()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def launched_rank() -> int:
    """The rank torchrun (or srun through it) gave this process, 0 without it. Needs no group."""
    return int(os.environ.get("RANK", "0"))


def join(*, device: str = "auto", timeout_minutes: float = 30.0) -> Processes:
    """Join the processes that torchrun started, or be a single one.

    `device` is auto, cpu or cuda. nccl is used on CUDA, gloo elsewhere.

    Raises:
        ProcessError: CUDA is asked for and absent, this process has no GPU of its own, or the
            other processes cannot be reached in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    use_cuda = device != "cpu" and torch.cuda.is_available()
    if device != "cpu" and not use_cuda:
        # A training on the CPU that was meant for a GPU would take months without a word.
        problem = _cuda_problem()
        if problem is not None:
            raise ProcessError(
                f"torch cannot use this machine's GPU ({problem}); update its driver, install a "
                "torch built for it (https://pytorch.org/get-started), or set runtime.device=cpu"
            )
        if device == "cuda":
            raise ProcessError(
                "runtime.device: 'cuda' was asked for but torch sees no CUDA device; use "
                "runtime.device=cpu or auto"
            )
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ProcessError(
            f"process {local_rank} of this node has no GPU of its own "
            f"({torch.cuda.device_count()} visible); start torchrun with --nproc-per-node "
            f"{torch.cuda.device_count()} or fewer"
        )

    own_device, backend = torch.device("cpu"), "gloo"
    if use_cuda:
        own_device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(own_device)
    if world_size > 1:
        _initialise(backend, timeout_minutes)
    return Processes(
        rank=launched_rank(), world_size=world_size, local_rank=local_rank, device=own_device
    )


def _cuda_problem() -> str | None:
    """Why torch cannot use the GPU of this machine, in its own words; None where there is none."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda is None or is_hidden:
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        no_gpu = ("Found no NVIDIA driver", "No CUDA GPUs are available")
        return None if any(text in reason for text in no_gpu) else reason
    return None


def _initialise(backend: str, timeout_minutes: float) -> None:
    """Make the default process group from the environment that torchrun has set."""
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    timeout = timedelta(minutes=timeout_minutes)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)

        # torchrun's own store outlives the ranks; see `agreed_round`.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
            prefix = agreed_round(store, rank, world_size, timeout_s=timeout.total_seconds())
            store = dist.PrefixStore(prefix, store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ProcessError(
            f"the other processes could not be reached at {address} ({first_line(error)}); check "
            "MASTER_ADDR and MASTER_PORT, the firewall between the nodes, and that every node was "
            "started"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class when it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def agreed_round(store: dist.Store, rank: int, world_size: int, *, timeout_s: float) -> str:
    """A word that exactly the ranks started together share, as a prefix for the keys of `store`.

    torchrun keeps one store over all its restarts (torch 2.14: dynamic_rendezvous.py), and nodes do
    not share a count of restarts. Under plain keys a restarted rank that comes first reads the
    address of a dead one, and waits for it until the timeout. Here every rank writes a word of its
    own; rank 0 answers under that word with its own, and again when the word changes, until every
    rank has confirmed.

    Raises:
        RuntimeError: some rank did not come within `timeout_s` seconds.
    """
    # Only an answer under this rank's own new word can be meant for it.
    own = uuid.uuid4().hex
    store.set(f"hmsa/here/{rank}", own)
    if rank != 0:
        word = store.get(f"hmsa/round/{own}").decode()
        store.set(f"hmsa/agreed/{word}/{rank}", "")
        return word

    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout_s
    while missing:
        for other in sorted(missing):
            # What stands here may be the word of a dead rank; then nobody confirms it.
            if store.check([f"hmsa/here/{other}"]):
                store.set(f"hmsa/round/{store.get(f'hmsa/here/{other}').decode()}", own)
            if store.check([f"hmsa/agreed/{own}/{other}"]):
                missing.remove(other)

        if missing and time.monotonic() > deadline:
            names = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"rank {names} did not come within {timeout_s:g} s")
        time.sleep(0.01)
    return own


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values that rank 0 has, in place; nothing to do in a single process.

    All ranks must call it with tensors of the same shapes and order.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return

    # One message for each dtype instead of one for each of some hundred small tensors.
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
        # As bytes, because gloo does not know every dtype.
        dist.broadcast(flat.view(torch.uint8), src=0)
        for tensor, values in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.detach().copy_(values.view(tensor.shape))


def lost_contact(error: BaseException) -> bool:
    """Whether `error` says that another process went away, so that the fault is not here."""
    if isinstance(error, dist.DistError):
        return True

    # gloo and nccl have no exception classes for it, only texts.
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
    """Context for one micro-batch of an accumulated step: only the last one reduces gradients."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


class _SynchronisedNorm(torch.autograd.Function):
    """Batch normalisation over the batches of all ranks, without making the host wait.

    One gather forward, one all-reduce backward. Statistics travel as (mean, sum of squared
    deviations, count) and are merged after Chan, Golub and LeVeque (1979), "Updating formulae and a
    pairwise algorithm for computing sample variances". This does not cancel as E[x^2] - E[x]^2
    does, and allows ranks of unequal size.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Statistics in at least fp32, whatever autocast has made of the image [N, C, H, W].
        channels = image.shape[1]
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        count = wide.new_tensor(image.numel() // max(channels, 1)).reshape(1)
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)

        # A rank without pixels has nan here, and a count of 0 that makes it weigh nothing.
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

        # Gradients of weight and bias stay this rank's own: DistributedDataParallel averages them.
        bias_gradient = wide.sum((0, 2, 3))
        weight_gradient = (wide * normalised).sum((0, 2, 3))

        # The image's gradient runs through mean and variance, hence through every rank's images.
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
    """BatchNorm2d over the images of all ranks, on any backend; state-dict keys are BatchNorm2d's.

    torch's SyncBatchNorm refuses CPU tensors, and DistributedDataParallel refuses its subclasses on
    the CPU. `synchronised` tells layers that treat a batch of one image differently that there are
    more images on other ranks.
    """

    synchronised = True

    def forward(self, input: Tensor) -> Tensor:
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
        """Move the running statistics towards those of this batch, as nn.BatchNorm2d does."""
        # Without a counter the statistics stay as they are: activation checkpointing may take it
        # away while it runs a layer for the second time on images that have moved them already.
        if self.num_batches_tracked is None:
            return
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)

        # Running variances are unbiased ones, the batch is normalised by the biased one.
        unbiased = variance * (total / (total - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def synchronise_batch_norm(model: Network, processes: Processes) -> Network:
    """`model` with every BatchNorm2d synchronised over the ranks; state-dict keys do not change.

    On CUDA this is torch's own SyncBatchNorm (fused kernels), elsewhere ours.
    """
    if processes.world_size == 1:
        return model
    if processes.device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    # Changing the class keeps the parameters, which optimiser and averaged weights may hold.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
    return model


def restarted() -> bool:
    """Whether torchrun started this process again after a failure, with its first command line."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def recorded(main: Callable[[], int]) -> Callable[[], int]:
    """`main` with its exception noted for torchrun, which prints the failing rank's last."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return main
    return cast(Callable[[], int], record(main))


def end_after(error: BaseException) -> None:
    """End a rank that only lost contact with a failing one: one line, no second traceback."""
    print(
        f"rank {launched_rank()}: another process went away, stopping ({first_line(error)[:160]})",
        file=sys.stderr,
        flush=True,
    )
    # Without the usual clean-up, which would wait for the group that is gone.
    os._exit(1)
