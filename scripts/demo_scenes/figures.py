"""People, two-wheelers, street furniture and trees: flat figures that face the camera."""

from __future__ import annotations

import numpy as np

from scripts.demo_scenes import ids
from scripts.demo_scenes.canvas import Colour, Points
from scripts.demo_scenes.stage import Stage, scaled, shifted

SKIN: tuple[Colour, ...] = ((222, 184, 156), (190, 146, 116), (120, 84, 62))
METAL: Colour = (74, 80, 86)
CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 22)), np.sin(np.linspace(0, 2 * np.pi, 22))], axis=1
)[:-1]


class Figure:
    """A drawing plane that stands upright at (x, z) and faces the camera.

    Its points are (metres to the right, metres up). `ident` is the id that is painted; `stretch`
    narrows the plane as if it were seen at an angle, or mirrors it.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        x: float,
        z: float,
        ident: int,
        stretch: float = 1.0,
        base: float = 0.0,
    ) -> None:
        self.stage, self.z, self.ident = stage, max(z, stage.camera.near), ident
        self.scale, self.stretch = stage.camera.scale(self.z), stretch
        self.foot = stage.camera.project(np.array([[x, base, self.z]]))[0]

    def points(self, flat: Points) -> Points:
        """Plane points [n, 2] to canvas points [n, 2]."""
        return self.foot + np.asarray(flat, np.float64) * (self.scale * self.stretch, -self.scale)

    def colour(self, colour: Colour) -> Colour:
        """The colour seen through the air between."""
        return self.stage.hazed(colour, self.z)

    def polygon(
        self,
        flat: list[tuple[float, float]] | Points,
        colour: Colour | None,
        *,
        ident: int | None = -1,
    ) -> None:
        """Fill a polygon; `ident` -1 is the figure's own, `colour` None leaves the image."""
        seen = None
        if colour is not None:
            seen = self.colour(colour)
        points = self.points(np.asarray(flat, np.float64))
        self.stage.canvas.polygon(points, self._own(ident), seen)

    def stroke(
        self,
        flat: list[tuple[float, float]],
        colour: Colour,
        width: float,
        *,
        ident: int | None = -1,
    ) -> None:
        """Draw a line of `width` metres, at least half an image pixel wide."""
        points = self.points(np.asarray(flat, np.float64))
        thickness = max(1.0, width * self.scale)
        self.stage.canvas.line(points, self._own(ident), self.colour(colour), thickness=thickness)

    def disc(
        self, x: float, y: float, radius: float, colour: Colour | None, *, ident: int | None = -1
    ) -> None:
        """Fill a circle (an ellipse where the plane is seen at an angle)."""
        self.polygon(CIRCLE * radius + (x, y), colour, ident=ident)

    def ring(self, x: float, y: float, radius: float, colour: Colour, width: float) -> None:
        """Draw a circle's rim."""
        turn = [(x + radius * c, y + radius * s) for c, s in CIRCLE]
        self.stroke([*turn, turn[0]], colour, width)

    def _own(self, ident: int | None) -> int | None:
        if ident == -1:
            return self.ident
        return ident


# Lengths below are metres. The order in which random numbers are drawn decides how things look.


