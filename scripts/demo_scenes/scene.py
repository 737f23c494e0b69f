"""One street scene: what is in it follows from (seed, split, index) alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes import figures, ids, structures, traffic
from scripts.demo_scenes.canvas import Camera, Canvas, Colour, value_noise
from scripts.demo_scenes.stage import Stage, scaled, shifted
from scripts.demo_scenes.structures import Line
from scripts.demo_scenes.traffic import Street

SCENES_VERSION = 1
"""Raise it when a change makes any scene look otherwise: a data set says which drawing it holds."""

# Share of the scenes that hold a thing. Rare classes of the real streets are frequent here: a
# miniature is small. The names choose the scenes (see `contents`): renaming one redraws them all.
FREQUENCIES = {
    "crossing": 0.3,
    "bus": 0.45,
    "truck": 0.5,
    "train": 0.42,
    "hero": 0.3,
    "motorcycle": 0.6,
    "bicycle": 0.75,
    "person": 0.92,
    "wall": 0.65,
    "fence": 0.65,
    "hedge": 0.4,
    "terrain": 0.8,
    "divider": 0.35,
    "light": 0.75,
    "sign": 0.8,
    "board": 0.3,
    "box": 0.25,
    "street_tree": 0.6,
    "ego": 0.6,
    "crosswalk": 0.3,
    "kerb_twin": 0.2,
    "slabs": 0.6,
    "terrain_twin": 0.2,
}

# Metres ahead at which the ground is cut, so that each band is seen through its own share of air.
BANDS = (4.0, 7.0, 11.0, 16.0, 23.0, 33.0, 48.0, 80.0)
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly


@dataclass(frozen=True)
class Scene:
    """A drawn scene: image uint8 RGB [h, w, 3] and ids uint16 [h, w].

    An id is a raw label id, or for an object that is counted raw id * 1000 + instance.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.uint16]

    @property
    def label(self) -> NDArray[np.uint8]:
        """Raw label ids [h, w]."""
        return np.where(self.ids >= 1000, self.ids // 1000, self.ids).astype(np.uint8)


def stream(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene, whatever the other scenes and the number of processes."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def contents(seed: int, split: str, index: int) -> frozenset[str]:
    """Which things scene `index` holds.

    A low-discrepancy sequence chooses, so that even few scenes hold their share of each thing.
    """
    chosen = set()
    for name, frequency in FREQUENCIES.items():
        start = zlib.crc32(f"{seed}/{split}/{name}".encode()) / 2**32
        step = GOLDEN + (zlib.crc32(name.encode()) % 997) / 997 * 0.2
        if (start + index * step) % 1.0 < frequency:
            chosen.add(name)
    return frozenset(chosen)


def draw_scene(*, seed: int, split: str, index: int, height: int, width: int) -> Scene:
    """Draw scene `index` of a split in `height` x `width` pixels."""
    rng, wanted = stream(seed, split, index), contents(seed, split, index)
    texture_rng = rng.spawn(1)[0]
    canvas = Canvas(height=height, width=width, rng=texture_rng)

    # Lengths in canvas pixels are shares of the canvas: a scene is the same at every size.
    camera = Camera(
        focal=canvas.width * 0.75 * float(rng.uniform(0.85, 1.2)),
        centre_x=canvas.width * float(rng.uniform(0.34, 0.66)),
        horizon=canvas.height * float(rng.uniform(0.36, 0.5)),
        height=float(rng.uniform(1.4, 2.4)),
    )
    stage = Stage(canvas=canvas, camera=camera, rng=rng, texture_rng=texture_rng)

    # From far to near.
    _draw_sky(stage)
    if "crossing" in wanted:
        _draw_crossing(stage, wanted)
    else:
        _draw_street(stage, wanted)
    _draw_margins(stage, ego="ego" in wanted)

    image, label = canvas.finish()
    return Scene(_develop(image, rng), label)


def _draw_sky(stage: Stage) -> None:
    """A sky from zenith to horizon with clouds, and the grey of the ground below."""
    canvas, horizon = stage.canvas, int(stage.camera.horizon)

    share = np.linspace(0, 1, max(horizon, 2), dtype=np.float32)[:, None] ** 1.4
    column = (
        np.asarray(stage.zenith, np.float32) * (1 - share)
        + np.asarray(stage.haze, np.float32) * share
    )
    sky = np.repeat(column[:, None, :], canvas.width, axis=1)

    # Clouds fade towards the horizon.
    large = value_noise(sky.shape[0], canvas.width, 70 * canvas.unit, stage.texture_rng)
    small = value_noise(sky.shape[0], canvas.width, 26 * canvas.unit, stage.texture_rng)
    clouds = large + 0.5 * small
    sky += (np.clip(clouds - 0.3, 0, 1.2) * 22 * (1 - share * 0.7))[:, :, None]

    canvas.image[: sky.shape[0]] = np.clip(sky, 0, 255).astype(np.uint8)
    canvas.image[horizon:] = np.asarray(stage.ground, np.uint8)
    canvas.ids[:] = ids.SKY


def _strip(
    stage: Stage,
    x0: float,
    x1: float,
    z0: float,
    z1: float,
    *,
    ident: int | None,
    colour: Colour,
    noise: str = "grain",
    strength: float = 4.0,
) -> None:
    """A rectangle on the ground from (x0, z0) to (x1, z1), band by band."""
    cuts = [z0, *(z for z in BANDS if z0 < z < z1), z1]
    for start, end in zip(cuts, cuts[1:], strict=False):
        corners = np.array([[x0, 0, start], [x1, 0, start], [x1, 0, end], [x0, 0, end]])
        stage.face(corners, ident, colour, noise=noise, strength=strength)


def _roughen_ground(stage: Stage) -> None:
    """Lay one grain over the whole ground in perspective: road, pavement and verge share it."""
    canvas, camera = stage.canvas, stage.camera

    # A square of 44 metres before the camera, seen from above.
    texels, extent = 9.0, 44.0
    side = round(texels * extent)
    fine = value_noise(side, side, 2, stage.texture_rng)
    grain = 4.0 * fine + 4.0 * value_noise(side, side, 16, stage.texture_rng)

    # The same square as the camera sees it, from the row of its far edge downwards.
    origin, ahead = np.array([-extent / 2, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    matrix = camera.homography(origin, np.array([1.0, 0.0, 0.0]), ahead, texels)
    top = int(camera.horizon + camera.focal * camera.height / extent)
    if top >= canvas.height:
        return

    moved = np.array([[1, 0, 0], [0, 1, -top], [0, 0, 1.0]]) @ matrix
    seen = cv2.warpPerspective(
        grain, moved, (canvas.width, canvas.height - top), borderMode=cv2.BORDER_REFLECT
    )
    ground = canvas.image[top:].astype(np.float32) + seen[:, :, None]
    canvas.image[top:] = np.clip(ground, 0, 255).astype(np.uint8)


def _ground_colours(stage: Stage, wanted: frozenset[str]) -> tuple[Colour, Colour, Colour]:
    """The colours of road, pavement and terrain; now and then two of them are the same."""
    rng, road = stage.rng, stage.ground

    red, green, blue = shifted(road, float(rng.uniform(0, 20)))
    pavement = (red + 24.0, green + 4.0, blue - 12.0)
    if "kerb_twin" in wanted:
        pavement = road

    if "terrain_twin" in wanted:
        terrain = shifted(road, float(rng.normal(0, 5)))
    else:
        terrain = stage.green(grass=True)
    return road, pavement, terrain


def _draw_verge(stage: Stage, x0: float, x1: float, z0: float, z1: float, colour: Colour) -> None:
    _strip(stage, x0, x1, z0, z1, ident=ids.TERRAIN, colour=colour, noise="leaves", strength=7.0)


def _draw_street(stage: Stage, wanted: frozenset[str]) -> None:
    """A street that runs away from the camera."""
    rng, depth = stage.rng, float(stage.rng.uniform(45, 95))
    road, pavement, terrain = _ground_colours(stage, wanted)
    edges = {side: side * float(rng.uniform(4.2, 7.0)) for side in (-1, 1)}
    lines = {side: edges[side] + side * float(rng.uniform(2.0, 3.4)) for side in (-1, 1)}
    near = stage.camera.near

    # The ground from outside to inside: terrain, pavements with their verges, the road.
    ground = ids.GROUND
    if "terrain" in wanted:
        ground = ids.TERRAIN
    _strip(stage, -80, 80, near, 160, ident=ground, colour=terrain)
    verges = {side: 0.0 for side in (-1, 1)}
    for side in (-1, 1):
        _strip(stage, edges[side], lines[side], near, 160, ident=ids.SIDEWALK, colour=pavement)
        if "terrain" in wanted and rng.random() < 0.85:
            verges[side] = float(rng.uniform(2.5, 7.0))
        out = lines[side] + side * 60
        if verges[side] or "terrain" in wanted:
            _draw_verge(stage, lines[side], out, near, 160, terrain)
        else:
            _strip(stage, lines[side], out, near, 160, ident=ids.SIDEWALK, colour=pavement)
    _strip(stage, edges[-1], edges[1], near, 160, ident=ids.ROAD, colour=road)

    if "divider" in wanted:
        half = float(rng.uniform(0.5, 1.1))
        surface, colour = _divider(stage, terrain, pavement)
        _strip(stage, -half, half, near, 160, ident=surface, colour=colour)
        for x in (-half, half):
            _kerb(stage, x, road, near)
    for side in (-1, 1):
        _kerb(stage, edges[side], road, near)
    _roughen_ground(stage)

    # What is painted on the ground.
    if "slabs" in wanted:
        for side in (-1, 1):
            x0, x1 = sorted((edges[side], lines[side]))
            _draw_slabs(stage, x0, x1, near, 30.0)
    _draw_marks(stage, edges, wanted)

    # What lines the street: its far end, then both sides.
    far = Line((-70, depth + 12), (70, depth + 12), (0, 1))
    _draw_row(stage, far, wanted, far_away=True)
    lined = {side: lines[side] + side * verges[side] for side in (-1, 1)}
    for side in (-1, 1):
        _draw_row(stage, Line((lined[side], 1.0), (lined[side], depth), (side, 0)), wanted)
        if verges[side] and rng.random() < 0.6:
            before = Line((lined[side], 4.0), (lined[side], depth * 0.6), (side, 0))
            distance = float(rng.uniform(6, 12))
            structures.draw_trees(stage, before, out=-verges[side] / 2, every=distance)

    traffic.fill_street(stage, Street(edges[-1], edges[1], lines[-1], lines[1], depth), wanted)


def _divider(stage: Stage, terrain: Colour, pavement: Colour) -> tuple[int, Colour]:
    """Label and colour of the strip between two lanes: planted or paved."""
    if stage.rng.random() < 0.5:
        return ids.TERRAIN, terrain
    return ids.SIDEWALK, pavement


def _kerb(stage: Stage, x: float, road: Colour, near: float) -> None:
    colour = shifted(road, 30)
    _strip(stage, x - 0.09, x + 0.09, near, 120, ident=ids.SIDEWALK, colour=colour)


def _draw_slabs(stage: Stage, x0: float, x1: float, z0: float, z1: float) -> None:
    """Joints between the slabs of a pavement, a metre apart."""
    shade = scaled(stage.ground, 0.74)
    for x in np.arange(x0 + 1, x1, 1.0):
        _strip(stage, float(x), float(x) + 0.06, z0, min(z1, 30.0), ident=None, colour=shade)
    for z in np.arange(np.ceil(z0), min(z1, 24.0), 1.0):
        _strip(stage, x0, x1, float(z), float(z) + 0.06, ident=None, colour=shade)


def _draw_marks(stage: Stage, edges: dict[int, float], wanted: frozenset[str]) -> None:
    """White lines on the road: between the lanes, along the edges, and a crosswalk."""
    rng, paint = stage.rng, (212.0, 210.0, 204.0)

    if "divider" not in wanted:
        for z in np.arange(rng.uniform(1, 5), 70, 6.5):
            _strip(stage, -0.08, 0.08, float(z), float(z) + 3, ident=None, colour=paint)

    for side in (-1, 1):
        if rng.random() < 0.4:
            x0, x1 = edges[side] - side * 0.7, edges[side] - side * 0.58
            _strip(stage, x0, x1, stage.camera.near, 80, ident=None, colour=paint)

    if "crosswalk" in wanted:
        start = float(rng.uniform(6, 16))
        for x in np.arange(edges[-1] + 0.4, edges[1] - 0.6, 1.1):
            x0, x1 = float(x), float(x) + 0.55
            _strip(stage, x0, x1, start, start + 3.0, ident=None, colour=paint)


def _draw_row(stage: Stage, line: Line, wanted: frozenset[str], *, far_away: bool = False) -> None:
    """Line the street with stretches of buildings, walls, fences and hedges, far ones first."""
    rng = stage.rng
    kinds = ["building", *(kind for kind in ("wall", "fence", "hedge") if kind in wanted)]
    of_buildings = 0.8
    if far_away:
        of_buildings = 1.5
    weights = np.array([of_buildings, *[1.0] * (len(kinds) - 1)])

    # Cut the line into stretches of 8 to 18 metres and choose a kind for each.
    cuts = [0.0]
    while cuts[-1] < line.length - 4:
        cuts.append(min(cuts[-1] + float(rng.uniform(8, 18)), line.length))
    stretches = [
        (start, end, str(rng.choice(kinds, p=weights / weights.sum())))
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]

    for start, end, kind in reversed(stretches):
        structures.draw_segment(stage, line.cut(start, end), kind)


def _draw_crossing(stage: Stage, wanted: frozenset[str]) -> None:
    """A road that crosses the view, with houses behind it."""
    rng, near = stage.rng, stage.camera.near
    road, pavement, terrain = _ground_colours(stage, wanted)
    row_z = float(rng.uniform(17, 25))
    kerb_z = row_z - float(rng.uniform(3.6, 4.6))
    middle = (traffic.KERB_NEAR + kerb_z) / 2

    # The ground: pavement, a verge behind the road, the road with its divider and kerbs.
    _strip(stage, -80, 80, near, 160, ident=ids.SIDEWALK, colour=pavement)
    if "terrain" in wanted:
        _draw_verge(stage, -80, 80, kerb_z + 2.2, 160, terrain)
    _strip(stage, -80, 80, traffic.KERB_NEAR, kerb_z, ident=ids.ROAD, colour=road)
    if "divider" in wanted:
        surface, colour = _divider(stage, terrain, pavement)
        _strip(stage, -80, 80, middle - 0.6, middle + 0.6, ident=surface, colour=colour)
    for z in (traffic.KERB_NEAR, kerb_z):
        colour = shifted(road, 30)
        _strip(stage, -80, 80, z - 0.1, z + 0.1, ident=ids.SIDEWALK, colour=colour)
    _roughen_ground(stage)

    # What is painted on the ground.
    if "slabs" in wanted:
        _draw_slabs(stage, -30, 30, 2.0, traffic.KERB_NEAR - 0.2)
        _draw_slabs(stage, -30, 30, kerb_z + 0.2, kerb_z + 2.2)
    if "divider" not in wanted:
        for x in np.arange(-30, 30, 6.5):
            x0, x1, white = float(x), float(x) + 3, (212, 210, 204)
            _strip(stage, x0, x1, middle, middle + 0.15, ident=None, colour=white)

    # Two rows of houses, the far one first, and trees before them.
    _draw_row(stage, Line((-60, row_z + 25), (60, row_z + 25), (0, 1)), wanted, far_away=True)
    _draw_row(stage, Line((-45, row_z), (45, row_z), (0, 1)), wanted)
    if "street_tree" in wanted:
        for x in np.arange(-20, 20, rng.uniform(6, 12)):
            figures.draw_tree(stage, x=float(x + rng.uniform(-2, 2)), z=row_z - 1.0)

    traffic.fill_crossing(stage, row_z, wanted)


def _draw_margins(stage: Stage, *, ego: bool) -> None:
    """The bonnet of the car that carries the camera, and the border that rectification leaves."""
    canvas, rng = stage.canvas, stage.rng
    if ego:
        rise = canvas.height * float(rng.uniform(0.05, 0.1))
        x = np.linspace(0, canvas.width, 24)
        bow = canvas.height - rise * np.clip(1 - (2 * x / canvas.width - 1) ** 4, 0, 1)
        outline = np.vstack(
            [np.column_stack([x, bow]), [[canvas.width, canvas.height + 2], [0, canvas.height + 2]]]
        )
        colour = scaled(stage.paint("car"), 0.6)
        canvas.polygon(outline, ids.EGO_VEHICLE, colour, gradient=-46.0)

    margin = max(2, round(canvas.height / 128))
    canvas.ids[:margin] = canvas.ids[-margin:] = ids.OUT_OF_ROI
    canvas.ids[:, :margin] = canvas.ids[:, -margin:] = ids.OUT_OF_ROI


def _develop(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, colour temperature, contrast, vignette and sensor noise of one photograph."""
    height, width = image.shape[:2]
    photo = image.astype(np.float32) / 255

    warmth, exposure, gamma = (
        rng.uniform(-0.05, 0.05),
        rng.uniform(0.88, 1.1),
        rng.uniform(0.92, 1.08),
    )
    tint = np.array([1 + warmth, 1 + rng.uniform(-0.03, 0.03), 1 - warmth], np.float32)

    # Corners are darker than the middle.
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = (1 - 0.16 * (x**2 + y**2) / 2).astype(np.float32)
    photo = np.power(np.clip(photo * tint * vignette[:, :, None], 0, 1), gamma) * exposure

    # The noise of neighbouring pixels is alike, as a camera's is.
    noise = cv2.resize(
        rng.standard_normal((height // 2, width // 2, 3), dtype=np.float32), (width, height)
    )
    photo += noise * float(rng.uniform(0.002, 0.008))
    return np.clip(photo * 255 + 0.5, 0, 255).astype(np.uint8)
