"""Who moves and stands in the street: chooses places for vehicles, people and furniture."""

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
    """Cross-section of a street along z: edges of the road in metres, and the edge of what lines it per side."""

    left: float
    right: float
    line_left: float
    line_right: float
    depth: float  # where the street ends

    def lane(self, side: int) -> float:
        """Middle of the driving lane on a side (-1 left, 1 right)."""
        edge = self.left if side < 0 else self.right
        return edge * 0.45

    def pavement(self, side: int, share: float) -> float:
        """A place on the pavement: share 0 at the kerb, 1 at the buildings."""
        edge, line = (self.left, self.line_left) if side < 0 else (self.right, self.line_right)
        return edge + (line - edge) * share


@dataclass
class Crowd:
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
        """Queue a vehicle if its stretch of the lane is free."""
        reach = LENGTHS[kind] / 2 + 0.6
        across = abs(np.sin(pose.heading)) > 0.5
        place = pose.x if across else pose.z
        if not self.claim(lane, place - reach, place + reach):
            return False
        nearest = pose.z - (0.0 if across else 0.6 * reach)
        self.add(nearest, partial(DRAW_VEHICLE[kind], self.stage, pose))
        return True

    def paint(self) -> None:
        """Paint far things first."""
        for _, draw in sorted(self.queue, key=lambda item: -item[0]):
            draw()


def fill_street(stage: Stage, street: Street, wanted: frozenset[str]) -> None:
    """Put the wanted things into a street that runs away from the camera."""
    rng, crowd = stage.rng, Crowd(stage)
    for kind in ("train", "bus", "truck"):
        if kind in wanted:
            side = int(rng.choice([-1, 1]))
            near = LENGTHS[kind] / 2 + (
                rng.uniform(2.0, 16.0) if kind != "train" else rng.uniform(0.0, 14.0)
            )
            _along(crowd, street, kind, side, float(near)) or _along(
                crowd, street, kind, -side, float(near)
            )
    if "hero" in wanted:
        _crossing_hero(crowd, street, str(rng.choice(["bus", "truck", "train"])))
    for _ in range(int(rng.integers(2, 5))):
        _along(crowd, street, "car", int(rng.choice([-1, 1])), float(rng.uniform(6, 45)))
    for side in (-1, 1):
        if rng.random() < 0.6:
            edge = street.left + 1.0 if side < 0 else street.right - 1.0
            for z in np.arange(rng.uniform(5, 12), 45, rng.uniform(5.6, 8.0)):
                crowd.vehicle(
                    "car", Pose(edge, float(z), float(rng.choice([0, np.pi]))), f"parked{side}"
                )
    _furnish(crowd, street, wanted)
    _people(crowd, street, wanted)
    crowd.paint()


def _along(crowd: Crowd, street: Street, kind: str, side: int, z: float) -> bool:
    heading = 0.0 if side > 0 else float(np.pi)
    return crowd.vehicle(kind, Pose(street.lane(side), z, heading), f"lane{side}")


def _crossing_hero(crowd: Crowd, street: Street, kind: str) -> None:
    rng = crowd.stage.rng
    z = float(rng.uniform(6.5, 10.5))
    x = float(
        rng.choice([-1, 1]) * (rng.uniform(9.0, 15.0) if kind == "train" else rng.uniform(2.5, 6.0))
    )
    pose = Pose(x, z, float(np.pi / 2 * rng.choice([-1, 1])))
    if crowd.claim("lane-1", z - 2, z + 2) and crowd.claim("lane1", z - 2, z + 2):
        crowd.add(z - 1.2, partial(DRAW_VEHICLE[kind], crowd.stage, pose))


def _furnish(crowd: Crowd, street: Street, wanted: frozenset[str]) -> None:
    stage, rng = crowd.stage, crowd.stage.rng
    side = int(rng.choice([-1, 1]))
    for z in np.arange(rng.uniform(5, 12), street.depth, rng.uniform(9, 16)):
        crowd.add(
            float(z),
            partial(figures.draw_lamp_post, stage, x=street.pavement(side, 0.12), z=float(z)),
        )
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
            crowd.add(z, partial(draw, stage, x=x, z=z))
    if "board" in wanted:
        z = float(rng.uniform(12, 30))
        crowd.add(z, partial(figures.draw_sign_board, stage, x=float(rng.uniform(-3, 3)), z=z))