def draw_person(stage: Stage, *, x: float, z: float, height: float | None = None) -> None:
    """A walking or standing person."""
    rng = stage.rng
    tall = height
    if tall is None:
        tall = float(rng.uniform(1.55, 1.9))
    figure = Figure(stage, x=x, z=z, ident=stage.canvas.instance(ids.PERSON))
    _ground_shadow(stage, x, z, 0.35, depth=0.2)

    stride = float(rng.uniform(0.05, 0.3))
    trousers, coat = scaled(stage.paint("clothes"), 0.7), stage.paint("clothes", spread=16)
    hip, shoulder, k = 0.5 * tall, 0.82 * tall, tall / 1.75

    # Legs, arms, body.
    for side, shade in ((-1, 0.8), (1, 1.0)):
        toe = side * stride
        figure.polygon(
            [
                (side * 0.05 - 0.09, hip),
                (side * 0.05 + 0.09, hip),
                (toe + 0.08, 0.02),
                (toe - 0.07, 0.02),
            ],
            scaled(trousers, shade),
        )
    for side in (-1, 1):
        swing = side * stride * float(rng.uniform(0.6, 1.2))
        figure.stroke(
            [(side * 0.2 * k, shoulder - 0.05), (side * 0.22 * k - swing, hip + 0.02)],
            scaled(coat, 0.85),
            0.11,
        )
    figure.polygon(
        [
            (-0.2 * k, shoulder),
            (0.2 * k, shoulder),
            (0.19 * k, hip - 0.06),
            (-0.19 * k, hip - 0.06),
        ],
        coat,
    )

    # Neck, head, hair.
    skin = SKIN[rng.integers(len(SKIN))]
    figure.polygon(
        [(-0.06, shoulder), (0.06, shoulder), (0.06, shoulder + 0.1), (-0.06, shoulder + 0.1)], skin
    )
    figure.disc(0, tall - 0.13, 0.12, skin)
    hair = shifted((58, 46, 38), float(rng.normal(0, 18)))
    figure.polygon([(-0.125, tall - 0.12), (-0.1, tall), (0.1, tall), (0.125, tall - 0.12)], hair)

    # Now and then a bag.
    if rng.random() < 0.3:
        figure.polygon(
            [(0.16, hip + 0.3), (0.34, hip + 0.26), (0.34, hip - 0.02), (0.16, hip - 0.02)],
            stage.paint("car"),
        )


def draw_bicycle(stage: Stage, *, x: float, z: float, ridden: bool) -> None:
    """A bicycle from the side or at an angle, with its rider or parked."""
    rng = stage.rng
    figure = Figure(
        stage,
        x=x,
        z=z,
        ident=stage.canvas.instance(ids.BICYCLE),
        stretch=float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)),
    )
    _ground_shadow(stage, x, z, 0.8)

    # Wheels: the label fills them, the image has spokes and a tyre.
    frame = stage.paint("bicycle", spread=16)
    for wheel in (-0.55, 0.55):
        figure.disc(wheel, 0.35, 0.35, None)
        for spoke in CIRCLE[::4]:
            figure.stroke(
                [(wheel, 0.35), (wheel + 0.33 * spoke[0], 0.35 + 0.33 * spoke[1])],
                (150, 150, 150),
                0.012,
            )
        figure.ring(wheel, 0.35, 0.33, (36, 36, 38), 0.08)

    # Frame, handlebar and saddle; the label fills the frame.
    figure.polygon([(-0.3, 0.8), (0.35, 0.82), (0.02, 0.35)], None)
    bars = [
        [(-0.55, 0.35), (-0.02, 0.33), (-0.22, 0.85), (-0.55, 0.35)],
        [(-0.2, 0.78), (0.36, 0.84), (-0.02, 0.33)],
    ]
    for bar in (*bars, [(0.55, 0.35), (0.36, 0.84), (0.32, 1.0), (0.46, 1.02)]):
        figure.stroke(bar, frame, 0.08)
    figure.polygon([(-0.36, 0.9), (-0.08, 0.9), (-0.08, 0.84), (-0.36, 0.84)], (40, 38, 38))
    if ridden:
        _draw_rider(figure, seat=(-0.22, 0.92), hands=(0.4, 1.06), foot=(0.05, 0.2))


