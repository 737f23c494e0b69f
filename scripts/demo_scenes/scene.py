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

# Share of the scenes that hold a thing. Rare classes of the real streets are frequent here: a miniature is small.
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
BANDS = (
    4.0,
    7.0,
    11.0,
    16.0,
    23.0,
    33.0,
    48.0,
    80.0,
)  # metres ahead at which the ground is cut, for the haze
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Scene:
    """A drawn scene: image uint8 RGB [h, w, 3] and ids uint16 [h, w] (raw id, or raw id * 1000 + instance)."""

    image: NDArray[np.uint8]
    ids: NDArray[np.uint16]

    @property
    def label(self) -> NDArray[np.uint8]:
        """Raw label ids [h, w]."""
        return np.where(self.ids >= 1000, self.ids // 1000, self.ids).astype(np.uint8)


def stream(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene: independent of every other scene and of the number of processes."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def contents(seed: int, split: str, index: int) -> frozenset[str]:
    """Which things scene ``index`` holds: a low-discrepancy sequence, so that few scenes hold their share of each."""
    chosen = set()
    for name, frequency in FREQUENCIES.items():
        start = zlib.crc32(f"{seed}/{split}/{name}".encode()) / 2**32
        step = GOLDEN + (zlib.crc32(name.encode()) % 997) / 997 * 0.2
        if (start + index * step) % 1.0 < frequency:
            chosen.add(name)
    return frozenset(chosen)


def draw_scene(*, seed: int, split: str, index: int, height: int, width: int) -> Scene:
    """Draw scene ``index`` of a split."""
    rng, wanted = stream(seed, split, index), contents(seed, split, index)
    texture_rng = rng.spawn(1)[0]
    canvas = Canvas(height=height, width=width, rng=texture_rng)
    camera = Camera(
        focal=canvas.width * 0.75 * float(rng.uniform(0.85, 1.2)),
        centre_x=canvas.width * float(rng.uniform(0.34, 0.66)),
        horizon=canvas.height * float(rng.uniform(0.36, 0.5)),
        height=float(rng.uniform(1.4, 2.4)),
    )
    stage = Stage(canvas=canvas, camera=camera, rng=rng, texture_rng=texture_rng)
    _draw_sky(stage)
    if "crossing" in wanted:
        _draw_crossing(stage, wanted)
    else:
        _draw_street(stage, wanted)
    _draw_margins(stage, ego="ego" in wanted)
    image, label = canvas.finish()
    return Scene(_develop(image, rng), label)


def _draw_sky(stage: Stage) -> None:
    canvas, horizon = stage.canvas, int(stage.camera.horizon)
    share = np.linspace(0, 1, max(horizon, 2), dtype=np.float32)[:, None] ** 1.4
    column = (
        np.asarray(stage.zenith, np.float32) * (1 - share)
        + np.asarray(stage.haze, np.float32) * share
    )
    sky = np.repeat(column[:, None, :], canvas.width, axis=1)
    clouds = value_noise(
        sky.shape[0], canvas.width, 70 * canvas.unit, stage.texture_rng
    ) + 0.5 * value_noise(sky.shape[0], canvas.width, 26 * canvas.unit, stage.texture_rng)
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
    ident: int | None,
    colour: Colour,
    *,
    noise: str = "grain",
    strength: float = 4.0,
) -> None:
    """A rectangle on the ground, band by band: each is seen through its own share of air."""
    cuts = [z0, *(z for z in BANDS if z0 < z < z1), z1]
    for start, end in zip(cuts, cuts[1:], strict=False):
        corners = np.array([[x0, 0, start], [x1, 0, start], [x1, 0, end], [x0, 0, end]])
        stage.face(corners, ident, colour, noise=noise, strength=strength)


def _roughen_ground(stage: Stage) -> None:
    """Lay one grain over the whole ground in perspective: road, pavement and verge share it."""
    canvas, camera = stage.canvas, stage.camera
    texels, extent = 9.0, 44.0
    side = round(texels * extent)
    grain = 4.0 * value_noise(side, side, 2, stage.texture_rng) + 4.0 * value_noise(
        side, side, 16, stage.texture_rng
    )
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
    rng, road = stage.rng, stage.ground
    red, green, blue = shifted(road, float(rng.uniform(0, 20)))
    pavement = road if "kerb_twin" in wanted else (red + 24.0, green + 4.0, blue - 12.0)
    terrain = (
        shifted(road, float(rng.normal(0, 5)))
        if "terrain_twin" in wanted
        else stage.green(grass=True)
    )
    return road, pavement, terrain


def _draw_verge(stage: Stage, x0: float, x1: float, z0: float, z1: float, colour: Colour) -> None:
    _strip(stage, x0, x1, z0, z1, ids.TERRAIN, colour, noise="leaves", strength=7.0)


def _draw_street(stage: Stage, wanted: frozenset[str]) -> None:
    rng, depth = stage.rng, float(stage.rng.uniform(45, 95))
    road, pavement, terrain = _ground_colours(stage, wanted)
    edges = {side: side * float(rng.uniform(4.2, 7.0)) for side in (-1, 1)}
    lines = {side: edges[side] + side * float(rng.uniform(2.0, 3.4)) for side in (-1, 1)}
    near = stage.camera.near
    _strip(stage, -80, 80, near, 160, ids.TERRAIN if "terrain" in wanted else ids.GROUND, terrain)
    verges = {side: 0.0 for side in (-1, 1)}
    for side in (-1, 1):
        _strip(stage, edges[side], lines[side], near, 160, ids.SIDEWALK, pavement)
        if "terrain" in wanted and rng.random() < 0.85:
            verges[side] = float(rng.uniform(2.5, 7.0))
        out = lines[side] + side * 60
        if verges[side] or "terrain" in wanted:
            _draw_verge(stage, lines[side], out, near, 160, terrain)
        else:
            _strip(stage, lines[side], out, near, 160, ids.SIDEWALK, pavement)
    _strip(stage, edges[-1], edges[1], near, 160, ids.ROAD, road)
    if "divider" in wanted:
        half = float(rng.uniform(0.5, 1.1))
        soil = rng.random() < 0.5
        _strip(
            stage,
            -half,
            half,
            near,
            160,
            ids.TERRAIN if soil else ids.SIDEWALK,
            terrain if soil else pavement,
        )
        for x in (-half, half):
            _kerb(stage, x, road, near)
    for side in (-1, 1):
        _kerb(stage, edges[side], road, near)
    _roughen_ground(stage)
    if "slabs" in wanted:
        for side in (-1, 1):
            x0, x1 = sorted((edges[side], lines[side]))
            _draw_slabs(stage, x0, x1, near, 30.0)
    _draw_marks(stage, edges, wanted)
    far = Line((-70, depth + 12), (70, depth + 12), (0, 1))
    _draw_row(stage, far, wanted, far_away=True)
    lined = {side: lines[side] + side * verges[side] for side in (-1, 1)}
    for side in (-1, 1):
        _draw_row(stage, Line((lined[side], 1.0), (lined[side], depth), (side, 0)), wanted)
        if verges[side] and rng.random() < 0.6:
            before = Line((lined[side], 4.0), (lined[side], depth * 0.6), (side, 0))
            structures.draw_trees(
                stage, before, out=-verges[side] / 2, every=float(rng.uniform(6, 12))
            )
    traffic.fill_street(stage, Street(edges[-1], edges[1], lines[-1], lines[1], depth), wanted)


def _kerb(stage: Stage, x: float, road: Colour, near: float) -> None:
    _strip(stage, x - 0.09, x + 0.09, near, 120, ids.SIDEWALK, shifted(road, 30))


def _draw_slabs(stage: Stage, x0: float, x1: float, z0: float, z1: float) -> None:
    """Joints between the slabs of a pavement, a metre apart."""
    shade = scaled(stage.ground, 0.74)
    for x in np.arange(x0 + 1, x1, 1.0):
        _strip(stage, float(x), float(x) + 0.06, z0, min(z1, 30.0), None, shade)
    for z in np.arange(np.ceil(z0), min(z1, 24.0), 1.0):
        _strip(stage, x0, x1, float(z), float(z) + 0.06, None, shade)


def _draw_marks(stage: Stage, edges: dict[int, float], wanted: frozenset[str]) -> None:
    rng, paint = stage.rng, (212.0, 210.0, 204.0)
    if "divider" not in wanted:
        for z in np.arange(rng.uniform(1, 5), 70, 6.5):
            _strip(stage, -0.08, 0.08, float(z), float(z) + 3, None, paint)
    for side in (-1, 1):
        if rng.random() < 0.4:
            _strip(
                stage,
                edges[side] - side * 0.7,
                edges[side] - side * 0.58,
                stage.camera.near,
                80,
                None,
                paint,
            )
    if "crosswalk" in wanted:
        start = float(rng.uniform(6, 16))
        for x in np.arange(edges[-1] + 0.4, edges[1] - 0.6, 1.1):
            _strip(stage, float(x), float(x) + 0.55, start, start + 3.0, None, paint)


def _draw_row(stage: Stage, line: Line, wanted: frozenset[str], *, far_away: bool = False) -> None:
    """Line the street with stretches of buildings, walls, fences and hedges, far ones first."""
    rng = stage.rng
    kinds = ["building", *(kind for kind in ("wall", "fence", "hedge") if kind in wanted)]
    weights = np.array([1.5 if far_away else 0.8, *[1.0] * (len(kinds) - 1)])
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
    rng, near = stage.rng, stage.camera.near
    road, pavement, terrain = _ground_colours(stage, wanted)
    row_z = float(rng.uniform(17, 25))
    kerb_z = row_z - float(rng.uniform(3.6, 4.6))
    _strip(stage, -80, 80, near, 160, ids.SIDEWALK, pavement)
    if "terrain" in wanted:
        _draw_verge(stage, -80, 80, kerb_z + 2.2, 160, terrain)
    _strip(stage, -80, 80, traffic.KERB_NEAR, kerb_z, ids.ROAD, road)
    if "divider" in wanted:
        middle = (traffic.KERB_NEAR + kerb_z) / 2
        soil = rng.random() < 0.5
        _strip(
            stage,
            -80,
            80,
            middle - 0.6,
            middle + 0.6,
            ids.TERRAIN if soil else ids.SIDEWALK,
            terrain if soil else pavement,
        )
    for z in (traffic.KERB_NEAR, kerb_z):
        _strip(stage, -80, 80, z - 0.1, z + 0.1, ids.SIDEWALK, shifted(road, 30))
    _roughen_ground(stage)
    if "slabs" in wanted:
        _draw_slabs(stage, -30, 30, 2.0, traffic.KERB_NEAR - 0.2)
        _draw_slabs(stage, -30, 30, kerb_z + 0.2, kerb_z + 2.2)
    if "divider" not in wanted:
        for x in np.arange(-30, 30, 6.5):
            _strip(
                stage,
                float(x),
                float(x) + 3,
                (traffic.KERB_NEAR + kerb_z) / 2,
                (traffic.KERB_NEAR + kerb_z) / 2 + 0.15,
                None,
                (212, 210, 204),
            )
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
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = (1 - 0.16 * (x**2 + y**2) / 2).astype(np.float32)
    photo = np.power(np.clip(photo * tint * vignette[:, :, None], 0, 1), gamma) * exposure
    noise = cv2.resize(
        rng.standard_normal((height // 2, width // 2, 3), dtype=np.float32), (width, height)
    )
    photo += noise * float(rng.uniform(0.002, 0.008))
    return np.clip(photo * 255 + 0.5, 0, 255).astype(np.uint8)
