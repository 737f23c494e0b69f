"""Where a scene is painted: canvas, camera, weather and the palette that all classes of one scene share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes.canvas import Camera, Canvas, Colour, Points

# Paints of buildings, walls and vehicles alike: a colour says next to nothing about the class.
PAINTS: tuple[Colour, ...] = (
    (190, 180, 160), (152, 94, 78), (128, 132, 138), (206, 202, 194), (116, 126, 108), (92, 110, 138),
    (172, 142, 96), (90, 88, 92), (178, 124, 112), (214, 186, 98), (66, 92, 148), (168, 56, 48),
    (84, 130, 124), (226, 222, 214), (136, 112, 92), (60, 66, 74),
)  # fmt: skip
GREENS: tuple[Colour, ...] = ((86, 106, 54), (70, 92, 52), (112, 116, 62), (60, 80, 56), (132, 118, 66), (96, 122, 72))
GREYS: tuple[Colour, ...] = ((112, 110, 110), (124, 118, 112), (98, 100, 106), (136, 130, 122), (108, 98, 90))
SKIES: tuple[tuple[Colour, Colour], ...] = (  # zenith, horizon
    ((92, 138, 196), (198, 212, 224)),
    ((150, 158, 168), (206, 206, 204)),
    ((196, 200, 204), (226, 224, 220)),
    ((88, 104, 148), (236, 190, 150)),
    ((112, 150, 178), (222, 224, 210)),
    ((60, 78, 118), (168, 160, 168)),
)


@dataclass(frozen=True)
class WindowStyle:
    """One rhythm of windows per scene, worn by facades, buses and trains: lengths in metres."""

    width: float
    height: float
    gap: float
    glass: Colour
    frame: float  # brightness of the frame relative to the wall
    grain: float  # deviation of the wall's brightness in grey levels


class Stage:
    """Paints world polygons with haze and light; one random generator serves the whole scene."""

    def __init__(self, *, canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
        self.canvas, self.camera, self.rng = canvas, camera, rng
        zenith, horizon = SKIES[rng.integers(len(SKIES))]
        self.zenith, self.haze = zenith, horizon
        self.visibility = float(rng.choice([90.0, 160.0, 400.0]))
        self.sun_side = int(rng.choice([-1, 1]))
        order = rng.permutation(len(PAINTS))
        self.paints = [PAINTS[index] for index in order[:4]]
        self.greens = [GREENS[index] for index in rng.permutation(len(GREENS))[:2]]
        self.ground = GREYS[rng.integers(len(GREYS))]
        self.windows = WindowStyle(
            width=float(rng.uniform(0.9, 1.6)),
            height=float(rng.uniform(1.0, 1.4)),
            gap=float(rng.uniform(0.4, 1.0)),
            glass=_pick(rng, ((54, 62, 74), (80, 96, 112), (112, 128, 140), (40, 40, 46))),
            frame=float(rng.uniform(0.75, 1.25)),
            grain=float(rng.uniform(2.0, 5.0)),
        )

    def paint(self, *, spread: float = 8.0) -> Colour:
        """A colour out of the paints of this scene, a little off."""
        return shifted(_pick(self.rng, self.paints), self.rng.normal(0, spread))

    def green(self) -> Colour:
        """A colour of leaves or grass."""
        return shifted(_pick(self.rng, self.greens), self.rng.normal(0, 7))

    def hazed(self, colour: Colour, z: float, *, light: float = 1.0) -> Colour:
        """The colour lit by ``light`` and seen through z metres of air."""
        share = 1 - float(np.exp(-max(z, 0.0) / self.visibility))
        red, green, blue = (c * light * (1 - share) + h * share for c, h in zip(colour, self.haze, strict=True))
        return red, green, blue

    def face(
        self,
        points: Points,
        ident: int | None,
        colour: Colour | None,
        *,
        light: float = 1.0,
        noise: str = "grain",
        strength: float = 0.0,
        gradient: float = 0.0,
    ) -> None:
        """Fill a world polygon [n, 3]."""
        clipped = self.camera.clip(np.asarray(points, np.float64))
        if len(clipped) < 3:
            return
        z = float(clipped[:, 2].mean())
        lit = None if colour is None else self.hazed(colour, z, light=light)
        fade = float(np.exp(-z / self.visibility))
        self.canvas.polygon(
            self.camera.project(clipped), ident, lit, noise=noise, strength=strength * fade, gradient=gradient * fade
        )

    def shadow(self, points: Points, factor: float) -> None:
        """Darken the ground below a world polygon [n, 3]."""
        clipped = self.camera.clip(np.asarray(points, np.float64))
        if len(clipped) >= 3:
            self.canvas.shade(self.camera.project(clipped), factor)

    def sheet(
        self, origin: Points, u: Points, v: Points, ident: int | None, texture: NDArray[np.uint8], texels: float
    ) -> None:
        """Fill the parallelogram spanned by u and v (metres) at ``origin`` with a texture whose row 0 lies at v = 0."""
        corners = np.stack([origin, origin + u, origin + u + v, origin + v])
        clipped = self.camera.clip(corners)
        if len(clipped) < 3:
            return
        share = float(np.exp(-float(clipped[:, 2].mean()) / self.visibility))
        if share < 0.97:
            haze = np.asarray(self.haze, np.float32) * (1 - share)
            texture = np.clip(texture.astype(np.float32) * share + haze, 0, 255).astype(np.uint8)
        unit_u, unit_v = u / np.linalg.norm(u), v / np.linalg.norm(v)
        self.canvas.texture(
            self.camera.project(clipped), ident, texture, self.camera.homography(origin, unit_u, unit_v, texels)
        )

    def texels(self, points: Points) -> float:
        """Texture pixels per metre that suit a world polygon: as fine as its middle is seen."""
        clipped = self.camera.clip(np.asarray(points, np.float64))
        if len(clipped) < 3:
            return 4.0
        z = clipped[:, 2]
        return float(np.clip(self.camera.scale(float(np.sqrt(z.min() * z.max()))), 3.0, 64.0))


def shifted(colour: Colour, amount: float) -> Colour:
    """The colour made lighter (or darker) by grey levels."""
    red, green, blue = (float(min(max(channel + amount, 0.0), 255.0)) for channel in colour)
    return red, green, blue


def scaled(colour: Colour, factor: float) -> Colour:
    """The colour multiplied by a brightness."""
    red, green, blue = (float(min(max(channel * factor, 0.0), 255.0)) for channel in colour)
    return red, green, blue


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...] | list[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]
