"""Cars, trucks, buses and trains: side profiles extruded to their width, standing at any angle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes import ids, surfaces
from scripts.demo_scenes.canvas import Colour, Points
from scripts.demo_scenes.stage import Stage

TYRE: Colour = (34, 33, 34)
GLASS: Colour = (58, 68, 80)


@dataclass(frozen=True)
class Pose:
    """Where an object stands: middle of its footprint (x, z) in metres and its heading in radians (0: along z)."""

    x: float
    z: float
    heading: float = 0.0

    def world(self, points: Points) -> Points:
        """Object points [n, 3] (across, up, along) to world points."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        across, up, along = points.T
        return np.stack(
            [self.x + cos * across + sin * along, up, self.z - sin * across + cos * along], axis=1
        )


@dataclass(frozen=True)
class Body:
    """An extruded side profile [n, 2] (along, up), counter-clockwise, with painted details on its sides."""

    profile: NDArray[np.float64]
    width: float
    colour: Colour
    glazed: frozenset[int] = frozenset()  # indices of profile edges that are windscreens
    side_windows: tuple[NDArray[np.float64], ...] = ()
    cladding: tuple[NDArray[np.uint8], float] | None = (
        None  # texture of the side and its texels per metre
    )
    wheels: tuple[float, ...] = ()
    wheel_radius: float = 0.33
    lamps: float = 0.0  # height of the lamps at both ends, 0: none
    end_windows: float = 0.0  # height of the lower edge of windows in flat ends, 0: none
    grain: float = 2.0


def draw_body(stage: Stage, body: Body, pose: Pose, ident: int) -> None:
    """Paint the faces of a body that look at the camera, far ones first."""
    eye = np.array([0.0, stage.camera.height, 0.0])
    faces: list[tuple[float, str, int, Points]] = []
    for sign in (-1, 1):
        side = np.column_stack(
            [
                np.full(len(body.profile), sign * body.width / 2),
                body.profile[:, 1],
                body.profile[:, 0],
            ]
        )
        faces.append((0.0, "side", sign, pose.world(side)))
    for edge in range(len(body.profile)):
        (a, b), half = (body.profile[edge - 1], body.profile[edge]), body.width / 2
        quad = np.array(
            [[-half, a[1], a[0]], [half, a[1], a[0]], [half, b[1], b[0]], [-half, b[1], b[0]]]
        )
        faces.append((0.0, "strip", edge, pose.world(quad)))
    middle = pose.world(
        np.array([[0.0, float(body.profile[:, 1].mean()), float(body.profile[:, 0].mean())]])
    )[0]
    visible = [
        (float(np.linalg.norm(points.mean(axis=0) - eye)), kind, index, points)
        for _, kind, index, points in faces
        if _faces_eye(points, eye, middle)
    ]
    for _, kind, index, points in sorted(visible, key=lambda face: -face[0]):
        if kind == "side":
            _draw_side(stage, body, pose, index, points, ident)
        else:
            _draw_strip(stage, body, index, points, ident)


def _faces_eye(points: Points, eye: Points, middle: Points) -> bool:
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    if normal @ (points[0] - middle) < 0:
        normal = -normal
    return bool(normal @ (eye - points[0]) > 0)


def _draw_side(stage: Stage, body: Body, pose: Pose, sign: int, points: Points, ident: int) -> None:
    light = 1.0 if sign == stage.sun_side else 0.84
    half = sign * body.width / 2
    if body.cladding is None:
        stage.face(points, ident, body.colour, light=light, strength=body.grain)
    else:
        texture, texels = body.cladding
        low, high = body.profile.min(axis=0), body.profile.max(axis=0)
        corners = pose.world(
            np.array([[half, high[1], low[0]], [half, high[1], high[0]], [half, low[1], low[0]]])
        )
        lit = np.clip(texture.astype(np.float32) * light, 0, 255).astype(np.uint8)
        stage.sheet(
            corners[0], corners[1] - corners[0], corners[2] - corners[0], ident, lit, texels
        )
    for pane in body.side_windows:
        flat = np.column_stack([np.full(len(pane), half), pane[:, 1], pane[:, 0]])
        stage.face(pose.world(flat), ident, GLASS, light=light)
    turn = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    for along in body.wheels:
        for radius, colour in (
            (body.wheel_radius, TYRE),
            (body.wheel_radius * 0.5, (128, 128, 132)),
        ):
            ring = np.column_stack(
                [
                    np.full(18, half * 1.01),
                    body.wheel_radius + radius * np.sin(turn),
                    along + radius * np.cos(turn),
                ]
            )
            stage.face(pose.world(ring), ident, colour, light=light)