def draw_motorcycle(stage: Stage, *, x: float, z: float, ridden: bool) -> None:
    """A motorcycle or scooter: thick wheels, a closed body."""
    rng = stage.rng
    figure = Figure(
        stage,
        x=x,
        z=z,
        ident=stage.canvas.instance(ids.MOTORCYCLE),
        stretch=float(rng.choice([-1, 1]) * rng.uniform(0.65, 1.0)),
    )
    _ground_shadow(stage, x, z, 1.0)

    # Wheels, engine, body, seat, fork and headlamp.
    paint = stage.paint("motorcycle", spread=16)
    for wheel in (-0.68, 0.7):
        figure.disc(wheel, 0.32, 0.33, (30, 30, 32))
        figure.disc(wheel, 0.32, 0.15, (132, 132, 136))
    figure.polygon([(-0.5, 0.3), (0.35, 0.26), (0.45, 0.62), (-0.3, 0.66)], (66, 66, 70))
    figure.polygon(
        [
            (-0.95, 0.78),
            (-0.5, 0.6),
            (0.1, 0.62),
            (0.5, 0.72),
            (0.42, 0.98),
            (0.05, 1.0),
            (-0.2, 0.82),
        ],
        paint,
    )
    figure.polygon([(-0.8, 0.84), (-0.05, 0.82), (-0.1, 0.92), (-0.78, 0.92)], (36, 34, 34))
    figure.polygon([(0.4, 0.6), (0.62, 0.7), (0.5, 1.12), (0.34, 1.02)], scaled(paint, 0.85))
    figure.stroke([(0.7, 0.32), (0.44, 1.04), (0.3, 1.12)], (60, 60, 64), 0.09)
    figure.disc(0.58, 0.86, 0.09, (236, 232, 204))

    if ridden:
        _draw_rider(figure, seat=(-0.3, 0.98), hands=(0.34, 1.1), foot=(0.0, 0.36))


def _draw_rider(
    mount: Figure,
    *,
    seat: tuple[float, float],
    hands: tuple[float, float],
    foot: tuple[float, float],
) -> None:
    """A rider on a two-wheeler, painted on its drawing plane with an id of the class rider."""
    stage = mount.stage
    rider, rng = stage.canvas.instance(ids.RIDER), stage.rng
    coat, trousers = stage.paint("vest", spread=16), scaled(stage.paint("clothes"), 0.7)
    (sx, sy), (hx, hy) = seat, hands
    lean = float(rng.uniform(0.1, 0.35))
    neck = (sx + lean, sy + 0.58)
    knee = (sx + 0.42, sy - 0.08)

    # Legs, body, arms.
    mount.stroke([(sx, sy), knee, foot], trousers, 0.17, ident=rider)
    mount.polygon(
        [
            (sx - 0.17, sy - 0.04),
            (sx + 0.17, sy - 0.02),
            (neck[0] + 0.15, neck[1] - 0.06),
            (neck[0] - 0.17, neck[1]),
        ],
        coat,
        ident=rider,
    )
    mount.stroke(
        [(neck[0], neck[1] - 0.1), (sx + 0.38, sy + 0.2), (hx, hy)],
        scaled(coat, 0.85),
        0.11,
        ident=rider,
    )

    # Head and helmet.
    mount.disc(neck[0] + 0.06, neck[1] + 0.14, 0.13, SKIN[rng.integers(len(SKIN))], ident=rider)
    helmet = [(neck[0] + 0.06 + 0.15 * c, neck[1] + 0.16 + 0.15 * s) for c, s in CIRCLE if s > -0.1]
    mount.polygon(helmet, (224, 226, 228), ident=rider)


def draw_pole(stage: Stage, *, x: float, z: float, height: float, width: float = 0.16) -> Figure:
    """A lamp post or the post of a sign; returns its drawing plane."""
    figure = Figure(stage, x=x, z=z, ident=ids.POLE)
    shade = shifted(METAL, float(stage.rng.normal(-8, 14)))
    half = max(width / 2, 0.5 / figure.scale)
    figure.polygon([(-half, 0), (half, 0), (half, height), (-half, height)], shade)
    figure.polygon(
        [(-half, 0), (-half * 0.3, 0), (-half * 0.3, height), (-half, height)], scaled(shade, 1.25)
    )
    return figure


