"""What lines a street: buildings, walls, fences and hedges along any line on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.demo_scenes import figures, ids, surfaces
from scripts.demo_scenes.canvas import Points
from scripts.demo_scenes.stage import Stage, scaled

ROOFS = ((118, 66, 54), (84, 78, 80), (104, 88, 78))


@dataclass(frozen=True)
class Line:
    """A stretch on the ground from `start` to `end` (x, z); `outward` points off the street."""

    start: tuple[float, float]
    end: tuple[float, float]
    outward: tuple[float, float]

    @property
    def length(self) -> float:
        """Metres from start to end."""
        return float(np.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1]))

    def at(self, along: float, *, out: float = 0.0, up: float = 0.0) -> Points:
        """A world point [3].

        It lies `along` metres after the start, `out` metres away from the street, `up` metres high.
        """
        share = along / self.length
        x = self.start[0] + (self.end[0] - self.start[0]) * share + self.outward[0] * out
        z = self.start[1] + (self.end[1] - self.start[1]) * share + self.outward[1] * out
        return np.array([x, up, z])

    def cut(self, start: float, end: float) -> Line:
        """The part between two distances along the line."""
        a, b = self.at(start), self.at(end)
        return Line((float(a[0]), float(a[2])), (float(b[0]), float(b[2])), self.outward)

    @property
    def frontal(self) -> bool:
        """True where the line runs across the view."""
        return abs(self.outward[1]) > abs(self.outward[0])


def _panel(
    stage: Stage,
    line: Line,
    ident: int,
    texture: np.ndarray,
    texels: float,
    *,
    low: float,
    high: float,
) -> None:
    top, end, foot = line.at(0, up=high), line.at(line.length, up=high), line.at(0, up=low)
    stage.sheet(top, end - top, foot - top, ident, texture, texels)


def _corners(line: Line, high: float, low: float = 0.0) -> Points:
    return np.stack(
        [
            line.at(0, up=low),
            line.at(line.length, up=low),
            line.at(line.length, up=high),
            line.at(0, up=high),
        ]
    )


def _lit(stage: Stage, line: Line, texture: np.ndarray) -> np.ndarray:
    """The texture as the sun lights a wall along `line`."""
    if line.frontal:
        light = 0.95
    elif np.sign(line.outward[0]) != stage.sun_side:
        light = 1.05
    else:
        light = 0.82
    return np.clip(texture.astype(np.float32) * light, 0, 255).astype(np.uint8)


def draw_building(stage: Stage, line: Line, *, height: float, depth: float = 9.0) -> None:
    """A facade along the line, the end wall that faces the camera, and often a roof."""
    rng, style = stage.rng, stage.windows
    colour = stage.paint("building")
    blind = rng.random() < 0.2  # a facade without windows

    # The end wall is seen where the building stands beside the street.
    corner = tuple(line.at(0, out=depth)[[0, 2]])
    near = Line(line.start, corner, (-line.outward[1], -line.outward[0]))
    parts = [near, line]
    if line.frontal:
        parts = [line]
    if rng.random() < 0.55:
        _draw_roof(stage, line, height, depth)

    for part in parts:
        texels = stage.texels(_corners(part, height))
        grain, numbers = style.grain, stage.texture_rng
        texture, texels = surfaces.plain(
            part.length, height, texels, colour=colour, grain=grain, rng=numbers
        )
        storey = float(rng.uniform(2.0, 2.9)) + style.height * 0.3
        if blind or (part is near and rng.random() < 0.5):
            every, with_rows = float(rng.uniform(1.2, 2.6)), bool(rng.random() < 0.4)
            surfaces.joints(texture, texels, colour, every=every, rows=with_rows)
        else:
            rows = max(1, int((height - 1.2) / storey))
            surfaces.windows(texture, texels, style, colour, rng, top=0.7, pitch=storey, rows=rows)

        # A ground floor with a door, and a cornice.
        if part is line and rng.random() < 0.6:
            surfaces.stripe(texture, texels, scaled(colour, 0.74), top=height - 0.5, height=0.5)
            left = float(rng.uniform(0.1, 0.8)) * part.length
            wood = scaled(stage.paint("building"), 0.55)
            surfaces.door(texture, texels, wood, left=left, width=1.3, height=2.2)
        surfaces.stripe(texture, texels, scaled(colour, 1.14), top=0.0, height=0.28)
        _panel(stage, part, ids.BUILDING, _lit(stage, part, texture), texels, low=0.0, high=height)


def _draw_roof(stage: Stage, line: Line, height: float, depth: float) -> None:
    """A pitched roof; of a building beside the street its gable is seen, too."""
    rise, colour = float(stage.rng.uniform(1.5, 3.2)), ROOFS[int(stage.rng.integers(len(ROOFS)))]
    ridge_out, eaves = depth / 2, -0.3
    quad = np.stack(
        [
            line.at(0, out=eaves, up=height),
            line.at(line.length, out=eaves, up=height),
            line.at(line.length, out=ridge_out, up=height + rise),
            line.at(0, out=ridge_out, up=height + rise),
        ]
    )
    stage.face(quad, ids.BUILDING, colour, strength=4.0)

    if not line.frontal:
        gable = np.stack(
            [
                line.at(0, up=height),
                line.at(0, out=ridge_out, up=height + rise),
                line.at(0, out=depth, up=height),
            ]
        )
        stage.face(gable, ids.BUILDING, scaled(colour, 0.8), strength=3.0)


def draw_wall(stage: Stage, line: Line, *, height: float) -> None:
    """A free-standing wall: the plaster and the joints of a facade, but not its height."""
    colour = stage.paint("wall")
    texture, texels = surfaces.plain(
        line.length,
        height,
        stage.texels(_corners(line, height)),
        colour=colour,
        grain=stage.windows.grain,
        rng=stage.texture_rng,
    )

    if stage.rng.random() < 0.65:
        surfaces.courses(texture, texels, colour, every=float(stage.rng.uniform(0.4, 0.6)))
    else:
        every, with_rows = float(stage.rng.uniform(1.2, 2.8)), bool(stage.rng.random() < 0.4)
        surfaces.joints(texture, texels, colour, every=every, rows=with_rows)
    surfaces.stripe(texture, texels, scaled(colour, 1.16), top=0.0, height=0.16)
    _panel(stage, line, ids.WALL, _lit(stage, line, texture), texels, low=0.0, high=height)


def draw_fence(stage: Stage, line: Line, *, height: float) -> None:
    """Pickets and two rails; what is seen between them is labelled as fence, as annotators do."""
    stage.face(_corners(line, height), ids.FENCE, None)

    colour = scaled(stage.paint("fence"), float(stage.rng.uniform(0.5, 1.1)))
    gap, width = float(stage.rng.uniform(0.22, 0.36)), float(stage.rng.uniform(0.06, 0.1))
    for along in np.arange(0, line.length, gap):
        _bar(stage, line.at(along, up=0.05), line.at(along, up=height), colour, width)

    # Posts are darker and thicker than pickets.
    for along in np.arange(0, line.length, 2.6):
        _bar(stage, line.at(along), line.at(along, up=height + 0.06), scaled(colour, 0.7), 0.11)
    for rail in (0.22, height - 0.16):
        rails = line.at(0, up=rail), line.at(line.length, up=rail)
        band = np.stack([rails[0], rails[1], rails[1] + (0, 0.07, 0), rails[0] + (0, 0.07, 0)])
        stage.face(band, ids.FENCE, colour)


def _bar(
    stage: Stage, foot: Points, head: Points, colour: tuple[float, float, float], width: float
) -> None:
    """An upright bar of a fence; those behind the camera, far away or outside are left out."""
    z = float(foot[2])
    if z <= stage.camera.near or z > 70:
        return

    ends = stage.camera.project(np.stack([foot, head]))
    if ends[:, 0].max() < -20 or ends[:, 0].min() > stage.canvas.width + 20:
        return
    thickness = max(1.0, width * stage.camera.scale(z))
    stage.canvas.line(ends, ids.FENCE, stage.hazed(colour, z), thickness=thickness)


def draw_hedge(stage: Stage, line: Line, *, height: float) -> None:
    """A row of bushes."""
    step = max(1.2, height * 0.8)
    alongs = np.arange(step / 2, line.length, step)
    spots = [line.at(float(along)) for along in alongs]

    for spot in sorted(spots, key=lambda point: -point[2]):
        if spot[2] > stage.camera.near + 0.5:
            width = step * float(stage.rng.uniform(1.3, 2.0))
            tall = height * float(stage.rng.uniform(0.8, 1.2))
            figures.draw_bush(stage, x=float(spot[0]), z=float(spot[2]), width=width, height=tall)


def draw_trees(stage: Stage, line: Line, *, out: float, every: float) -> None:
    """Trees behind (or, with negative `out`, before) the line."""
    spots = [line.at(float(along), out=out) for along in np.arange(every / 2, line.length, every)]
    for spot in sorted(spots, key=lambda point: -point[2]):
        if spot[2] > 3.0:
            figures.draw_tree(stage, x=float(spot[0]), z=float(spot[2]))


def draw_segment(stage: Stage, line: Line, kind: str) -> None:
    """One stretch beside the street by its kind, with what can be seen behind it."""
    rng = stage.rng
    if kind == "building":
        draw_building(stage, line, height=float(rng.uniform(5.5, 16.0)))
        return

    # Behind a wall, a fence or a hedge: trees, a house, or nothing.
    if rng.random() < 0.6:
        out, every = float(rng.uniform(2.0, 6.0)), float(rng.uniform(4.0, 8.0))
        draw_trees(stage, line, out=out, every=every)
    elif rng.random() < 0.5:
        start, end = (tuple(line.at(at, out=8.0)[[0, 2]]) for at in (0, line.length))
        behind = Line(start, end, line.outward)
        draw_building(stage, behind, height=float(rng.uniform(5.0, 9.0)))

    if kind == "wall":
        draw_wall(stage, line, height=float(rng.uniform(1.9, 3.4)))
    elif kind == "fence":
        draw_fence(stage, line, height=float(rng.uniform(1.3, 2.1)))
    else:
        assert kind == "hedge", kind
        draw_hedge(stage, line, height=float(rng.uniform(0.9, 2.6)))
