"""Where a scene is painted: canvas, camera, weather, and a palette that all its classes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes.canvas import Camera, Canvas, Colour, Points

# What things are painted with. A share of them (HOUSE_COLOURED) has the paint of the houses: then
# colour does not tell them apart, only shape and context do.
PAINTS: dict[str, tuple[Colour, ...]] = {
    "building": ((196, 178, 148), (160, 98, 78), (206, 200, 188), (178, 142, 96), (182, 130, 116)),
    "wall": ((124, 114, 136), (140, 130, 152), (110, 102, 118)),
    "fence": ((60, 84, 66), (48, 88, 70), (42, 70, 62)),
    "car": ((44, 52, 64), (150, 34, 34), (52, 76, 122), (188, 190, 194), (34, 44, 88)),
    "truck": ((226, 128, 52), (204, 104, 38)),
    "bus": ((222, 180, 52), (196, 52, 44), (226, 196, 86)),
    "train": ((58, 138, 108), (52, 120, 104), (96, 156, 140)),
    "clothes": ((60, 58, 112), (128, 46, 82), (88, 54, 112), (48, 62, 104)),
    "bicycle": ((70, 190, 200), (110, 206, 160)),
    "motorcycle": ((150, 30, 36), (178, 60, 30)),
    "vest": ((226, 232, 66), (248, 148, 46)),
}
HOUSE_COLOURED = {"truck": 0.25, "bus": 0.25, "train": 0.25, "wall": 0.2, "car": 0.05}
LEAVES: tuple[Colour, ...] = ((62, 88, 44), (52, 74, 46), (84, 92, 46), (46, 80, 52))
GRASS: tuple[Colour, ...] = ((124, 148, 78), (142, 150, 86), (112, 146, 84))
GREYS: tuple[Colour, ...] = ((112, 110, 112), (122, 119, 118), (98, 100, 106), (132, 129, 127))
SKIES: tuple[tuple[Colour, Colour], ...] = (  # zenith, horizon
    ((92, 138, 196), (198, 212, 224)),
    ((150, 158, 168), (206, 206, 204)),
    ((196, 200, 204), (226, 224, 220)),
    ((124, 140, 180), (236, 196, 160)),
    ((112, 150, 178), (222, 224, 210)),
    ((128, 146, 172), (178, 176, 180)),
)


@dataclass(frozen=True)
class WindowStyle:
    """One rhythm of windows for the facades, buses and trains of a scene: lengths in metres."""

    width: float
    height: float
    gap: float
    glass: Colour
    frame: float  # brightness of the frame relative to the wall
    grain: float  # deviation of the wall's brightness in grey levels


class Stage:
    """Paints world polygons with haze and light.

    `rng` decides what stands where. `texture_rng` draws textures, of which a larger canvas needs
    more numbers; apart from them a scene is the same at every size.
    """

    def __init__(
        self,
        *,
        canvas: Canvas,
        camera: Camera,
        rng: np.random.Generator,
        texture_rng: np.random.Generator,
    ) -> None:
        self.canvas, self.camera, self.rng, self.texture_rng = canvas, camera, rng, texture_rng

        # The weather.
        zenith, horizon = SKIES[rng.integers(len(SKIES))]
        self.zenith, self.haze = zenith, horizon
        self.visibility = float(rng.choice([90.0, 160.0, 400.0]))
        self.sun_side = int(rng.choice([-1, 1]))

        # The palette: three colours of houses, a grey for the ground, one style of windows.
        chosen = rng.permutation(len(PAINTS["building"]))[:3]
        self.houses = [PAINTS["building"][index] for index in chosen]
        self.ground = GREYS[rng.integers(len(GREYS))]
        self.windows = WindowStyle(
            width=float(rng.uniform(0.9, 1.6)),
            height=float(rng.uniform(1.0, 1.4)),
            gap=float(rng.uniform(0.4, 1.0)),
            glass=_pick(rng, ((54, 62, 74), (80, 96, 112), (112, 128, 140), (40, 40, 46))),
            frame=float(rng.uniform(0.75, 1.25)),
            grain=float(rng.uniform(2.0, 5.0)),
        )

    def paint(self, kind: str, *, spread: float = 9.0) -> Colour:
        """A paint for a kind of thing, its grey level off by about `spread`.

        Buildings, and a share of some other kinds, are painted in the scene's colours of houses.
        """
        paints = PAINTS[kind]
        if kind == "building" or self.rng.random() < HOUSE_COLOURED.get(kind, 0.0):
            paints = tuple(self.houses)
        return shifted(_pick(self.rng, paints), self.rng.normal(0, spread))

    def green(self, *, grass: bool = False) -> Colour:
        """A colour of leaves or of grass."""
        greens = LEAVES
        if grass:
            greens = GRASS
        return shifted(_pick(self.rng, greens), self.rng.normal(0, 7))

    def hazed(self, colour: Colour, z: float, *, light: float = 1.0) -> Colour:
        """The colour lit by `light` and seen through z metres of air."""
        share = 1 - float(np.exp(-max(z, 0.0) / self.visibility))
        red, green, blue = (
            c * light * (1 - share) + h * share for c, h in zip(colour, self.haze, strict=True)
        )
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

        # Colour and texture fade with the distance of its middle.
        z = float(clipped[:, 2].mean())
        lit = None
        if colour is not None:
            lit = self.hazed(colour, z, light=light)
        fade = float(np.exp(-z / self.visibility))
        self.canvas.polygon(
            self.camera.project(clipped),
            ident,
            lit,
            noise=noise,
            strength=strength * fade,
            gradient=gradient * fade,
        )

    def shadow(self, points: Points, factor: float) -> None:
        """Darken the ground below a world polygon [n, 3]."""
        clipped = self.camera.clip(np.asarray(points, np.float64))
        if len(clipped) >= 3:
            self.canvas.shade(self.camera.project(clipped), factor)

    def sheet(
        self,
        origin: Points,
        u: Points,
        v: Points,
        ident: int | None,
        texture: NDArray[np.uint8],
        texels: float,
    ) -> None:
        """Fill the parallelogram spanned by u and v (metres) at `origin` with a texture.

        The texture's row 0 lies at v = 0; it has `texels` pixels per metre.
        """
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
            self.camera.project(clipped),
            ident,
            texture,
            self.camera.homography(origin, unit_u, unit_v, texels),
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


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]
