"""Processes that agree and normalise together, on gloo."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

from hmsa.network.layers import BatchNorm, run_stage
from hmsa.utils.processes import (
    AgreedError,
    ProcessError,
    Processes,
    agreed_round,
    join,
    lost_contact,
    no_sync,
)
from hmsa.utils.synchronised_norm import SynchronisedBatchNorm, synchronise_batch_norm
from hmsa.utils.training.ema import WeightAverage
from hmsa.utils.training.training_state import TrainingState
from tests.programs import free_port, run_ranks
from tests.utils.norm_kernels import as_norm_kernels


def _start(
    rank: int, work: Callable[[Processes], Any], world_size: int, port: int, results: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    processes = join(device="cpu", timeout_minutes=1)
    results[rank] = work(processes)
    processes.close()


def run(work: Callable[[Processes], Any], world_size: int) -> list[Any]:
    """What `work` returns on each of `world_size` gloo processes."""
    with mp.Manager() as manager:
        results = manager.dict()
        arguments = (work, world_size, free_port(), results)
        run_ranks(_start, arguments, processes=world_size)
        return [results[rank] for rank in range(world_size)]


ALONE = Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def _collectives(processes: Processes) -> tuple[list[int], list[bool], list[int]]:
    total = processes.sum(torch.tensor([2**53 + 1, processes.rank], dtype=torch.int64)).tolist()
    return (
        total,
        processes.any(processes.rank == 1, False, torch.tensor(True)),
        processes.gather(processes.rank),
    )


def test_sums_are_exact_and_flags_are_shared() -> None:
    for total, flags, ranks in run(_collectives, 2):
        assert total == [2 * (2**53 + 1), 1]
        assert flags == [True, False, True]
        assert ranks == [0, 1]
    assert _collectives(ALONE) == ([2**53 + 1, 0], [False, False, True], [0])


def _disagree(processes: Processes) -> tuple[str, bool]:
    try:
        with processes.agreement(KeyError):
            if processes.rank == 1:
                raise KeyError("only rank 1 sees this")
    except AgreedError as error:
        return str(error), error.silent
    return "went on", False


def test_a_user_error_on_one_rank_ends_all_and_one_speaks() -> None:
    (first, first_silent), (second, second_silent) = run(_disagree, 2)
    assert first == second == "'only rank 1 sees this'"
    assert (first_silent, second_silent) == (True, False)


def _end_by_an_agreed_error(processes: Processes) -> bool:
    with suppress(AgreedError), processes, processes.agreement(KeyError):
        if processes.rank == 1:
            raise KeyError("only rank 1 sees this")
    return dist.is_initialized()


def test_ranks_that_end_by_an_agreed_error_leave_the_group() -> None:
    assert run(_end_by_an_agreed_error, 2) == [False, False]


def test_alone_the_error_itself_comes_through() -> None:
    with pytest.raises(KeyError), ALONE.agreement(KeyError):
        raise KeyError("x")


def _network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 1),
        nn.BatchNorm2d(4),
    ).double()


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    image = (
        torch.randn(6, 3, 7, 9, generator=generator, dtype=torch.float64) * 3 + 100
    )  # far from zero: E[x^2] - E[x]^2 would cancel
    return image, torch.randn(6, 4, 7, 9, generator=generator, dtype=torch.float64)


def _train_once(processes: Processes) -> dict[str, list[float]]:
    inner = synchronise_batch_norm(_network(), processes)
    network = processes.wrap(inner)
    image, weights = _batch()
    share = 6 // processes.world_size
    own = slice(processes.rank * share, (processes.rank + 1) * share)
    (network(image[own]) * weights[own]).sum().mul(processes.world_size).backward()
    values = {name: parameter.grad for name, parameter in inner.named_parameters()} | dict(
        inner.named_buffers()
    )
    return {name: value.double().reshape(-1).tolist() for name, value in values.items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_synchronised_batch_norm_equals_the_whole_batch(world_size: int) -> None:
    expected = _train_once(ALONE)
    for found in run(_train_once, world_size):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(
                torch.tensor(found[name]), torch.tensor(values), rtol=1e-9, atol=1e-9, msg=name
            )


def _unequal_parts(processes: Processes) -> list[float]:
    layer = synchronise_batch_norm(nn.BatchNorm2d(3).double(), processes)
    image, _ = _batch()
    layer(image[:2] if processes.rank == 0 else image[2:])
    assert isinstance(layer, SynchronisedBatchNorm) and layer.running_var is not None
    return layer.running_var.tolist()


def test_ranks_may_hold_batches_of_unequal_size() -> None:
    whole = nn.BatchNorm2d(3).double()
    whole(_batch()[0])
    assert whole.running_var is not None
    for found in run(_unequal_parts, 2):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), whole.running_var, rtol=1e-10, atol=0
        )


def test_conversion_keeps_the_state_dict_and_evaluation() -> None:
    network = _network().eval()
    keys, image = list(network.state_dict()), _batch()[0]
    before = network(image)
    converted = synchronise_batch_norm(
        network, Processes(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"))
    )
    assert any(isinstance(module, SynchronisedBatchNorm) for module in converted.modules())
    assert list(converted.state_dict()) == keys
    assert torch.equal(converted(image), before)


class _Stages(nn.Module):
    """A frozen part, a part that may be recomputed, and a last one."""

    def __init__(self, *, save_memory: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.save_memory = save_memory
        norms = [BatchNorm(5), BatchNorm(6), BatchNorm(4)]
        self.frozen = nn.Sequential(nn.Conv2d(3, 5, 3), norms[0])
        self.middle = nn.Sequential(nn.Conv2d(5, 6, 1), norms[1], nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 4, 1), norms[2])
        self.frozen.requires_grad_(False)

    def train(self, mode: bool = True) -> _Stages:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        middle = run_stage(self.middle, self.frozen(image), save_memory=self.save_memory)
        assert isinstance(middle, torch.Tensor)
        return self.last(middle)


def _counts_collectives(calls: list[str]) -> None:
    """Note every collective of this process; it ends with the test."""
    import torch.distributed as dist

    for name in ("all_gather", "all_reduce"):
        inner = getattr(dist, name)

        def noted(*arguments: Any, inner: Any = inner, name: str = name, **keywords: Any) -> Any:
            calls.append(name)
            return inner(*arguments, **keywords)

        setattr(dist, name, noted)


def _accumulates(processes: Processes, *, save_memory: bool) -> dict[str, list[float]]:
    """Two batches of accumulated gradients, each of half the images over all ranks."""
    inner = synchronise_batch_norm(_Stages(save_memory=save_memory).double().train(), processes)
    network = processes.wrap(inner)
    images, weights = _batch()
    share = 3 // processes.world_size + 1
    for number in range(2):
        # Ranks of unequal size: two images and one.
        image = images[number * 3 : number * 3 + 3].split(share)[processes.rank]
        weight = weights[number * 3 : number * 3 + 3, :, 1:-1, 1:-1].split(share)[processes.rank]
        with no_sync(network, last=number == 1):
            (network(image) * weight).sum().mul(processes.world_size).backward()

    # What a training adds at the end of the step.
    values = dict(inner.state_dict())
    values |= {name: p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return {name: value.double().reshape(-1).tolist() for name, value in values.items()}


def _both_norms(processes: Processes) -> list[tuple[dict[str, list[float]], list[str]]]:
    calls: list[str] = []
    _counts_collectives(calls)
    found = []
    for kernels in (False, True):
        if kernels:
            as_norm_kernels()
        for save_memory in (False, True):
            calls.clear()
            values = _accumulates(processes, save_memory=save_memory)
            found.append((values, list(calls)))
    return found


def test_kernels_of_cuda_give_the_whole_batch() -> None:
    """With accumulation, frozen parts and recomputed stages; on stand-ins for the kernels.

    The kernels themselves are on CUDA alone: what is tested is what is made of them.
    """
    expected = _accumulates(ALONE, save_memory=False)
    assert not any(name.startswith("frozen") and name.endswith("grad") for name in expected)
    (plain, saving, fused, fused_saving), _ = run(_both_norms, 2)

    for values, calls in (plain, saving, fused, fused_saving):
        assert values.keys() == expected.keys()
        for name, numbers in expected.items():
            torch.testing.assert_close(
                torch.tensor(values[name], dtype=torch.float64),
                torch.tensor(numbers, dtype=torch.float64),
                rtol=1e-9,
                atol=1e-9,
                msg=name,
            )
        # Two batches and two layers that train; a recomputed layer gathers once more.
        assert calls.count("all_reduce") == 4
        recomputed = 2 if calls in (saving[1], fused_saving[1]) else 0
        assert calls.count("all_gather") == 4 + recomputed
    assert plain[1] == fused[1] and saving[1] == fused_saving[1]


def test_only_transport_errors_are_taken_for_a_lost_peer() -> None:
    assert lost_contact(RuntimeError("[/gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert not lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_contact(ValueError("Connection closed by peer"))


def test_synchronised_batch_norm_does_not_break_the_graph() -> None:
    """torch.compile sees one graph; a group that only pretends stands for two ranks."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        network = synchronise_batch_norm(
            _network().float(),
            Processes(rank=0, world_size=2, local_rank=0, device=torch.device("cpu")),
        )
        found = torch._dynamo.explain(network)(_batch()[0].float())
        assert found.graph_break_count == 0 and found.graph_count == 1, found.break_reasons
    finally:
        dist.destroy_process_group()