def _draw_strip(stage: Stage, body: Body, edge: int, points: Points, ident: int) -> None:
    a, b = body.profile[edge - 1], body.profile[edge]
    steep = abs(b[1] - a[1]) / (abs(b[0] - a[0]) + 1e-6)
    light = 0.92 if steep > 1.5 else 1.1
    colour = GLASS if edge in body.glazed else body.colour
    stage.face(
        points, ident, colour, light=light, strength=body.grain if colour is body.colour else 0.0
    )
    if steep < 4 or abs(b[1] - a[1]) < 0.3:
        return
    front, low, high = b[0] > 0, min(a[1], b[1]), max(a[1], b[1])
    left, right = points[np.argmin(points[:, 0])], points[np.argmax(points[:, 0])]
    if body.end_windows:
        _end_panel(stage, left, right, (0.1, 0.9), (body.end_windows, high - 0.45), GLASS, ident)
    if body.lamps:
        lamp: Colour = (236, 232, 210) if front else (186, 40, 34)
        for span in ((0.04, 0.17), (0.83, 0.96)):
            _end_panel(stage, left, right, span, (body.lamps, body.lamps + 0.16), lamp, ident)
        _end_panel(
            stage, left, right, (0.36, 0.64), (low + 0.16, low + 0.3), (226, 226, 218), ident
        )


def _end_panel(
    stage: Stage,
    left: Points,
    right: Points,
    span: tuple[float, float],
    heights: tuple[float, float],
    colour: Colour,
    ident: int,
) -> None:
    a, b = (left + (right - left) * share for share in span)
    if heights[1] <= heights[0]:
        return
    corners = np.array(
        [
            [a[0], heights[0], a[2]],
            [b[0], heights[0], b[2]],
            [b[0], heights[1], b[2]],
            [a[0], heights[1], a[2]],
        ]
    )
    stage.face(corners, ident, colour)


def _shadow(stage: Stage, pose: Pose, length: float, width: float) -> None:
    half, reach = width / 2 + 0.15, length / 2 + 0.2
    shift = 0.35 * -stage.sun_side
    corners = np.array([[-half, 0, -reach], [half, 0, -reach], [half, 0, reach], [-half, 0, reach]])
    world = pose.world(corners) + np.array([shift, 0.0, 0.0])
    stage.shadow(world, 0.55)


def draw_car(stage: Stage, pose: Pose) -> None:
    """A saloon, a hatchback or a van of about 4.4 m."""
    rng = stage.rng
    length = float(rng.uniform(3.9, 4.8))
    back, front = -length / 2, length / 2
    boxy = float(rng.choice([0.0, 0.25, 0.6]))
    roof = float(rng.uniform(1.42, 1.55)) + boxy * 0.5
    bonnet = 0.62 * front - 0.25 * boxy
    profile = np.array(
        [
            [back, 0.3],
            [front, 0.3],
            [front, 0.72],
            [bonnet + 0.25, 0.92],
            [0.5 * bonnet, roof],
            [0.62 * back - 0.35 * boxy, roof],
            [0.93 * back, 0.95],
            [back, 0.85],
        ]
    )
    pillar = 0.1 * front - 0.1
    panes = (
        np.array(
            [
                [pillar, 0.98],
                [bonnet + 0.05, 0.98],
                [0.5 * bonnet - 0.05, roof - 0.1],
                [pillar, roof - 0.1],
            ]
        ),
        np.array(
            [
                [0.8 * back, 0.98],
                [pillar - 0.1, 0.98],
                [pillar - 0.1, roof - 0.1],
                [0.62 * back, roof - 0.1],
            ]
        ),
    )
    body = Body(
        profile=profile,
        width=1.8,
        colour=stage.paint("car"),
        glazed=frozenset({4, 6}),
        side_windows=panes,
        wheels=(0.62 * back, 0.62 * front),
        lamps=0.62,
    )
    _shadow(stage, pose, length, 1.8)
    draw_body(stage, body, pose, stage.canvas.instance(ids.CAR))


