"""A canvas of twice the wanted resolution, painted from far to near.

It holds the colour image and the ids side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Points = NDArray[np.float64]

# Canvas pixels per image pixel and axis: the image is anti-aliased, the label stays hard.
SUPERSAMPLING = 2
SHIFT = 4  # fractional bits of polygon corners
FAR_OUTSIDE = 20_000.0  # canvas pixels; corners are clamped to it, since opencv counts in int32


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without tilt above flat ground.

    World coordinates are metres: x to the right, y up from the ground, z ahead. `focal`, `centre_x`
    and `horizon` are in canvas pixels, `height` in metres.
    """

    focal: float
    centre_x: float
    horizon: float
    height: float
    near: float = 0.6

    def project(self, points: Points) -> Points:
        """World points [n, 3] with z > 0 to canvas points [n, 2]."""
        z = points[:, 2]
        return np.stack(
            [
                self.centre_x + self.focal * points[:, 0] / z,
                self.horizon + self.focal * (self.height - points[:, 1]) / z,
            ],
            axis=1,
        )

    def clip(self, points: Points) -> Points:
        """Cut a world polygon [n, 3] at the near plane (Sutherland-Hodgman); may become empty."""
        inside = points[:, 2] >= self.near
        if inside.all():
            return points

        # Keep what lies behind the plane, and the points where an edge crosses it.
        kept: list[NDArray[np.float64]] = []
        for index in range(len(points)):
            a, b = points[index - 1], points[index]
            if inside[index - 1] != inside[index]:
                kept.append(a + (b - a) * ((self.near - a[2]) / (b[2] - a[2])))
            if inside[index]:
                kept.append(b)
        return np.array(kept).reshape(-1, 3)

    def scale(self, z: float) -> float:
        """Canvas pixels per metre at distance z."""
        return self.focal / max(z, self.near)

    def homography(
        self, origin: Points, u: Points, v: Points, texels_per_metre: float
    ) -> NDArray[np.float64]:
        """Texture pixels (u, v) on the plane `origin + u + v` (metres) to canvas pixels [3, 3]."""
        intrinsic = np.array(
            [[self.focal, 0, self.centre_x], [0, -self.focal, self.horizon], [0, 0, 1.0]],
            dtype=np.float64,
        )
        shift = np.array([0, self.height, 0])
        plane = np.stack([u / texels_per_metre, v / texels_per_metre, origin - shift], axis=1)
        return intrinsic @ plane


def value_noise(
    height: int, width: int, cell: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Smooth noise [height, width] of about unit deviation, with blobs of `cell` pixels."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float32
    )


