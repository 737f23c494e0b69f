"""Loaders: the same batches for any number of workers and ranks and after a resume; errors that
name their file; workers that outlive signals.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa.datasets import (
    Augmentation,
    ClassUniform,
    DataError,
    ExtraSource,
    Files,
    LabelPolicy,
    TrainLoader,
    build_eval_loader,
    build_train_loader,
    explain_lost_worker,
)
from tests.datasets.trees import subset

MakeFiles = Callable[..., Files]
AUGMENTATION = Augmentation(crop=(16, 20), blur="gaussian")


def random_labels(
    count: int, *, size: tuple[int, int] = (24, 30), seed: int = 0
) -> list[np.ndarray]:
    """Blocks of 4 classes and ignore."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 3, 255], (count, size[0] // 6 + 1, size[1] // 6 + 1)).astype(
        np.uint8
    )
    return [
        np.kron(block, np.ones((6, 6), dtype=np.uint8))[: size[0], : size[1]] for block in blocks
    ]


@pytest.fixture
def files(make_files: MakeFiles) -> Files:
    """13 pairs."""
    return make_files(random_labels(13))


def options(**changes: Any) -> dict[str, Any]:
    """Class-uniform sampling and all augmentation on."""
    return {
        "augmentation": AUGMENTATION,
        "batch_size": 2,
        "seed": 5,
        "class_uniform": ClassUniform(tile=12),
        **changes,
    }


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two batches are the same in every part."""
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key])
        if isinstance(first[key], torch.Tensor)
        else first[key] == second[key]
        for key in first
    )


def test_a_batch(files: Files) -> None:
    """uint8, channels last in memory, labels of the spec, names and indices that belong together;
    equal steps in every epoch.
    """
    loader = build_train_loader(files, **options())
    assert len(loader) == 6
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert len(batches) == 6
        for batch in batches:
            assert batch["image"].shape == (2, 3, 16, 20) and batch["image"].dtype == torch.uint8
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
            assert (
                batch["label"].shape == (2, 16, 20)
                and batch["label"].dtype == torch.uint8
                and batch["index"].dtype == torch.int64
            )
            assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 3, 255}
            assert batch["names"] == [files.name(index) for index in batch["index"].tolist()]
        assert torch.cat([batch["position"] for batch in batches]).tolist() == list(range(12))


def test_identical_batches_for_any_number_of_workers_and_after_a_resume(files: Files) -> None:
    """0, 2 and 4 workers, persistent over epochs; in another process order; from the middle of an
    epoch; after an epoch broken off.
    """
    reference = build_train_loader(files, **options())
    expected = {epoch: list(reference.epoch(epoch)) for epoch in (0, 1, 7)}
    assert not equal(expected[0][0], expected[1][0])
    for workers in (0, 2, 4):
        loader = build_train_loader(files, workers=workers, **options())
        for epoch, start in ((1, 0), (0, 0), (7, 4), (7, 0), (0, 5), (0, 6)):
            batches = list(loader.epoch(epoch, start_step=start))
            assert len(batches) == 6 - start and all(
                equal(*pair) for pair in zip(batches, expected[epoch][start:], strict=True)
            )
        broken: Iterator[dict[str, Any]] = loader.epoch(1)
        next(broken)
        broken.close()  # type: ignore[attr-defined]
        assert all(
            equal(*pair)
            for pair in zip(loader.epoch(0, start_step=2), expected[0][2:], strict=True)
        )
        loader.close()


def test_ranks_share_an_epoch(files: Files) -> None:
    """1, 2 and 3 ranks with a global batch of 6 see the same global batches, sample by sample;
    nothing twice, nothing lost.
    """

    def whole(
        world_size: int, batch_size: int, accumulate: int = 1
    ) -> list[list[tuple[int, bytes, bytes]]]:
        loaders = [
            build_train_loader(
                files,
                rank=rank,
                world_size=world_size,
                accumulate=accumulate,
                **options(batch_size=batch_size),
            )
            for rank in range(world_size)
        ]
        assert {len(loader) for loader in loaders} == {2 * accumulate}
        steps: list[list[tuple[int, bytes, bytes]]] = [[] for _ in range(2)]
        for loader in loaders:
            for number, batch in enumerate(loader.epoch(3)):
                for place, image, label in zip(
                    batch["position"].tolist(), batch["image"], batch["label"], strict=True
                ):
                    steps[number // accumulate].append(
                        (place, image.numpy().tobytes(), label.numpy().tobytes())
                    )
        return [sorted(step) for step in steps]

    expected = whole(1, 6)
    assert [place for step in expected for place, *_ in step] == list(range(12))
    assert (
        whole(2, 3) == expected
        and whole(3, 2) == expected
        and whole(1, 2, accumulate=3) == expected
        and whole(3, 1, accumulate=2) == expected
    )


def test_crops_show_the_class_they_were_drawn_for(make_files: MakeFiles) -> None:
    """A class of a single pixel in a corner of one image of many: it is in the crop every time it
    is drawn, at half scale too.
    """
    labels = [np.zeros((40, 50), dtype=np.uint8) for _ in range(12)]
    labels[7][39, 49] = 3
    loader = build_train_loader(
        make_files(labels),
        **options(
            augmentation=replace(AUGMENTATION, crop=(10, 12)),
            batch_size=1,
            class_uniform=ClassUniform(1.0, tile=16),
        ),
    )
    drawn = seen = 0
    for epoch in range(4):
        entries = loader.plan.entries(epoch)
        for batch, entry in zip(loader.epoch(epoch), entries, strict=True):
            drawn += entry["class"] == 3
            seen += (
                entry["class"] == 3
                and bool((batch["label"] == 3).any())
                and batch["index"].item() == 7
            )
    assert drawn == 4 * 6 and seen == drawn


def test_extra_source(make_files: MakeFiles) -> None:
    """Mixture: half of an epoch, with its own policy, threshold and index; indices continue after
    the fine ones. Boost: by class name.
    """
    fine = make_files([np.zeros((20, 20), dtype=np.uint8) for _ in range(8)], name="fine")
    coarse = make_files(
        [np.full((20, 20), index % 2, dtype=np.uint8) for index in range(6)], name="coarse"
    )
    mixture = build_train_loader(
        fine, **options(batch_size=4, class_uniform=None), extra=ExtraSource(files=coarse)
    )
    indices = torch.cat([batch["index"] for batch in mixture.epoch(0)])
    assert len(indices) == 8 and (indices >= 8).sum() == 4 and indices.max() < 14
    dropped = ExtraSource(
        files=replace(coarse, policy=LabelPolicy(classes={"class 1": "drop"})), probability=0.0
    )
    labels = torch.cat(
        [
            batch["label"]
            for batch in build_train_loader(
                fine, **options(class_uniform=None), extra=dropped
            ).epoch(0)
        ]
    )
    assert set(labels.unique().tolist()) == {0, 255}
    boosted = ExtraSource(coarse, mode="boost", boost_classes=["class 1"])
    boost = build_train_loader(
        fine, **options(class_uniform=ClassUniform(1.0, tile=64)), extra=boosted
    )
    indices = torch.cat([batch["index"] for batch in boost.epoch(0)])
    assert (indices >= 8).sum() == 4 and (indices[indices >= 8] % 2 == 1).all()
    with pytest.raises(DataError, match="'clas 1' is not a class of tiny .did you mean 'class 1'"):
        build_train_loader(
            fine, **options(), extra=ExtraSource(coarse, mode="boost", boost_classes=["clas 1"])
        )
    with pytest.raises(DataError, match="they cannot be mixed"):
        other = replace(coarse, spec=replace(coarse.spec, name="other"))
        build_train_loader(fine, **options(), extra=ExtraSource(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_faulty_file_ends_in_its_sentence(files: Files, workers: int) -> None:
    """Also from a worker: a DataError that is the sentence, not a traceback; and the loader can go
    on with another epoch.
    """
    path = files.label_path(4)
    assert path is not None
    good = path.read_bytes()
    loader = build_train_loader(files, workers=workers, **options(class_uniform=None, batch_size=1))
    Image.fromarray(np.full((24, 30), 40, dtype=np.uint8)).save(path)
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    assert (
        str(path) in str(caught.value)
        and "40" in str(caught.value)
        and "Traceback" not in str(caught.value)
    )
    Image.fromarray(np.zeros((23, 30), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match="23 x 30"):
        list(loader.epoch(0))
    path.write_bytes(good)
    assert len(list(loader.epoch(0))) == 13
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_programming_error_keeps_its_traceback_and_names_the_file(
    files: Files, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not dressed up as a user's mistake."""

    def broken(self: Files, index: int, **_: Any) -> np.ndarray:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(Files, "read_label", broken)
    loader = build_train_loader(files, workers=workers, **options(class_uniform=None))
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(loader.epoch(0)))
    assert ".image.png" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_user_mistakes(files: Files) -> None:
    """No labels, no images."""
    with pytest.raises(DataError, match="has no labels"):
        build_train_loader(replace(files, labels=None), **options())
    with pytest.raises(DataError, match="split 'train' in .* has no images"):
        build_train_loader(subset(files, []), **options(class_uniform=None))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_meets_every_image_once(
    make_files: MakeFiles, world_size: int, batch_size: int
) -> None:
    """Over all ranks, however many; batches of equal sizes only; whole images and labels, bit for
    bit; again when iterated again.
    """
    labels = random_labels(7) + random_labels(4, size=(30, 24)) + random_labels(2, size=(12, 12))
    files = make_files(labels)
    seen: list[int] = []
    for rank in range(world_size):
        loader = build_eval_loader(
            files,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            workers=1 if world_size == 2 else 0,
        )
        for _ in range(2):
            indices = []
            batches = list(loader)
            assert len(batches) == len(loader) and all(
                len(batch["names"]) <= batch_size for batch in batches
            )
            for batch in batches:
                for index, image, label, name in zip(
                    batch["index"].tolist(),
                    batch["image"],
                    batch["label"],
                    batch["names"],
                    strict=True,
                ):
                    assert np.array_equal(label.numpy(), labels[index]) and name == files.name(
                        index
                    )
                    assert np.array_equal(image.permute(1, 2, 0).numpy(), files.read_image(index))
                    indices.append(index)
        assert sorted(indices) == list(range(rank, 13, world_size))
        seen += indices
    assert sorted(seen) == list(range(13))