def draw_bus(stage: Stage, pose: Pose) -> None:
    """A city bus of 11 m: one row of the scene's windows, or two, above wheels."""
    rng, length, double = (
        stage.rng,
        float(stage.rng.uniform(10, 12)),
        bool(stage.rng.random() < 0.3),
    )
    height = 4.1 if double else 3.1
    colour = stage.paint("bus")
    side, texels = surfaces.plain(
        length,
        height - 0.35,
        _texels(stage, pose, length),
        colour,
        stage.windows.grain,
        stage.texture_rng,
    )
    surfaces.windows(
        side,
        texels,
        stage.windows,
        colour,
        rng,
        top=0.45,
        pitch=1.9,
        rows=2 if double else 1,
        margin=0.25,
    )
    if rng.random() < 0.5:
        surfaces.stripe(side, texels, stage.paint("bus"), top=height - 0.35 - 0.55, height=0.3)
    _box_vehicle(
        stage,
        pose,
        ids.BUS,
        colour,
        side,
        texels,
        (length, height, 2.5),
        wheels=(-0.3, 0.32),
        radius=0.48,
    )


def draw_train(stage: Stage, pose: Pose) -> None:
    """A tram of two or three cars, without visible wheels, with dark bellows and a current collector."""
    rng, count, length = stage.rng, int(stage.rng.integers(2, 4)), float(stage.rng.uniform(9, 12))
    colour, second = stage.paint("train"), stage.paint("train")
    ident = stage.canvas.instance(ids.TRAIN)
    _shadow(stage, pose, count * (length + 0.6), 2.5)
    offsets = [(car - (count - 1) / 2) * (length + 0.6) for car in range(count)]
    order = sorted(
        offsets, key=lambda o: -float(np.hypot(*pose.world(np.array([[0.0, 0.0, o]]))[0][[0, 2]]))
    )
    for offset in order:
        x, _, z = pose.world(np.array([[0.0, 0.0, offset]]))[0]
        car = Pose(float(x), float(z), pose.heading)
        side, texels = surfaces.plain(
            length, 3.3, _texels(stage, car, length), colour, stage.windows.grain, stage.texture_rng
        )
        surfaces.windows(
            side, texels, stage.windows, colour, rng, top=0.55, pitch=2.0, rows=1, margin=0.25
        )
        surfaces.stripe(side, texels, second, top=2.1, height=0.35)
        surfaces.stripe(side, texels, (46, 46, 50), top=2.95, height=0.4)
        bellow = np.array(
            [
                [-length / 2 - 0.6, 0.5],
                [length / 2 + 0.6, 0.5],
                [length / 2 + 0.6, 3.2],
                [-length / 2 - 0.6, 3.2],
            ]
        )
        if count > 1:
            draw_body(
                stage,
                Body(profile=bellow[[0, 1, 2, 3]], width=2.0, colour=(56, 56, 60)),
                car,
                ident,
            )
        nose = 0.7
        profile = np.array(
            [
                [-length / 2, 0.12],
                [length / 2, 0.12],
                [length / 2, 1.3],
                [length / 2 - nose * 0.5, 3.1],
                [length / 2 - nose, 3.42],
                [-length / 2 + nose, 3.42],
                [-length / 2 + nose * 0.5, 3.1],
                [-length / 2, 1.3],
            ]
        )
        body = Body(
            profile=profile,
            width=2.5,
            colour=colour,
            cladding=(side, texels),
            glazed=frozenset({3, 7}),
            lamps=0.8,
        )
        draw_body(stage, body, car, ident)
    arm = pose.world(
        np.array([[0, 3.4, -0.8], [0, 4.3, 0.1], [0, 4.3, 0.1], [0, 3.4, 0.9]], dtype=np.float64)
    )
    if arm[:, 2].min() > stage.camera.near:
        thickness = max(1.0, 0.08 * stage.camera.scale(pose.z))
        stage.canvas.line(stage.camera.project(arm), ident, (52, 52, 56), thickness=thickness)