class Canvas:
    """Image uint8 RGB [H, W, 3] and ids uint16 [H, W] at `SUPERSAMPLING` times the size.

    An id is a raw label id, or for an object that is counted raw id * 1000 + number.
    """

    def __init__(self, *, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.unit = self.height / 512  # canvas pixels of a scene that is 256 pixels high
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.uint16)
        self._counts: dict[int, int] = {}

        # Two patterns that all surfaces of a scene share, from fine to coarse.
        unit = self.unit
        fine = value_noise(self.height, self.width, 2 * unit, rng)
        grain = 0.7 * fine + 0.5 * value_noise(self.height, self.width, 9 * unit, rng)
        leaves = (
            0.8 * value_noise(self.height, self.width, 4 * unit, rng)
            + 0.8 * value_noise(self.height, self.width, 9 * unit, rng)
            + 0.6 * value_noise(self.height, self.width, 26 * unit, rng)
        )
        self.noises = {"grain": grain, "leaves": leaves}

    def instance(self, raw_id: int) -> int:
        """The id of a new object of an instance class."""
        number = self._counts.get(raw_id, 0)
        self._counts[raw_id] = number + 1
        return raw_id * 1000 + min(number, 999)

    def polygon(
        self,
        points: Points,
        ident: int | None,
        colour: Colour | None,
        *,
        noise: str = "grain",
        strength: float = 0.0,
        gradient: float = 0.0,
    ) -> None:
        """Fill a polygon [n, 2]; `ident` None leaves the label, `colour` None leaves the image.

        `strength` is the amplitude of the named noise and `gradient` the brightness added from top
        to bottom, both in grey levels.
        """
        if len(points) < 3:
            return

        fixed = _fixed_point(points)
        if ident is not None:
            cv2.fillPoly(self.ids, [fixed], int(ident), shift=SHIFT)
        if colour is None:
            return

        # One colour needs no patch.
        if strength == 0.0 and gradient == 0.0:
            cv2.fillPoly(self.image, [fixed], _clipped(colour), shift=SHIFT)
            return
        box = self._box(points)
        if box is None:
            return

        x0, y0, x1, y1 = box
        field = strength * self.noises[noise][y0:y1, x0:x1]
        if gradient:
            ramp = np.linspace(-gradient / 2, gradient / 2, y1 - y0, dtype=np.float32)
            field = field + ramp[:, None]
        patch = np.clip(field[:, :, None] + np.asarray(colour, np.float32), 0, 255).astype(np.uint8)
        self._paste(patch, points, box)

    def texture(
        self,
        points: Points,
        ident: int | None,
        texture: NDArray[np.uint8],
        matrix: NDArray[np.float64],
    ) -> None:
        """Fill a polygon [n, 2] with a texture [h, w, 3].

        `matrix` [3, 3] maps texture pixels to canvas pixels.
        """
        box = self._box(points)
        if box is None or abs(np.linalg.det(matrix)) < 1e-12:
            return

        x0, y0, x1, y1 = box
        moved = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]]) @ matrix
        patch = cv2.warpPerspective(
            texture,
            moved,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        self._paste(np.asarray(patch, np.uint8), points, box)
        if ident is not None:
            cv2.fillPoly(self.ids, [_fixed_point(points)], int(ident), shift=SHIFT)

    def shade(self, points: Points, factor: float) -> None:
        """Darken (or lighten) the image below a polygon: shadows leave the label alone."""
        box = self._box(points)
        if box is None:
            return
        x0, y0, x1, y1 = box
        shaded = cv2.convertScaleAbs(self.image[y0:y1, x0:x1], alpha=factor)
        self._paste(np.asarray(shaded, np.uint8), points, box)

    def line(
        self, points: Points, ident: int | None, colour: Colour | None, *, thickness: float
    ) -> None:
        """Polyline [n, 2] of `thickness` canvas pixels (at least one), with square ends."""
        for a, b in zip(points[:-1], points[1:], strict=True):
            along = b - a
            length = float(np.hypot(*along))
            if length < 1e-6:
                continue
            half = np.array([-along[1], along[0]]) / length * max(thickness - 1.0, 0.02) / 2
            self.polygon(np.stack([a + half, b + half, b - half, a - half]), ident, colour)

    def ellipse(
        self,
        centre: tuple[float, float],
        axes: tuple[float, float],
        ident: int | None,
        colour: Colour | None,
    ) -> None:
        """Filled upright ellipse; `axes` are the half axes in canvas pixels."""
        turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ring = np.stack(
            [centre[0] + axes[0] * np.cos(turn), centre[1] + axes[1] * np.sin(turn)], axis=1
        )
        self.polygon(ring, ident, colour)

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Image [h, w, 3] averaged and ids [h, w] voted over each block of canvas pixels."""
        size = (self.width // SUPERSAMPLING, self.height // SUPERSAMPLING)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)

        # Of four pixels the id that occurs most, without a vote the first.
        a, b, c, d = (self.ids[row::2, column::2] for row in (0, 1) for column in (0, 1))
        ids = np.where(
            (a == b) | (a == c) | (a == d),
            a,
            np.where((b == c) | (b == d), b, np.where(c == d, c, a)),
        )
        return np.asarray(image, np.uint8), ids

    def _box(self, points: Points) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom of what a polygon covers of the canvas; None without any."""
        if len(points) < 3:
            return None
        x0, y0 = np.floor(np.clip(points.min(axis=0), 0, (self.width, self.height))).astype(int)
        x1, y1 = np.ceil(np.clip(points.max(axis=0) + 1, 0, (self.width, self.height))).astype(int)
        if x1 <= x0 or y1 <= y0:
            return None
        return int(x0), int(y0), int(x1), int(y1)

    def _paste(
        self, patch: NDArray[np.uint8], points: Points, box: tuple[int, int, int, int]
    ) -> None:
        x0, y0, x1, y1 = box
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [_fixed_point(points - (x0, y0))], 255, shift=SHIFT)
        cv2.copyTo(patch, mask, self.image[y0:y1, x0:x1])


def _fixed_point(points: Points) -> NDArray[np.int32]:
    return np.round(np.clip(points, -FAR_OUTSIDE, FAR_OUTSIDE) * (1 << SHIFT)).astype(np.int32)


def _clipped(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (float(min(max(value, 0.0), 255.0)) for value in colour)
    return red, green, blue
