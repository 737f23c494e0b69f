"""What moves and stands in the street: chooses places for vehicles, people and furniture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from scripts.demo_scenes import figures, vehicles
from scripts.demo_scenes.stage import Stage
from scripts.demo_scenes.vehicles import Pose

LENGTHS = {"car": 4.8, "bus": 12.0, "truck": 10.0, "train": 32.0}
KERB_NEAR = 6.4  # where a road that crosses the view begins
DRAW_VEHICLE: dict[str, Callable[[Stage, Pose], None]] = {
    "car": vehicles.draw_car,
    "bus": vehicles.draw_bus,
    "truck": vehicles.draw_truck,
    "train": vehicles.draw_train,
}


@dataclass(frozen=True)
class Street:
    """Cross-section of a street along z, in metres.

    The edges of the road, and the edge of the buildings, walls or hedges that line it, per side.
    """

    left: float
    right: float
    line_left: float
    line_right: float
    depth: float  # where the street ends

    def lane(self, side: int) -> float:
        """Middle of the driving lane on a side (-1 left, 1 right)."""
        edge = self.right
        if side < 0:
            edge = self.left
        return edge * 0.45

    def pavement(self, side: int, share: float) -> float:
        """A place on the pavement: share 0 at the kerb, 1 at the buildings."""
        edge, line = self.right, self.line_right
        if side < 0:
            edge, line = self.left, self.line_left
        return edge + (line - edge) * share


@dataclass
class PaintQueue:
    """Everything that will be painted after the buildings, by distance."""

    stage: Stage
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    queue: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def add(self, z: float, draw: Callable[[], None]) -> None:
        """Queue something that stands at distance z."""
        self.queue.append((z, draw))

    def claim(self, lane: str, start: float, end: float) -> bool:
        """Take a stretch of a lane; False when something is there already."""
        spans = self.taken.setdefault(lane, [])
        if any(start < other_end and end > other_start for other_start, other_end in spans):
            return False
        spans.append((start, end))
        return True

    def vehicle(self, kind: str, pose: Pose, lane: str) -> bool:
        """Queue a vehicle if its stretch of the lane is free; returns whether it was."""
        reach = LENGTHS[kind] / 2 + 0.6

        # A vehicle across the view takes its length from x, one along the street from z.
        position, nearest = pose.z, pose.z - 0.6 * reach
        if abs(np.sin(pose.heading)) > 0.5:
            position, nearest = pose.x, pose.z - 0.0
        if not self.claim(lane, position - reach, position + reach):
            return False
        self.add(nearest, partial(DRAW_VEHICLE[kind], self.stage, pose))
        return True

    def paint(self) -> None:
        """Paint far things first."""
        for _, draw in sorted(self.queue, key=lambda item: -item[0]):
            draw()


# The order in which random numbers are drawn below decides what every scene looks like.


def fill_street(stage: Stage, street: Street, wanted: frozenset[str]) -> None:
    """Put the wanted things into a street that runs away from the camera."""
    rng, queue = stage.rng, PaintQueue(stage)

    # Long vehicles first: they find no place once cars stand in the lanes.
    for kind in ("train", "bus", "truck"):
        if kind not in wanted:
            continue
        side = int(rng.choice([-1, 1]))
        if kind == "train":
            gap = rng.uniform(0.0, 14.0)
        else:
            gap = rng.uniform(2.0, 16.0)
        near = float(LENGTHS[kind] / 2 + gap)
        if not _add_along(queue, street, kind, side, near):
            _add_along(queue, street, kind, -side, near)
    if "hero" in wanted:
        _add_across(queue, str(rng.choice(["bus", "truck", "train"])))

    # Cars that drive, then cars that are parked.
    for _ in range(int(rng.integers(2, 5))):
        _add_along(queue, street, "car", int(rng.choice([-1, 1])), float(rng.uniform(6, 45)))
    for side, edge in ((-1, street.left + 1.0), (1, street.right - 1.0)):
        if rng.random() < 0.6:
            for z in np.arange(rng.uniform(5, 12), 45, rng.uniform(5.6, 8.0)):
                pose = Pose(edge, float(z), float(rng.choice([0, np.pi])))
                queue.vehicle("car", pose, f"parked{side}")

    _add_furniture(queue, street, wanted)
    _add_people(queue, street, wanted)
    queue.paint()


def _add_along(queue: PaintQueue, street: Street, kind: str, side: int, z: float) -> bool:
    """A vehicle in the lane of a side, with its traffic; False where the lane is taken."""
    heading = float(np.pi)
    if side > 0:
        heading = 0.0
    return queue.vehicle(kind, Pose(street.lane(side), z, heading), f"lane{side}")


def _add_across(queue: PaintQueue, kind: str) -> None:
    """One large vehicle right before the camera, across both lanes."""
    rng = queue.stage.rng
    z = float(rng.uniform(6.5, 10.5))
    side = rng.choice([-1, 1])
    if kind == "train":
        x = float(side * rng.uniform(9.0, 15.0))
    else:
        x = float(side * rng.uniform(2.5, 6.0))
    pose = Pose(x, z, float(np.pi / 2 * rng.choice([-1, 1])))

    if queue.claim("lane-1", z - 2, z + 2) and queue.claim("lane1", z - 2, z + 2):
        queue.add(z - 1.2, partial(DRAW_VEHICLE[kind], queue.stage, pose))


def _add_furniture(queue: PaintQueue, street: Street, wanted: frozenset[str]) -> None:
    """Lamp posts, traffic lights, signs, boxes, trees and a direction board."""
    stage, rng = queue.stage, queue.stage.rng

    side = int(rng.choice([-1, 1]))
    for z in np.arange(rng.uniform(5, 12), street.depth, rng.uniform(9, 16)):
        x = street.pavement(side, 0.12)
        queue.add(float(z), partial(figures.draw_lamp_post, stage, x=x, z=float(z)))

    for name, draw, count in (
        ("light", figures.draw_traffic_light, (2, 5)),
        ("sign", figures.draw_sign, (2, 6)),
        ("box", figures.draw_box, (1, 2)),
        ("street_tree", figures.draw_tree, (2, 5)),
    ):
        if name not in wanted:
            continue
        for _ in range(int(rng.integers(*count))):
            z = float(rng.uniform(5.5, 26))
            x = street.pavement(int(rng.choice([-1, 1])), float(rng.uniform(0.06, 0.3)))
            queue.add(z, partial(draw, stage, x=x, z=z))

    if "board" in wanted:
        z = float(rng.uniform(12, 30))
        x = float(rng.uniform(-3, 3))
        queue.add(z, partial(figures.draw_sign_board, stage, x=x, z=z))


def _add_people(queue: PaintQueue, street: Street, wanted: frozenset[str]) -> None:
    """People on foot, mostly on the pavement, and two-wheelers on the road or parked."""
    stage, rng = queue.stage, queue.stage.rng

    if "person" in wanted:
        for _ in range(int(rng.integers(4, 11))):
            if rng.random() < 0.5:
                z = float(rng.uniform(4.0, 16.0))
            else:
                z = float(rng.uniform(12.0, 50.0))
            if rng.random() < 0.8:
                share = float(rng.uniform(0.15, 0.85))
            else:
                share = float(rng.uniform(-0.9, 0.1))
            x = street.pavement(int(rng.choice([-1, 1])), share)
            queue.add(z, partial(figures.draw_person, stage, x=x, z=z))

    for name, draw in (("bicycle", figures.draw_bicycle), ("motorcycle", figures.draw_motorcycle)):
        if name not in wanted:
            continue
        for _ in range(int(rng.integers(2, 5))):
            z, side = float(rng.uniform(4.2, 15.0)), int(rng.choice([-1, 1]))
            ridden = bool(rng.random() < 0.55)
            if ridden:
                share = float(rng.uniform(-0.6, -0.1))
            else:
                share = float(rng.uniform(0.1, 0.7))
            x = street.pavement(side, share)
            queue.add(z, partial(draw, stage, x=x, z=z, ridden=ridden))


def fill_crossing(stage: Stage, row_z: float, wanted: frozenset[str]) -> None:
    """Put the wanted things onto a road across the view that ends at a row of houses at `row_z`."""
    rng, queue = stage.rng, PaintQueue(stage)
    lanes = {
        "near": KERB_NEAR + float(rng.uniform(1.7, 2.4)),
        "far": float(max(KERB_NEAR + 5.2, row_z - 7.0)),
    }

    # Long vehicles first, as in a street; one that finds no place tries the far lane.
    order = [kind for kind in ("train", "bus", "truck") if kind in wanted]
    for index, kind in enumerate(order):
        lane = ("near", "far")[(index + int(rng.integers(2))) % 2]
        reach = 0.55 * lanes[lane]
        x = float(rng.uniform(-reach, reach))
        pose = Pose(x, lanes[lane], float(np.pi / 2 * rng.choice([-1, 1])))
        if not queue.vehicle(kind, pose, lane):
            queue.vehicle(kind, Pose(pose.x, lanes["far"], pose.heading), "far")
    for lane, z in lanes.items():
        for _ in range(int(rng.integers(1, 4))):
            x = float(rng.uniform(-0.7, 0.7) * z)
            queue.vehicle("car", Pose(x, z, float(np.pi / 2 * rng.choice([-1, 1]))), lane)

    _add_beside_crossing(queue, row_z, wanted)
    queue.paint()


def _add_beside_crossing(queue: PaintQueue, row_z: float, wanted: frozenset[str]) -> None:
    """Furniture and people on the pavements before and behind a road across the view."""
    stage, rng = queue.stage, queue.stage.rng
    width, verge = 0.7 * row_z, row_z - 3.0

    for name, draw, count in (
        ("light", figures.draw_traffic_light, (2, 4)),
        ("sign", figures.draw_sign, (2, 5)),
        ("box", figures.draw_box, (1, 2)),
        ("street_tree", figures.draw_tree, (1, 4)),
        ("person", figures.draw_person, (4, 10)),
    ):
        if name not in wanted:
            continue
        for _ in range(int(rng.integers(*count))):
            if rng.random() < 0.75:
                z = float(verge + rng.uniform(0.0, 1.5))
            else:
                z = float(rng.uniform(5.2, KERB_NEAR - 0.3))
            x = float(rng.uniform(-0.65, 0.65) * z)
            queue.add(z, partial(draw, stage, x=x, z=z))

    for x in np.arange(rng.uniform(-width, -width + 8), width, rng.uniform(7, 12)):
        queue.add(verge, partial(figures.draw_lamp_post, stage, x=float(x), z=verge))

    # Two-wheelers ride on the near lane and are parked behind the road.
    for name, rider in (("bicycle", figures.draw_bicycle), ("motorcycle", figures.draw_motorcycle)):
        if name not in wanted:
            continue
        for _ in range(int(rng.integers(2, 5))):
            ridden = bool(rng.random() < 0.55)
            if ridden:
                z = float(rng.uniform(5.4, KERB_NEAR + 0.6))
            else:
                z = float(verge + rng.uniform(0.2, 1.4))
            x = float(rng.uniform(-0.6, 0.6) * z)
            queue.add(z, partial(rider, stage, x=x, z=z, ridden=ridden))

    if "board" in wanted:
        x = float(rng.uniform(-0.3, 0.3) * verge)
        queue.add(verge, partial(figures.draw_sign_board, stage, x=x, z=verge))