def draw_truck(stage: Stage, pose: Pose) -> None:
    """A lorry: a cab and a tall box clad like a wall, or like a blind facade."""
    rng, length = stage.rng, float(stage.rng.uniform(7.5, 10.5))
    colour, height, ident = (
        stage.paint("truck"),
        float(rng.uniform(3.3, 3.9)),
        stage.canvas.instance(ids.TRUCK),
    )
    _shadow(stage, pose, length, 2.4)
    box_length = length - 2.3
    side, texels = surfaces.plain(
        box_length,
        height - 0.8,
        _texels(stage, pose, length),
        colour,
        stage.windows.grain,
        stage.texture_rng,
    )
    surfaces.joints(
        side, texels, colour, every=float(rng.uniform(1.0, 2.4)), rows=bool(rng.random() < 0.4)
    )
    if rng.random() < 0.4:
        surfaces.windows(
            side, texels, stage.windows, colour, rng, top=0.7, pitch=2.0, rows=1, margin=0.6
        )
    back = -length / 2
    box = Body(
        profile=np.array(
            [[back, 0.8], [back + box_length, 0.8], [back + box_length, height], [back, height]]
        ),
        width=2.45,
        colour=colour,
        cladding=(side, texels),
        lamps=0.95,
        grain=stage.windows.grain,
    )
    front = length / 2
    cab = Body(
        profile=np.array(
            [
                [front - 2.1, 0.5],
                [front, 0.5],
                [front, 1.5],
                [front - 0.3, 2.6],
                [front - 0.6, 2.75],
                [front - 2.1, 2.75],
            ]
        ),
        width=2.3,
        colour=stage.paint("truck"),
        glazed=frozenset({3}),
        lamps=0.8,
        side_windows=(
            np.array(
                [[front - 1.5, 1.5], [front - 0.35, 1.5], [front - 0.55, 2.4], [front - 1.5, 2.4]]
            ),
        ),
    )
    frame = Body(
        profile=np.array([[back, 0.45], [front - 1.9, 0.45], [front - 1.9, 0.8], [back, 0.8]]),
        width=2.3,
        colour=(50, 50, 52),
    )
    wheels = replace(
        frame, width=2.4, wheels=(back + 0.9, back + 1.95, front - 1.2), wheel_radius=0.5
    )
    eye_to_front = np.linalg.norm(pose.world(np.array([[0.0, 0.0, front]]))[0])
    eye_to_back = np.linalg.norm(pose.world(np.array([[0.0, 0.0, back]]))[0])
    parts = [frame, cab, box] if eye_to_back < eye_to_front else [frame, box, cab]
    for part in (*parts, wheels):
        draw_body(stage, part, pose, ident)


def _box_vehicle(
    stage: Stage,
    pose: Pose,
    raw_id: int,
    colour: Colour,
    side: NDArray[np.uint8],
    texels: float,
    size: tuple[float, float, float],
    *,
    wheels: tuple[float, float],
    radius: float,
) -> None:
    length, height, width = size
    profile = np.array(
        [[-length / 2, 0.35], [length / 2, 0.35], [length / 2, height], [-length / 2, height]]
    )
    body = Body(
        profile=profile,
        width=width,
        colour=colour,
        cladding=(side, texels),
        lamps=0.75,
        end_windows=height - 1.9,
        wheels=(wheels[0] * length, wheels[1] * length),
        wheel_radius=radius,
        grain=stage.windows.grain,
    )
    _shadow(stage, pose, length, width)
    draw_body(stage, body, pose, stage.canvas.instance(raw_id))


def _texels(stage: Stage, pose: Pose, length: float) -> float:
    ends = pose.world(np.array([[0.0, 0.0, -length / 2], [0.0, 0.0, 0.0], [0.0, 0.0, length / 2]]))
    nearest = float(np.clip(ends[:, 2].min(), stage.camera.near, None))
    return float(np.clip(stage.camera.scale(nearest * 1.3), 4.0, 64.0))