def _finds_no_other(processes: Processes) -> list[bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch has renamed an option
        network, static = processes.wrap(_network()), processes.wrap(_network(), static_graph=True)
    return [
        network.gradient_as_bucket_view,
        network.broadcast_buffers,
        network.static_graph,
        static.static_graph,
    ]


def test_gradients_live_in_the_buckets_and_buffers_are_not_sent() -> None:
    assert run(_finds_no_other, 2) == [[True, False, False, True]] * 2
    network = _network()
    assert ALONE.wrap(network) is network


def test_restarted_ranks_agree_on_a_word_of_their_own_whoever_comes_first() -> None:
    """torchrun's store outlives a restart, and with it what the dead ranks have written."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def client() -> dist.Store:
        return dist.TCPStore("127.0.0.1", store.port, is_master=False)

    words: set[str] = set()
    with ThreadPoolExecutor(3) as pool:
        for order in itertools.permutations(range(3)):
            waiting = []
            for rank in order:
                waiting.append(pool.submit(agreed_round, client(), rank, 3, timeout_s=30))
                time.sleep(0.05)
            found = {future.result(timeout=60) for future in waiting}
            assert len(found) == 1 and not found & words
            words |= found
        with pytest.raises(RuntimeError, match="rank 1, 2 did not come within 0.05 s"):
            agreed_round(client(), 0, 3, timeout_s=0.05)


def _runs_a_layer_twice(processes: Processes) -> tuple[dict[str, list[float]], int]:
    """As a checkpointed stage does in backward: the counter is away, the momentum is 0."""
    layer = synchronise_batch_norm(nn.BatchNorm2d(3).double(), processes)
    image, _ = _batch()
    own = image[processes.rank * 3 : processes.rank * 3 + 3].requires_grad_()

    def stage(inputs: torch.Tensor) -> torch.Tensor:
        return layer(inputs)

    @contextmanager
    def frozen() -> Iterator[None]:
        kept = layer.momentum, layer.num_batches_tracked
        layer.momentum, layer.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            layer.momentum, layer.num_batches_tracked = kept

    result = checkpoint(
        stage, own, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen())
    )
    result.square().sum().backward()
    assert layer.running_var is not None and layer.num_batches_tracked is not None
    values = {"running_var": layer.running_var.tolist(), "weight": layer.weight.grad.tolist()}
    return values, int(layer.num_batches_tracked)


def test_activation_checkpointing_with_several_processes_moves_statistics_once() -> None:
    whole = nn.BatchNorm2d(3).double()
    whole(_batch()[0]).square().sum().backward()
    (first, count), (second, _) = run(_runs_a_layer_twice, 2)
    assert count == 1 and first["running_var"] == second["running_var"]
    assert whole.running_var is not None and whole.weight.grad is not None
    found = torch.tensor(first["running_var"], dtype=torch.float64)
    torch.testing.assert_close(found, whole.running_var, rtol=1e-10, atol=0)
    summed = torch.tensor(first["weight"]).double() + torch.tensor(second["weight"]).double()
    torch.testing.assert_close(summed, whole.weight.grad, rtol=1e-5, atol=1e-5)


def _evaluates(processes: Processes) -> list[dict[str, list[float]]]:
    """Training without synchronised batch norm, then the weights that a validation sees."""
    network = _network()
    state = TrainingState(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        torch.amp.GradScaler("cpu", enabled=False),
        WeightAverage(network, decay=0.5),
    )
    image, _ = _batch()
    network(image[:3] if processes.rank == 0 else image[3:])
    assert state.average is not None
    state.average.update(network)

    def values(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
        return {name: value.double().reshape(-1).tolist() for name, value in tensors.items()}

    own = values(network.state_dict())
    with state.evaluated_weights():
        scored = values(network.state_dict())
    return [own, scored, values(state.weights())]


def test_without_synchronised_batch_norm_all_ranks_score_what_rank_0_saves() -> None:
    """Else the printed mIoU belongs to no checkpoint."""
    (own_first, first, saved), (own_second, second, _) = run(_evaluates, 2)
    assert own_first["1.running_mean"] != own_second["1.running_mean"]
    assert first == second == saved


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_with_too_old_a_driver_is_never_silently_the_cpu(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ProcessError, match="driver on your system is too old.*runtime.device=cpu"):
        join(device=device)
    assert join(device="cpu").device.type == "cpu"

    # Who hides the GPUs wants the CPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if device == "auto":
        assert join(device=device).device.type == "cpu"


def test_a_machine_without_a_gpu_uses_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(device="auto").device.type == "cpu"
    with pytest.raises(ProcessError, match="sees no CUDA device"):
        join(device="cuda")


def test_a_mac_without_a_gpu_and_torchrun_on_one_are_a_sentence_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ProcessError, match="sees no GPU of Apple's.*runtime.device=cpu"):
        join(device="mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert join(device="mps").device == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessError, match="one GPU and works in one process"):
        join(device="mps")


@pytest.mark.parametrize("chosen", [None, "PYTORCH_CUDA_ALLOC_CONF"])
def test_cudas_memory_may_grow_unless_the_user_has_set_it_up(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    for name in (*names, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if chosen is not None:
        monkeypatch.setenv(chosen, "backend:cudaMallocAsync")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("sys.platform", "linux")
    assert join().device == torch.device("cuda", 0)

    found = {name: os.environ[name] for name in names if name in os.environ}
    expected = {chosen: "backend:cudaMallocAsync"}
    if chosen is None:
        (name,) = found
        expected = {name: "expandable_segments:True"}
    assert found == expected
    for name in found:
        monkeypatch.delenv(name)
