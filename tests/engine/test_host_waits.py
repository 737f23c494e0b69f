"""How often the host waits for the device: in a training step, and for an image.

Counted on a stand-in for a GPU. No count depends on the size of the network or of the image: what
is computed in strips waits in none of them. The same runs show what a GPU without fp64 would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hmsa.engine import autolabel, build, step, train, validation
from hmsa.engine.command_line import StopSignal
from hmsa.engine.evaluate import evaluate
from hmsa.engine.label_images import LabellingJob
from hmsa.loss import LOSSES, build_criterion
from hmsa.network import build_model
from hmsa.network.inference import prepare_for_inference
from hmsa.network.trunks import TRUNKS
from hmsa.utils import synchronised_norm
from hmsa.utils.config import load_config
from hmsa.utils.processes import Processes
from hmsa.utils.synchronised_norm import synchronise_batch_norm
from hmsa.utils.training.trace import Trace
from hmsa.utils.training.training_state import TrainingState
from tests.engine.conftest import configuration, draw
from tests.engine.small import Small
from tests.stand_in_device import DEVICE, StandInDevice, stand_in_device
from tests.utils.norm_kernels import as_norm_kernels


@dataclass
class Counted:
    """What waited in each training step and for each image, by the line that asked for it."""

    steps: list[list[str]] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    fp64: int = 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("street"), train=6, val=2)


def small_config(folder: Path, root: Path, **changes: Any) -> Any:
    sections: dict[str, dict[str, object]] = {
        "model": {"decoder": "ocr"},
        "loss": {"main": "rmi"},
        "optim": {"epochs": 1, "ema_decay": 0.9},
        "runtime": {"log_every": 100},
        "eval": {"flip": True},
    }
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    return load_config(configuration(folder, root, **sections), [])


def images_of(loader: Iterable[Any], seen: StandInDevice, counted: Counted) -> Iterator[Any]:
    """The batches of a loader; what waits until the next one is asked for is noted."""
    for batch in loader:
        before = len(seen.waits)
        yield batch
        counted.images.append(seen.waits[before:])


def train_on(
    device: str, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Counted:
    """Train three steps and validate on a stand-in of that type."""
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    config = small_config(folder, root, **changes)
    processes = Processes(rank=0, world_size=1, local_rank=0, device=torch.device(device))
    counted, marks = Counted(), []
    with stand_in_device(device) as seen:
        seed_step: Callable[..., None] = step.seed_step

        def seed(**keywords: int) -> None:
            marks.append(len(seen.waits))
            seed_step(**keywords)

        def score(model: Any, loader: Any, **keywords: Any) -> Any:
            return evaluate(model, images_of(loader, seen, counted), **keywords)

        monkeypatch.setattr(step, "seed_step", seed)
        monkeypatch.setattr(validation, "evaluate", score)
        trace = Trace(folder, enabled=False)
        with closing(StopSignal()) as stop:
            assert train.train(config, processes, trace, stop, resume=False, dry_run=False) == 0
        counted.steps = [seen.waits[marks[0] : marks[1]], seen.waits[marks[1] : marks[2]]]
        counted.fp64 = seen.created[torch.float64]
    return counted


def test_a_training_step_and_a_validated_image(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = train_on("meta", tmp_path, root, monkeypatch)
    # The flags of the step, which say whether its gradients are used.
    assert [len(waits) for waits in counted.steps] == [1, 1], counted.steps
    # The first image brings constants to the device.
    assert max(len(waits) for waits in counted.images) <= 12, counted.images[0]
    assert len(counted.images[-1]) == 7, counted.images[-1]


def test_on_a_mac_nothing_is_fp64_and_no_devices_mix(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = train_on(
        "mps", tmp_path, root, monkeypatch, data={"augment_on_device": True, "blur": "gaussian"}
    )
    assert len(counted.steps) == 2 and counted.fp64 == 0


@pytest.mark.parametrize("main", LOSSES)
@pytest.mark.parametrize("pool", ["avg", "max", "interp"])
def test_losses_need_no_fp64_on_a_mac(main: str, pool: str) -> None:
    """They are those of the CPU, with their gradients."""
    if main != "rmi" and pool != "avg":
        return
    criterion = build_criterion(
        num_classes=3, main=main, image_weights="linear", rmi={"pool": pool}
    )
    values = torch.randn(2, 3, 40, 36)
    label = torch.randint(0, 3, (2, 40, 36)).to(torch.uint8)

    def judged(logits: torch.Tensor, label: torch.Tensor) -> tuple[list[float], list[float]]:
        logits = logits.requires_grad_()
        terms = criterion(SimpleNamespace(logits=logits, aux=None, scales=None), label)
        torch.stack(list(terms.values())).sum().backward()
        assert logits.grad is not None
        return [float(term.detach()) for term in terms.values()], logits.grad.flatten().tolist()

    expected = judged(values.clone(), label)
    with stand_in_device("mps") as seen:
        found = judged(values.clone().to("mps"), label.to("mps"))
        assert seen.created[torch.float64] == 0
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-3, abs=1e-7)


def test_an_evaluated_image(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that `hmsa eval` computes: the loss, the shares of the scales, boundary F."""
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    config = small_config(tmp_path, root, eval={"scales": [0.5, 1.0, 2.0]})
    processes = Processes(rank=0, world_size=1, local_rank=0, device=DEVICE)
    counted = Counted()
    with stand_in_device() as seen:
        files = build.split_files(config, "val")
        model = build.model_from(config, num_classes=3, trunk_weights=False).eval().to(DEVICE)
        loader = build.split_loader(config, files, processes)
        result = evaluate(
            prepare_for_inference(model),
            images_of(loader, seen, counted),
            spec=files.spec,
            options=build.inference_options(config.eval),
            processes=processes,
            images=2,
            criterion=build.criterion(config, files).to(DEVICE).main,
            attention=True,
            on_maps=lambda index, predicted, label: None,
        )
    assert result.images == len(counted.images) == 2
    assert max(len(waits) for waits in counted.images) <= 12, counted.images[-1]


