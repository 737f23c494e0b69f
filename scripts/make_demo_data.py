"""Draw a miniature Cityscapes: `python scripts/make_demo_data.py OUT`.

The folder has the official layout (`leftImg8bit`, `gtFine`, `gtCoarse`; raw ids in
`*_labelIds.png`). Every scene is a function of (seed, split, index) alone: the number of processes
changes nothing, and more scenes leave the first ones as they were. Called again it draws what is
missing. Unlike the real benchmark, the test split has labels, which come from a stream of their
own. With --fine-extra the coarsely labelled images have fine labels too, by which
scripts/label_errors.py judges coarse and automatic ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import at_least
from hmsa.utils.files.writing import write_file
from hmsa.utils.words import UserError
from scripts.demo_scenes.coarse import draw_coarse
from scripts.demo_scenes.scene import SCENES_VERSION, draw_scene, stream

CITIES = {
    "train": ("aachenau", "bremfurt", "colmar_am_see", "dornstadt"),
    "val": ("frankweiler", "lindenau"),
    "test": ("berlingen", "mainzell"),
    "train_extra": ("augsdorf", "bayerheim", "dortburg", "konstein"),
}
WITH_FINE, WITH_COARSE = ("train", "val", "test"), ("train", "val", "train_extra")
LARGEST_SIDE = 8192  # pixels; scenes are drawn at twice that

# Version 1 was called by a hash of its source code before it had a number.
FORMER_NAMES = {"9c331d59265c": 1}


@dataclass(frozen=True)
class SceneJob:
    """One scene to draw and where its files go."""

    root: Path
    split: str
    index: int
    seed: int
    height: int
    width: int
    fine_extra: bool = False

    @property
    def is_fine(self) -> bool:
        """Whether it gets fine labels."""
        return self.split in WITH_FINE or self.fine_extra

    @property
    def city(self) -> str:
        """Scenes take turns among the cities of their split."""
        cities = CITIES[self.split]
        return cities[self.index % len(cities)]

    @property
    def stem(self) -> str:
        """The official name without its suffix: city, sequence, frame."""
        return f"{self.city}_{self.index // len(CITIES[self.split]):06d}_000019"

    def path(self, folder: str, suffix: str) -> Path:
        """Where a file of this scene lies."""
        return self.root / folder / self.split / self.city / f"{self.stem}_{suffix}.png"

    def files(self) -> list[Path]:
        """All files of this scene, in the order in which they are written."""
        found = [self.path("leftImg8bit", "leftImg8bit")]
        if self.is_fine:
            found.append(self.path("gtFine", "gtFine_labelIds"))
            found.append(self.path("gtFine", "gtFine_instanceIds"))
        if self.split in WITH_COARSE:
            found.append(self.path("gtCoarse", "gtCoarse_labelIds"))
        return found


def write_scene(job: SceneJob) -> tuple[str, NDArray[np.int64]]:
    """Draw a scene and write its image and labels.

    Returns the split and the pixels of each raw id [256].
    """
    cv2.setNumThreads(1)  # the processes use all cores already
    scene = draw_scene(
        seed=job.seed, split=job.split, index=job.index, height=job.height, width=job.width
    )

    contents: list[NDArray[np.uint8] | NDArray[np.uint16]] = [scene.image[:, :, ::-1]]
    if job.is_fine:
        contents += [scene.label, scene.ids]
    if job.split in WITH_COARSE:
        contents.append(draw_coarse(scene.ids, stream(job.seed, f"coarse/{job.split}", job.index)))

    for path, array in zip(job.files(), contents, strict=True):
        encoded, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        assert encoded, path
        write_file(path, data.tobytes())
    return job.split, np.bincount(scene.label.ravel(), minlength=256)


def make_demo_data(
    root: Path,
    *,
    counts: dict[str, int],
    seed: int,
    size: tuple[int, int],
    workers: int,
    fine_extra: bool = False,
) -> dict[str, NDArray[np.int64]]:
    """Draw those of `counts[split]` scenes of (height, width) that `root` lacks.

    `fine_extra` draws fine labels for split train_extra, too.

    Returns their pixels per split and raw id [256].
    """
    every = (
        SceneJob(
            root=root,
            split=split,
            index=index,
            seed=seed,
            height=size[0],
            width=size[1],
            fine_extra=fine_extra,
        )
        for split, count in counts.items()
        for index in range(count)
    )
    jobs = [job for job in every if not all(path.exists() for path in job.files())]

    pixels = {split: np.zeros(256, np.int64) for split in counts}
    if workers <= 1:
        for split, histogram in map(write_scene, jobs):
            pixels[split] += histogram
    else:
        # Spawned, not forked: OpenCV's threads do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for split, histogram in pool.map(write_scene, jobs, chunksize=4):
                pixels[split] += histogram
    return pixels


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Draw a miniature Cityscapes in the official layout."
    )
    parser.add_argument(
        "out", type=Path, help="folder to write; a folder that holds another drawing is refused"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="scenes are a function of it")
    for split, count in (("train", 192), ("val", 40), ("test", 40), ("extra", 160)):
        parser.add_argument(
            f"--{split}", type=at_least(0), default=count, help=f"scenes (default {count})"
        )
    parser.add_argument(
        "--size",
        type=at_least(64),
        nargs=2,
        default=(256, 512),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of an image (default 256 512)",
    )
    parser.add_argument(
        "--fine-extra", action="store_true", help="give the coarsely labelled images fine labels"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=os.cpu_count() or 1, help="processes"
    )

    options = parser.parse_args(arguments)
    if max(options.size) > LARGEST_SIDE:
        parser.error(f"argument --size: at most {LARGEST_SIDE} pixels a side")
    return options


def claim_folder(root: Path, recipe: dict[str, Any]) -> None:
    """Mark `root`, made when it is missing, as a drawing of `recipe`.

    Raises:
        UserError: When it holds anything else, or cannot be written.
    """
    marker = root / "demo.json"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            held = _recipe_of(marker)
            if held != recipe:
                raise UserError(
                    f"{root} already holds something else than a drawing of {recipe}: "
                    "choose another folder, or remove this one"
                )
        write_file(marker, json.dumps({"recipe": recipe}) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{root} cannot be written ({error}): choose another folder") from error


def _recipe_of(marker: Path) -> dict[str, Any] | None:
    """What a folder says that it is a drawing of; None when it says nothing that can be read."""
    if not marker.exists():
        return None
    content = json.loads(marker.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        return None

    recipe = dict(content["recipe"])
    name = recipe.get("drawing")
    if isinstance(name, str):
        recipe["drawing"] = FORMER_NAMES.get(name, name)
    return recipe


def main(arguments: list[str] | None = None) -> int:
    """Draw the data set; exit status 2 when the folder cannot take it."""
    options = parse(arguments)
    size = (options.size[0], options.size[1])
    counts = {
        "train": options.train,
        "val": options.val,
        "test": options.test,
        "train_extra": options.extra,
    }
    recipe = {"seed": options.seed, "size": list(size), "drawing": SCENES_VERSION}

    start = time.perf_counter()
    try:
        claim_folder(options.out, recipe)
        pixels = make_demo_data(
            options.out,
            counts=counts,
            seed=options.seed,
            size=size,
            workers=options.workers,
            fine_extra=options.fine_extra,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    scenes = ", ".join(f"{count} {split}" for split, count in counts.items())
    done = "all there"
    if any(map(np.any, pixels.values())):
        done = f"drawn in {time.perf_counter() - start:.0f} s"
    print(f"{options.out}: {scenes} scenes of {size[0]} x {size[1]}, {done}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
