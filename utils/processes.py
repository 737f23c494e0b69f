"""The one file that knows torch.distributed: joining processes, agreeing, reducing.

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
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from .words import UserError

# Process groups beside the default one, by what they are for.
_groups: dict[str, Any] = {}


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
        # A flag of the host is filled in, for to copy one would be a wait of its own.
        scalars = []
        for flag in flags:
            if not isinstance(flag, Tensor):
                flag = torch.full((), flag, dtype=torch.bool, device=self.device)
            scalars.append(flag.to(torch.uint8).reshape(()))
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
        # Threads of a group that is left standing can abort the process while Python ends.
        if error is None or isinstance(error, AgreedError):
            self.close()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            _groups.clear()
            dist.destroy_process_group()


def launched_rank() -> int:
    """The rank torchrun (or srun through it) gave this process, 0 without it. Needs no group."""
    return int(os.environ.get("RANK", "0"))


def join(*, device: str = "auto", timeout_minutes: float = 30.0) -> Processes:
    """Join the processes that torchrun started, or be a single one.

    `device` is auto, cpu, cuda or mps. nccl is used on CUDA, gloo elsewhere.

    Raises:
        ProcessError: CUDA or MPS is asked for and absent, this process has no GPU of its own, or
            the other processes cannot be reached in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    own_device = _own_device(device, local_rank=local_rank, world_size=world_size)
    if own_device.type == "cuda":
        _let_segments_grow()
        torch.cuda.set_device(own_device)
    if world_size > 1:
        _initialise(own_device, timeout_minutes)
    return Processes(
        rank=launched_rank(), world_size=world_size, local_rank=local_rank, device=own_device
    )


def _own_device(device: str, *, local_rank: int, world_size: int) -> torch.device:
    """The device of this process.

    Raises:
        ProcessError: there is none of the kind that was asked for.
    """
    if device == "cpu":
        return torch.device("cpu")
    if device == "mps":
        return _mps_device(world_size)
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ProcessError(
                f"process {local_rank} of this node has no GPU of its own "
                f"({torch.cuda.device_count()} visible); start torchrun with --nproc-per-node "
                f"{torch.cuda.device_count()} or fewer"
            )
        return torch.device("cuda", local_rank)

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
    return torch.device("cpu")


def _mps_device(world_size: int) -> torch.device:
    """The GPU of a Mac.

    Raises:
        ProcessError: there is none, or several processes would share it.
    """
    if not torch.backends.mps.is_available():
        raise ProcessError(
            "runtime.device: 'mps' was asked for but torch sees no GPU of Apple's (it needs macOS "
            "on Apple silicon and a torch built for it); use runtime.device=cpu or auto"
        )
    if world_size > 1:
        raise ProcessError(
            "runtime.device: 'mps' is one GPU and works in one process; start without torchrun, or "
            "use runtime.device=cpu"
        )
    return torch.device("mps")


def _let_segments_grow() -> None:
    """Let CUDA's allocator enlarge what it holds, unless the user has set it up.

    Images of many sizes otherwise leave holes that nothing fits into. torch reads the variable when
    it first allocates on a GPU.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if any(name in os.environ for name in names) or sys.platform != "linux":
        return
    # torch 2.9 has renamed the variable.
    is_new = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9)
    os.environ[names[0] if is_new else names[1]] = "expandable_segments:True"


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


def _initialise(device: torch.device, timeout_minutes: float) -> None:
    """Make the process groups from the environment that torchrun has set."""
    # With its device nccl connects now, where a failure is told, and not in the first step.
    options: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        options = {"backend": "nccl", "device_id": device}

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
            store=store, rank=rank, world_size=world_size, timeout=timeout, **options
        )
        # The few bytes of a batch norm must not queue behind megabytes of gradients.
        if device.type == "cuda":
            _groups["batch norm"] = dist.new_group(timeout=timeout)
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


def ranks_in_group() -> int:
    """How many ranks have joined; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(own: Tensor) -> Tensor:
    """`own` [n] of every rank, `[ranks, n]`, for batch norm; all ranks must call it."""
    group, ranks = _groups.get("batch norm"), dist.get_world_size()
    # nccl fills one tensor in one operation; gloo of older torch has none for it.
    if own.is_cuda:
        rows = own.new_empty(ranks * own.numel())
        dist.all_gather_into_tensor(rows, own, group=group)
        return rows.view(ranks, -1)
    gathered = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(gathered, own, group=group)
    return torch.stack(gathered)


def add_over_ranks(values: Tensor) -> None:
    """Replace `values` by their sum over all ranks, for batch norm; all ranks must call it."""
    dist.all_reduce(values, group=_groups.get("batch norm"))


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