def test_an_automatic_label(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy to the host goes on while the next image is computed."""
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    config = small_config(tmp_path, root, autolabel={"scales": [0.5, 1.0, 2.0], "flip": True})
    with stand_in_device() as seen:
        files = build.split_files(config, "val")
        model = build.model_from(config, num_classes=3, trunk_weights=False).eval().to(DEVICE)
        loaded = build.Loaded(prepare_for_inference(model), config, files.spec, sha256="")
        job = LabellingJob(
            loaded=loaded,
            files=files,
            options=build.inference_options(config.autolabel),
            policy=autolabel.LabelPolicy(),
            output=tmp_path,
            thresholds=torch.zeros(3).numpy(),
            settings={},
        )
        labelled: list[int] = []
        monkeypatch.setattr(autolabel, "write_label", lambda job, index, *_: labelled.append(index))
        assert autolabel.label_images(job, [0], show=False) == 0

        # The first image has brought constants of the network to the device.
        before = len(seen.waits)
        assert autolabel.label_images(job, [1, 0], show=False) == 0
    waits = seen.waits[before:]
    assert sorted(labelled) == [0, 0, 1]
    # The thresholds, once for all images.
    assert len(waits) == 1 and "label_images" in waits[0], waits


@pytest.fixture
def pretended_group() -> Iterator[None]:
    """Two ranks, of which one is here: collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("pretended_group")
@pytest.mark.parametrize("kernels", [False, True])
def test_a_step_of_several_processes(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gather and an all-reduce for each batch norm, and no wait in any."""
    if kernels:
        as_norm_kernels(monkeypatch.setattr)
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    processes = Processes(rank=0, world_size=2, local_rank=0, device=DEVICE)
    model = build_model(
        trunk="resnet18", decoder="deeplabv3plus", multiscale="hierarchical", num_classes=3
    )
    model = synchronise_batch_norm(model, processes).train()
    calls: list[Any] = []
    for part in model.modules():
        if isinstance(part, synchronised_norm.SynchronisedBatchNorm):
            part.register_forward_hook(lambda module, *_: calls.append(module))
    criterion = build_criterion(num_classes=3)

    with stand_in_device() as seen:
        model = model.to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None)
        image = torch.randn(2, 3, 64, 64, device=DEVICE)
        label = torch.zeros(2, 64, 64, dtype=torch.uint8, device=DEVICE)
        seen.waits.clear()
        seen.operations.clear()

        state.keep_buffers()
        valid_pixels = processes.sum(torch.full((), label.numel(), device=DEVICE))
        terms = criterion(model(image), label, valid_pixels=valid_pixels, parts=2)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        flags = processes.any(~torch.isfinite(loss), ~torch.isfinite(state.gradient_norm()), False)
        state.step()

        assert len(seen.waits) == 1 and "any" in seen.waits[0], seen.waits
        gathers, sums = seen.operations["allgather_"], seen.operations["allreduce_"]
        counters = [
            int(part.num_batches_tracked)
            for part in model.modules()
            if isinstance(part, synchronised_norm.SynchronisedBatchNorm)
        ]
    assert not any(flags)
    assert gathers == len(calls) > 0
    assert sums == len(calls) + 2  # the labelled pixels and the flags
    assert sum(counters) == len(calls)