def test_evaluation_without_labels_and_at_a_long_edge(make_files: MakeFiles) -> None:
    """Images alone need no labels; the long edge resizes both, or the image alone for scoring at
    native size.
    """
    files = make_files(random_labels(3, size=(20, 40)))
    bare = replace(files, labels=None)
    assert all("label" not in batch for batch in build_eval_loader(bare, with_label=False))
    with pytest.raises(DataError, match="has no labels"):
        build_eval_loader(bare)
    for native, size in ((False, (15, 30)), (True, (20, 40))):
        for batch in build_eval_loader(files, long_edge=30, score_native=native, batch_size=3):
            assert batch["image"].shape == (3, 3, 15, 30) and batch["label"].shape == (3, *size)
            assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 3, 255}


def worker_pids() -> list[int]:
    """Children of this process that run a data loader's worker."""
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_workers_outlive_signals_to_the_process_group(files: Files) -> None:
    """SIGTERM and SIGINT to every worker in mid-epoch: the epoch ends as if nothing had been."""
    expected = list(build_train_loader(files, **options()).epoch(0))
    before = set(worker_pids())
    loader = build_train_loader(files, workers=2, **options())
    batches = loader.epoch(0)
    made = [next(batches)]
    workers = [pid for pid in worker_pids() if pid not in before]
    assert len(workers) == 2
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    made += list(batches)
    assert all(equal(*pair) for pair in zip(made, expected, strict=True))
    loader.close()
    deadline = time.monotonic() + 20
    while set(worker_pids()) & set(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(worker_pids()) & set(workers)


SCRIPT = """
    import os, pickle, signal, sys
    sys.path.insert(0, {root!r})
    from hmsa.datasets import Augmentation, DataError, build_train_loader
    files = pickle.load(open({files!r}, "rb"))
    crop = Augmentation(crop=(8, 8))
    loader = build_train_loader(files, augmentation=crop, batch_size=1, workers=2)
    batches = loader.epoch(0)
    next(batches)
    {action}
"""


def run_script(
    root: Path, files: Files, tmp_path: Path, action: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own that acts in mid-epoch."""
    import pickle

    stored = tmp_path / "files.pickle"
    stored.write_bytes(pickle.dumps(files))
    program = textwrap.dedent(SCRIPT).format(root=str(root), files=str(stored), action=action)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )


def test_an_exception_in_mid_epoch_ends_the_process(
    root: Path, files: Files, tmp_path: Path
) -> None:
    """Although its traceback keeps the loader alive and its workers ignore SIGTERM, nothing hangs
    at exit.
    """
    done = run_script(root, files, tmp_path, "raise ArithmeticError('in the training step')")
    assert done.returncode == 1 and "in the training step" in done.stderr.splitlines()[-1]


def test_a_lost_worker_is_explained(root: Path, files: Files, tmp_path: Path) -> None:
    """Killed as the kernel does for want of memory; other errors are none of its business."""
    assert (
        explain_lost_worker(RuntimeError("shapes differ")) is None
        and explain_lost_worker(FileNotFoundError("x")) is None
    )
    # The signal of a worker's end may come at once, so that killing it is part of what is tried.
    action = """import multiprocessing
    try:
        for child in multiprocessing.active_children(): os.kill(child.pid, signal.SIGKILL)
        for _ in range(30): list(loader.epoch(1))
    except DataError as error:
        print('DataError:', error)
        os._exit(4)
    except RuntimeError as error:  # it may also come between two batches
        from hmsa.datasets import explain_lost_worker
        print('DataError:', explain_lost_worker(error))
        os._exit(4)"""
    done = run_script(root, files, tmp_path, textwrap.dedent("    " + action))
    assert (
        done.returncode == 4
        and "a data loader worker was lost" in done.stdout
        and "data.workers" in done.stdout
        and done.stdout.count("\n") == 1
    )


def test_loaders_travel_to_spawned_workers(files: Files) -> None:
    """What goes over is picklable and small: arrays of bytes instead of lists of texts."""
    import pickle

    loader = build_train_loader(files, **options())
    copy = pickle.loads(pickle.dumps(loader._reader))
    request = next(iter(loader._steps))
    assert equal(copy.read(request), loader._reader.read(request))
    assert isinstance(loader, TrainLoader) and files.images.dtype.kind == "S"


@pytest.mark.gpu
def test_batches_arrive_pinned(files: Files) -> None:
    """So that copies to the GPU overlap; channels-last memory survives pinning."""
    batch = next(iter(build_train_loader(files, workers=1, **options()).epoch(0)))
    assert (
        batch["image"].is_pinned()
        and batch["label"].is_pinned()
        and batch["image"].is_contiguous(memory_format=torch.channels_last)
    )