def draw_lamp_post(stage: Stage, *, x: float, z: float) -> None:
    """A tall pole with an arm over the road."""
    height, side = float(stage.rng.uniform(5.5, 8.0)), -float(np.sign(x) or 1.0)
    figure = draw_pole(stage, x=x, z=z, height=height, width=0.2)
    figure.stroke([(0, height - 0.05), (side * 1.4, height + 0.25)], METAL, 0.09)
    head = [
        (side * 1.2, height + 0.14),
        (side * 1.9, height + 0.3),
        (side * 1.9, height + 0.44),
        (side * 1.2, height + 0.3),
    ]
    figure.polygon(head, (196, 196, 188))


def draw_traffic_light(stage: Stage, *, x: float, z: float) -> None:
    """One or two signal heads on a pole, now and then one more on an arm over the road."""
    rng = stage.rng
    side = -float(np.sign(x) or 1.0)
    over = rng.random() < 0.35
    height = 3.1
    if over:
        height = 5.2
    figure = draw_pole(stage, x=x, z=z, height=height, width=0.18)

    heads = [(0.0, 2.35)]
    if over:
        figure.stroke([(0, 5.1), (side * 3.2, 5.2)], METAL, 0.12)
        heads.append((side * 3.0, 4.35))

    # One of the three lamps is lit, in all heads the same.
    lit = int(rng.integers(3))
    for hx, hy in heads:
        figure.polygon(
            [(hx - 0.2, hy), (hx + 0.2, hy), (hx + 0.2, hy + 1.05), (hx - 0.2, hy + 1.05)],
            (224, 172, 36),
            ident=ids.TRAFFIC_LIGHT,
        )
        glass = [
            (hx - 0.13, hy + 0.07),
            (hx + 0.13, hy + 0.07),
            (hx + 0.13, hy + 0.98),
            (hx - 0.13, hy + 0.98),
        ]
        figure.polygon(glass, (40, 42, 40), ident=ids.TRAFFIC_LIGHT)
        for lamp, colour in enumerate(((60, 214, 130), (240, 190, 50), (232, 58, 46))):
            shown = scaled(colour, 0.3)
            if lamp == lit:
                shown = colour
            figure.disc(hx, hy + 0.2 + 0.32 * lamp, 0.13, shown, ident=ids.TRAFFIC_LIGHT)


def draw_sign(stage: Stage, *, x: float, z: float) -> None:
    """A round, triangular or square sign on its thin post, in colours that the street has, too."""
    rng = stage.rng
    figure = draw_pole(stage, x=x, z=z, height=2.9, width=0.1)
    kind, y, r = int(rng.integers(4)), 2.55, float(rng.uniform(0.38, 0.55))
    sign = ids.TRAFFIC_SIGN
    red, white, blue = (196, 44, 40), (232, 232, 228), (40, 84, 168)

    # A prohibition, a warning, an order, or an information.
    if kind == 0:
        figure.disc(0, y, r, red, ident=sign)
        figure.disc(0, y, r * 0.68, white, ident=sign)
    elif kind == 1:
        outer = np.array([[-1, -0.7], [1, -0.7], [0, 1.05]]) * r + (0, y)
        figure.polygon(outer, red, ident=sign)
        figure.polygon((outer - (0, y)) * 0.55 + (0, y), white, ident=sign)
    elif kind == 2:
        figure.disc(0, y, r, blue, ident=sign)
        bar = np.array([[-0.12, -0.6], [0.12, -0.6], [0.12, 0.6], [-0.12, 0.6]]) * r + (0, y)
        figure.polygon(bar, white, ident=sign)
    else:
        square = np.array([[-1, -0.8], [1, -0.8], [1, 0.8], [-1, 0.8]]) * r + (0, y)
        figure.polygon(square, blue, ident=sign)
        figure.polygon((square - (0, y)) * 0.5 + (0, y), white, ident=sign)