def _people(crowd: Crowd, street: Street, wanted: frozenset[str]) -> None:
    stage, rng = crowd.stage, crowd.stage.rng
    if "person" in wanted:
        for _ in range(int(rng.integers(4, 11))):
            z = float(rng.uniform(4.0, 16.0) if rng.random() < 0.5 else rng.uniform(12.0, 50.0))
            share = (
                float(rng.uniform(0.15, 0.85))
                if rng.random() < 0.8
                else float(rng.uniform(-0.9, 0.1))
            )
            crowd.add(
                z,
                partial(
                    figures.draw_person,
                    stage,
                    x=street.pavement(int(rng.choice([-1, 1])), share),
                    z=z,
                ),
            )
    for name, draw in (("bicycle", figures.draw_bicycle), ("motorcycle", figures.draw_motorcycle)):
        if name not in wanted:
            continue
        for _ in range(int(rng.integers(2, 5))):
            z, side = float(rng.uniform(4.2, 15.0)), int(rng.choice([-1, 1]))
            ridden = bool(rng.random() < 0.55)
            share = float(rng.uniform(-0.6, -0.1)) if ridden else float(rng.uniform(0.1, 0.7))
            crowd.add(z, partial(draw, stage, x=street.pavement(side, share), z=z, ridden=ridden))


def fill_crossing(stage: Stage, row_z: float, wanted: frozenset[str]) -> None:
    """Put the wanted things onto a road that crosses the view and ends at a row of houses at ``row_z``."""
    rng, crowd = stage.rng, Crowd(stage)
    lanes = {
        "near": KERB_NEAR + float(rng.uniform(1.7, 2.4)),
        "far": float(max(KERB_NEAR + 5.2, row_z - 7.0)),
    }
    order = [kind for kind in ("train", "bus", "truck") if kind in wanted]
    for index, kind in enumerate(order):
        lane = ("near", "far")[(index + int(rng.integers(2))) % 2]
        reach = 0.55 * lanes[lane]
        pose = Pose(
            float(rng.uniform(-reach, reach)), lanes[lane], float(np.pi / 2 * rng.choice([-1, 1]))
        )
        crowd.vehicle(kind, pose, lane) or crowd.vehicle(
            kind, Pose(pose.x, lanes["far"], pose.heading), "far"
        )
    for lane, z in lanes.items():
        for _ in range(int(rng.integers(1, 4))):
            x = float(rng.uniform(-0.7, 0.7) * z)
            crowd.vehicle("car", Pose(x, z, float(np.pi / 2 * rng.choice([-1, 1]))), lane)
    width = 0.7 * row_z
    verge = row_z - 3.0
    for name, draw, count in (
        ("light", figures.draw_traffic_light, (2, 4)),
        ("sign", figures.draw_sign, (2, 5)),
        ("box", figures.draw_box, (1, 2)),
        ("street_tree", figures.draw_tree, (1, 4)),
        ("person", figures.draw_person, (4, 10)),
    ):
        if name in wanted:
            for _ in range(int(rng.integers(*count))):
                z = (
                    float(verge + rng.uniform(0.0, 1.5))
                    if rng.random() < 0.75
                    else float(rng.uniform(5.2, KERB_NEAR - 0.3))
                )
                crowd.add(z, partial(draw, stage, x=float(rng.uniform(-0.65, 0.65) * z), z=z))
    for x in np.arange(rng.uniform(-width, -width + 8), width, rng.uniform(7, 12)):
        crowd.add(verge, partial(figures.draw_lamp_post, stage, x=float(x), z=verge))
    for name, rider in (("bicycle", figures.draw_bicycle), ("motorcycle", figures.draw_motorcycle)):
        if name in wanted:
            for _ in range(int(rng.integers(2, 5))):
                ridden = bool(rng.random() < 0.55)
                z = float(
                    rng.uniform(5.4, KERB_NEAR + 0.6) if ridden else verge + rng.uniform(0.2, 1.4)
                )
                crowd.add(
                    z,
                    partial(rider, stage, x=float(rng.uniform(-0.6, 0.6) * z), z=z, ridden=ridden),
                )
    if "board" in wanted:
        crowd.add(
            verge,
            partial(
                figures.draw_sign_board, stage, x=float(rng.uniform(-0.3, 0.3) * verge), z=verge
            ),
        )
    crowd.paint()
