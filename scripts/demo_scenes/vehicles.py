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
    """Where an object stands: the middle of its footprint (x, z) in metres, and its heading.

    The heading is in radians; 0 is along z, away from the camera.
    """

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
    """An extruded side profile [n, 2] (along, up), counter-clockwise, with painted details."""

    profile: NDArray[np.float64]
    width: float
    colour: Colour
    glazed: frozenset[int] = frozenset()  # indices of profile edges that are windscreens
    side_windows: tuple[NDArray[np.float64], ...] = ()
    cladding: tuple[NDArray[np.uint8], float] | None = None  # texture of a side, texels per metre
    wheels: tuple[float, ...] = ()
    wheel_radius: float = 0.33
    lamps: float = 0.0  # height of the lamps at both ends, 0: none
    end_windows: float = 0.0  # height of the lower edge of windows in flat ends, 0: none
    grain: float = 2.0


def draw_body(stage: Stage, body: Body, pose: Pose, ident: int) -> None:
    """Paint the faces of a body that look at the camera, far ones first."""
    eye = np.array([0.0, stage.camera.height, 0.0])

    # Two sides, and a strip between them for each edge of the profile.
    faces: list[tuple[str, int, Points]] = []
    for sign in (-1, 1):
        across = np.full(len(body.profile), sign * body.width / 2)
        side = np.column_stack([across, body.profile[:, 1], body.profile[:, 0]])
        faces.append(("side", sign, pose.world(side)))
    for edge in range(len(body.profile)):
        (a, b), half = (body.profile[edge - 1], body.profile[edge]), body.width / 2
        quad = np.array(
            [[-half, a[1], a[0]], [half, a[1], a[0]], [half, b[1], b[0]], [-half, b[1], b[0]]]
        )
        faces.append(("strip", edge, pose.world(quad)))

    # Those that look at the camera, by the distance of their middle.
    along, up = body.profile.mean(axis=0)
    middle = pose.world(np.array([[0.0, up, along]]))[0]
    visible = [
        (float(np.linalg.norm(points.mean(axis=0) - eye)), kind, index, points)
        for kind, index, points in faces
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
    """One side of a body: its paint or cladding, its windows and its wheels."""
    light = 0.84
    if sign == stage.sun_side:
        light = 1.0
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

    # Wheels stand out a little, or the side would cover them.
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
    """One face between the sides: roof, windscreen, bonnet or end."""
    a, b = body.profile[edge - 1], body.profile[edge]
    steep = abs(b[1] - a[1]) / (abs(b[0] - a[0]) + 1e-6)
    light = 1.1
    if steep > 1.5:
        light = 0.92
    colour, grain = body.colour, body.grain
    if edge in body.glazed:
        colour, grain = GLASS, 0.0
    stage.face(points, ident, colour, light=light, strength=grain)
    if steep < 4 or abs(b[1] - a[1]) < 0.3:
        return

    # A flat end has windows, lamps and a number plate.
    front, low, high = b[0] > 0, min(a[1], b[1]), max(a[1], b[1])
    left, right = points[np.argmin(points[:, 0])], points[np.argmax(points[:, 0])]
    if body.end_windows:
        heights = (body.end_windows, high - 0.45)
        _end_panel(stage, (left, right), (0.1, 0.9), heights, GLASS, ident)
    if body.lamps:
        lamp: Colour = (186, 40, 34)
        if front:
            lamp = (236, 232, 210)
        for span in ((0.04, 0.17), (0.83, 0.96)):
            heights = (body.lamps, body.lamps + 0.16)
            _end_panel(stage, (left, right), span, heights, lamp, ident)
        plate = (low + 0.16, low + 0.3)
        _end_panel(stage, (left, right), (0.36, 0.64), plate, (226, 226, 218), ident)


def _end_panel(
    stage: Stage,
    ends: tuple[Points, Points],
    span: tuple[float, float],
    heights: tuple[float, float],
    colour: Colour,
    ident: int,
) -> None:
    """A rectangle on an end between its left and right corner: `span` in shares of the way."""
    left, right = ends
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

    # From the lower edge at the back, over the front, to the boot.
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
    """A city bus of about 11 m: one row of the scene's windows, or two, above wheels."""
    rng = stage.rng
    length = float(rng.uniform(10, 12))
    height, rows = 3.1, 1
    if rng.random() < 0.3:  # a double-decker
        height, rows = 4.1, 2
    colour = stage.paint("bus")

    # The side is a texture: paint, the scene's windows, and now and then a stripe.
    side, texels = surfaces.plain(
        length,
        height - 0.35,
        _texels(stage, pose, length),
        colour=colour,
        grain=stage.windows.grain,
        rng=stage.texture_rng,
    )
    surfaces.windows(
        side, texels, stage.windows, colour, rng, top=0.45, pitch=1.9, rows=rows, margin=0.25
    )
    if rng.random() < 0.5:
        surfaces.stripe(side, texels, stage.paint("bus"), top=height - 0.35 - 0.55, height=0.3)

    low = 0.35
    body = Body(
        profile=np.array(
            [[-length / 2, low], [length / 2, low], [length / 2, height], [-length / 2, height]]
        ),
        width=2.5,
        colour=colour,
        cladding=(side, texels),
        lamps=0.75,
        end_windows=height - 1.9,
        wheels=(-0.3 * length, 0.32 * length),
        wheel_radius=0.48,
        grain=stage.windows.grain,
    )
    _shadow(stage, pose, length, 2.5)
    draw_body(stage, body, pose, stage.canvas.instance(ids.BUS))


def draw_train(stage: Stage, pose: Pose) -> None:
    """A tram of two or three cars with dark bellows and a current collector, without wheels."""
    count, length = int(stage.rng.integers(2, 4)), float(stage.rng.uniform(9, 12))
    colour, second = stage.paint("train"), stage.paint("train")
    ident = stage.canvas.instance(ids.TRAIN)
    _shadow(stage, pose, count * (length + 0.6), 2.5)

    # The cars, the farthest first.
    middles = [
        pose.world(np.array([[0.0, 0.0, (car - (count - 1) / 2) * (length + 0.6)]]))[0]
        for car in range(count)
    ]
    for x, _, z in sorted(middles, key=lambda middle: -float(np.hypot(*middle[[0, 2]]))):
        car = Pose(float(x), float(z), pose.heading)
        _draw_train_car(stage, car, length, colours=(colour, second), ident=ident)

    # The current collector.
    arm = pose.world(
        np.array([[0, 3.4, -0.8], [0, 4.3, 0.1], [0, 4.3, 0.1], [0, 3.4, 0.9]], dtype=np.float64)
    )
    if arm[:, 2].min() > stage.camera.near:
        thickness = max(1.0, 0.08 * stage.camera.scale(pose.z))
        stage.canvas.line(stage.camera.project(arm), ident, (52, 52, 56), thickness=thickness)


def _draw_train_car(
    stage: Stage, car: Pose, length: float, *, colours: tuple[Colour, Colour], ident: int
) -> None:
    """One car of a tram: dark bellows at both ends, and a body with a slanted nose."""
    colour, second = colours
    side, texels = surfaces.plain(
        length,
        3.3,
        _texels(stage, car, length),
        colour=colour,
        grain=stage.windows.grain,
        rng=stage.texture_rng,
    )
    surfaces.windows(
        side, texels, stage.windows, colour, stage.rng, top=0.55, pitch=2.0, rows=1, margin=0.25
    )
    surfaces.stripe(side, texels, second, top=2.1, height=0.35)
    surfaces.stripe(side, texels, (46, 46, 50), top=2.95, height=0.4)

    # The bellows reach beyond the car, and its body covers the rest of them.
    reach = length / 2 + 0.6
    bellow = np.array([[-reach, 0.5], [reach, 0.5], [reach, 3.2], [-reach, 3.2]])
    draw_body(stage, Body(profile=bellow, width=2.0, colour=(56, 56, 60)), car, ident)

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


def draw_truck(stage: Stage, pose: Pose) -> None:
    """A lorry: a cab and a tall box, clad like a wall or like a facade without windows."""
    rng, length = stage.rng, float(stage.rng.uniform(7.5, 10.5))
    colour, height = stage.paint("truck"), float(rng.uniform(3.3, 3.9))
    ident = stage.canvas.instance(ids.TRUCK)
    _shadow(stage, pose, length, 2.4)

    # The side of the box is a texture of panels, now and then with windows.
    box_length = length - 2.3
    side, texels = surfaces.plain(
        box_length,
        height - 0.8,
        _texels(stage, pose, length),
        colour=colour,
        grain=stage.windows.grain,
        rng=stage.texture_rng,
    )
    every, with_rows = float(rng.uniform(1.0, 2.4)), bool(rng.random() < 0.4)
    surfaces.joints(side, texels, colour, every=every, rows=with_rows)
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

    # The far one of cab and box first, then the wheels.
    eye_to_front = np.linalg.norm(pose.world(np.array([[0.0, 0.0, front]]))[0])
    eye_to_back = np.linalg.norm(pose.world(np.array([[0.0, 0.0, back]]))[0])
    parts = [frame, box, cab]
    if eye_to_back < eye_to_front:
        parts = [frame, cab, box]
    for part in (*parts, wheels):
        draw_body(stage, part, pose, ident)


def _texels(stage: Stage, pose: Pose, length: float) -> float:
    """Texture pixels per metre that suit the side of a vehicle: as fine as its near end is seen."""
    ends = pose.world(np.array([[0.0, 0.0, -length / 2], [0.0, 0.0, 0.0], [0.0, 0.0, length / 2]]))
    nearest = float(np.clip(ends[:, 2].min(), stage.camera.near, None))
    return float(np.clip(stage.camera.scale(nearest * 1.3), 4.0, 64.0))
