"""Evaluation and auto-labelling: waiting, full memory, image sizes, and throughput."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial

import torch

from hmsa.engine import build
from hmsa.engine.evaluate import evaluate
from hmsa.network import InferenceOptions, MultiScaleModel
from hmsa.network.inference import predict_label, prepare_for_inference
from hmsa.utils.config import load_config
from hmsa.utils.processes import Processes
from hmsa.utils.runtime import KernelSearch
from scripts.benchmarks.autolabel import job_row

from .equality import network, noise_batch
from .findings import Finding, GpuSetup, each_of, is_so, not_above, not_below, seconds_of, wait_for
from .runs import DEMO, small_training
from .steps import counted_synchronisations, synchronisations_in

SYNCHRONISATIONS_OF_AN_IMAGE = 12
SIZES = ((512, 1024), (480, 960), (500, 900), (540, 960), (448, 832))


def check_inference(setup: GpuSetup) -> Iterator[Finding]:
    """All of it; what only CUDA can answer is left out on a CPU."""
    model = prepare_for_inference(
        network(setup, "resnet50", "deeplabv3plus", "hierarchical").to(setup.device).eval()
    )
    full_memory, many_sizes = (partial(check, model=model) for check in (_full_memory, _many_sizes))
    if setup.device.type == "cuda":
        yield from each_of(setup, _synchronisations, full_memory)
    yield from each_of(setup, many_sizes, _labelling)


def _synchronisations(setup: GpuSetup) -> Iterator[Finding]:
    """Of an evaluated image: those of two passes over the split less those of one."""
    config = load_config(DEMO, small_training(setup, "evaluation", epochs=1))
    processes = Processes(rank=0, world_size=1, local_rank=0, device=setup.device)
    files = build.split_files(config, "val")
    model = build.model_from(config, num_classes=files.spec.num_classes, trunk_weights=False)
    model = build.place(model, config, setup.device).eval()
    options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True)

    counts = []
    for passes in (1, 1, 2):
        loader = [
            batch
            for _ in range(passes)
            for batch in build.split_loader(config, files, processes, workers=0)
        ]
        with counted_synchronisations() as record:
            evaluate(
                model,
                loader,
                spec=files.spec,
                options=options,
                processes=processes,
                images=passes * len(files),
                show=False,
            )
        counts.append(synchronisations_in(record))
    per_image = (counts[2] - counts[1]) / len(files)
    yield not_above(
        "times an evaluated image waits for the GPU", per_image, SYNCHRONISATIONS_OF_AN_IMAGE
    )


def _full_memory(setup: GpuSetup, model: MultiScaleModel) -> Iterator[Finding]:
    """With half of the memory that an image needs it is inferred in tiles, and that is said."""
    image, _ = noise_batch(setup.size(1024, 2048), count=1)
    image = image.to(setup.device)
    options = InferenceOptions(scales=(0.5, 1.0, 2.0))
    wait_for(setup.device)
    torch.cuda.empty_cache()

    before = torch.cuda.memory_allocated(setup.device)
    torch.cuda.reset_peak_memory_stats(setup.device)
    whole, _ = predict_label(model, image, options)
    needed = torch.cuda.max_memory_allocated(setup.device) - before
    torch.cuda.empty_cache()

    total = torch.cuda.get_device_properties(setup.device).total_memory
    allowed = torch.cuda.memory_reserved(setup.device) + needed // 2
    torch.cuda.set_per_process_memory_fraction(allowed / total, setup.device)
    said: list[str] = []
    try:
        tiled, _ = predict_label(model, image, options, on_fallback=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)
    yield is_so("full memory falls back to tiles", bool(said), otherwise="nothing was said")
    share = float((tiled == whole).double().mean())
    yield not_below("labels in tiles that are those of the whole image", share, 0.95)


def _many_sizes(setup: GpuSetup, model: MultiScaleModel) -> Iterator[Finding]:
    """A size that was never seen takes about as long as one that was: nothing is searched for."""
    options = InferenceOptions(scales=(0.5, 1.0, 2.0))
    ratios = []
    for size in SIZES:
        image, _ = noise_batch(setup.size(*size), count=1)
        work = partial(predict_label, model, image.to(setup.device), options)
        # As evaluation and auto-labelling do it.
        with KernelSearch().for_size(image.shape):
            first, second = seconds_of(work, setup.device), seconds_of(work, setup.device)
        ratios.append(first / second)

    # The first image of all pays for loading kernels.
    yield not_above("first image of a size against its second", statistics.median(ratios[1:]), 3.0)


def _labelling(setup: GpuSetup) -> Iterator[Finding]:
    """The auto-labelling job against the network alone on images that are on the device."""
    names = setup.network("resnet50", "deeplabv3plus")
    arguments = argparse.Namespace(
        **names,
        device=str(setup.device),
        rounds=1 if setup.rehearsal else 5,
        images=2 if setup.rehearsal else 32,
        precision="fp32" if setup.rehearsal else "bf16",
        workers=2,
        confidence=False,
    )
    row = job_row(arguments, setup.size(1024, 2048))
    limit = 0.0 if setup.rehearsal else 0.9
    yield not_below("auto-labelling against the bare network, images/s", row["ratio"], limit)