def draw_sign_board(stage: Stage, *, x: float, z: float) -> None:
    """A direction board over the road: a large sign between two poles."""
    width = float(stage.rng.uniform(2.4, 4.0))
    blue = shifted((36, 84, 160), float(stage.rng.normal(0, 12)))
    figure = draw_pole(stage, x=x - width / 2, z=z, height=5.4, width=0.14)
    draw_pole(stage, x=x + width / 2, z=z, height=5.4, width=0.14)

    # The board, and two lines of text.
    figure.polygon(
        [(-0.2, 4.0), (width + 0.2, 4.0), (width + 0.2, 5.6), (-0.2, 5.6)],
        blue,
        ident=ids.TRAFFIC_SIGN,
    )
    for row in (4.35, 4.85):
        figure.polygon(
            [(0.2, row), (width * 0.7, row), (width * 0.7, row + 0.22), (0.2, row + 0.22)],
            (230, 230, 226),
            ident=ids.TRAFFIC_SIGN,
        )


def draw_box(stage: Stage, *, x: float, z: float) -> None:
    """A bin or a switch box: static, which is in no evaluated class."""
    colour = scaled(stage.paint("fence"), 0.8)
    figure = Figure(stage, x=x, z=z, ident=ids.STATIC)
    figure.polygon([(-0.35, 0), (0.35, 0), (0.35, 1.05), (-0.35, 1.05)], colour)
    figure.polygon([(-0.4, 1.0), (0.4, 1.0), (0.4, 1.12), (-0.4, 1.12)], scaled(colour, 1.3))


def draw_tree(stage: Stage, *, x: float, z: float, height: float | None = None) -> None:
    """A trunk and a crown of blobs, both vegetation."""
    rng = stage.rng
    tall = height
    if tall is None:
        tall = float(rng.uniform(4.5, 9.0))
    figure = Figure(stage, x=x, z=z, ident=ids.VEGETATION)
    trunk = max(0.14, 0.6 / figure.scale)
    figure.polygon(
        [(-trunk, 0), (trunk, 0), (trunk * 0.7, tall * 0.5), (-trunk * 0.7, tall * 0.5)],
        (84, 68, 54),
    )
    _draw_leaves(figure, stage.green(), (0.0, tall * 0.68), (tall * 0.3, tall * 0.32), blobs=11)


def draw_bush(stage: Stage, *, x: float, z: float, width: float, height: float) -> None:
    """A bush that stands on the ground."""
    figure = Figure(stage, x=x, z=z, ident=ids.VEGETATION)
    _draw_leaves(figure, stage.green(), (0.0, height * 0.5), (width / 2, height * 0.5), blobs=8)


def _draw_leaves(
    figure: Figure,
    colour: Colour,
    middle: tuple[float, float],
    radii: tuple[float, float],
    *,
    blobs: int,
) -> None:
    """Blobs of leaves within an ellipse around `middle`; upper ones are lighter."""
    stage, rng = figure.stage, figure.stage.rng

    for blob in range(blobs):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * 0.62
        x = middle[0] + radii[0] * reach * np.cos(angle)
        y = middle[1] + radii[1] * reach * np.sin(angle)
        wobble = 1 + 0.12 * rng.standard_normal(len(CIRCLE))
        outline = CIRCLE * wobble[:, None] * (radii[0] * 0.46, radii[1] * 0.46)
        outline = outline + (x, max(y, radii[1] * 0.4))

        light = 0.86 + 0.2 * (y - middle[1]) / (radii[1] + 1e-6) + 0.02 * blob
        stage.canvas.polygon(
            figure.points(outline),
            figure.ident,
            stage.hazed(scaled(colour, float(light)), figure.z),
            noise="leaves",
            strength=13.0 * float(np.exp(-figure.z / stage.visibility)),
        )


def _ground_shadow(stage: Stage, x: float, z: float, reach: float, *, depth: float = 0.25) -> None:
    """Darken the ground from -reach to reach across, and -depth to depth along."""
    corners = [
        [x - reach, 0, z - depth],
        [x + reach, 0, z - depth],
        [x + reach, 0, z + depth],
        [x - reach, 0, z + depth],
    ]
    stage.shadow(np.array(corners), 0.7)
