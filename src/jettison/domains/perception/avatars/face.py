"""The shape and the paint of the synthetic face, as functions of the activations of its muscles. Ours; no source.

Everything is in texture coordinates: u from the left to the right ear, v from the hairline to the chin, both 0 to 1.
"""

from dataclasses import dataclass
from math import pi

import torch

# The muscles, loosely after the action units of the Facial Action Coding System; 1 is a strong activation.
MUSCLES = (
    "jaw_open", "smile_left", "smile_right", "frown", "pucker", "press", "brow_left", "brow_right", "brow_furrow",
    "blink_left", "blink_right", "eyes_wide", "cheek_puff", "nose_wrinkle", "gaze_side", "gaze_up",
)  # fmt: skip
EYES = ((0.36, 0.40), (0.64, 0.40))
MOUTH = (0.5, 0.71)


@dataclass(frozen=True)
class Person:
    """What does not change with the expression.

    shape: ten numbers of the form of the head, each about standard normal.
    skin, iris, lips: colours, (3,). brow: thickness of the eyebrows.
    spots: colour differences of the skin over the texture, (3, height, width).
    """

    shape: torch.Tensor
    skin: torch.Tensor
    iris: torch.Tensor
    lips: torch.Tensor
    brow: float
    spots: torch.Tensor


def make_person(size: int, generator: torch.Generator) -> Person:
    """Make a random person. size: side of the texture."""
    uniform = lambda low, high: low + (high - low) * torch.rand(3, generator=generator)
    shape, tone = torch.randn(10, generator=generator), torch.rand(1, generator=generator)
    skin = torch.tensor([0.55, 0.36, 0.26]) + tone * torch.tensor([0.32, 0.34, 0.34])
    iris = uniform(0.1, 0.55)
    lips = skin * torch.tensor([0.95, 0.62, 0.62])
    octaves = []
    for level in range(1, 7):  # from large patches to pores
        side = min(size, 4 << level)
        noise = torch.randn(1, 1, side, side, generator=generator)
        scale = 0.02 / level
        octaves.append(scale * torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")[0])
    spots = torch.stack(octaves).sum(0) * torch.tensor([1.0, 1.2, 1.1])[:, None, None]
    return Person(shape, skin, iris, lips, 0.008 + 0.008 * float(tone), spots)


def _bump(u: torch.Tensor, v: torch.Tensor, at: tuple[float, float], width: float, height: float) -> torch.Tensor:
    return torch.exp(-(((u - at[0]) / width) ** 2) - ((v - at[1]) / height) ** 2)


def surface(person: Person, muscles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the points of the face on a grid, (n, rows, columns, 3): x to the left ear's side, y up, z to the front.

    muscles: activations (n, 16). The grid's points are the centres of rows × columns texels.
    """
    v, u = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )  # fmt: skip
    shape = 0.05 * person.shape
    angle = (u - 0.5) * 0.95 * pi
    narrow = 1 - 0.33 * (2 * (v - 0.42)).clamp(min=0) ** 2 * (1 + shape[0]) - 0.25 * (0.2 - v).clamp(min=0)
    narrow = narrow - 8 * (v - 0.85).clamp(min=0) ** 2  # the chin is round
    x = 0.78 * (1 + shape[1]) * torch.sin(angle) * narrow
    y = 1.15 * (1 + shape[2]) * (0.5 - v) * 2
    z = 0.9 * torch.cos(angle) * narrow * (1 - 0.25 * (2 * v - 1) ** 2)
    nose = _bump(u, v, (0.5, 0.55), 0.045 * (1 + shape[3]), 0.10) + 0.5 * _bump(u, v, (0.5, 0.46), 0.03, 0.12)
    z = (
        z
        + (0.27 + shape[4]) * nose
        + 0.06 * _bump(u, v, MOUTH, 0.1, 0.05)
        + 0.07 * _bump(u, v, (0.5, 0.93), 0.08, 0.06)
    )
    for eye in EYES:
        z = z - 0.10 * (1 + shape[5]) * _bump(u, v, eye, 0.075, 0.05)
    z = z + 0.05 * (1 + shape[6]) * _bump(u, v, (0.5, 0.31), 0.28, 0.04)  # the brow's ridge
    still = torch.stack([x, y, z], -1)  # (rows, columns, 3)
    return still + torch.einsum("nm,mrcd->nrcd", muscles, _pulls(u, v))


def _pulls(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return how each muscle moves each point, (16, rows, columns, 3): the blendshapes."""
    side = torch.sign(u - 0.5)
    jaw = torch.sigmoid((v - 0.73) / 0.02) * torch.exp(-(((u - 0.5) / 0.32) ** 2))
    left, right = (_bump(u, v, (0.5 + sign * 0.11, 0.70), 0.07, 0.07) for sign in (-1, 1))
    cheek_left, cheek_right = (_bump(u, v, (0.5 + sign * 0.19, 0.60), 0.09, 0.09) for sign in (-1, 1))
    mouth, brow = _bump(u, v, MOUTH, 0.10, 0.05), lambda at: _bump(u, v, (at, 0.31), 0.1, 0.06)
    lid = lambda eye: _bump(u, v, (eye[0], eye[1] - 0.02), 0.06, 0.025)
    zero = torch.zeros_like(u)
    pull = lambda x=zero, y=zero, z=zero: torch.stack([x, y, z], -1)
    return torch.stack([
        pull(y=-0.30 * jaw, z=-0.10 * jaw),
        pull(-0.09 * left, 0.10 * left + 0.04 * cheek_left, 0.05 * cheek_left),
        pull(0.09 * right, 0.10 * right + 0.04 * cheek_right, 0.05 * cheek_right),
        pull(y=-0.10 * (left + right)),
        pull(-0.10 * side * (left + right), zero, 0.12 * mouth),
        pull(z=-0.05 * mouth),
        pull(y=0.10 * brow(0.36)),
        pull(y=0.10 * brow(0.64)),
        pull(-0.04 * side * (brow(0.43) + brow(0.57)), -0.05 * (brow(0.43) + brow(0.57))),
        pull(y=-0.03 * lid(EYES[0])),
        pull(y=-0.03 * lid(EYES[1])),
        pull(y=0.02 * (lid(EYES[0]) + lid(EYES[1]))),
        pull(0.08 * side * (cheek_left + cheek_right), zero, 0.14 * (cheek_left + cheek_right)),
        pull(y=0.04 * _bump(u, v, (0.5, 0.55), 0.08, 0.06), z=0.02 * _bump(u, v, (0.5, 0.46), 0.05, 0.05)),
        pull(),
        pull(),
    ])  # fmt: skip


def normals(points: torch.Tensor, size: int) -> torch.Tensor:
    """Return the unit normals of a surface, (n, 3, size, size), pointing outward. points: (n, rows, columns, 3)."""
    down = torch.gradient(points, dim=1)[0]
    right = torch.gradient(points, dim=2)[0]
    normal = torch.linalg.cross(down, right).movedim(-1, 1)  # (n, 3, rows, columns)
    normal = torch.nn.functional.interpolate(normal, size=(size, size), mode="bilinear")
    return torch.nn.functional.normalize(normal, dim=1)


def paint(person: Person, muscles: torch.Tensor) -> torch.Tensor:
    """Return the colour of the face without light, (n, 3, size, size), 0 to 1.

    muscles: (n, 16). Lids, gaze, lips, teeth, brows and wrinkles follow them; what a muscle moves on the mesh stays at
    its place in the texture, except at the brows and the mouth, where skin slides.
    """
    size = person.spots.shape[-1]
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(line, line, indexing="ij")
    m = dict(zip(MUSCLES, muscles.T[:, :, None, None], strict=True))  # name -> (n, 1, 1)
    sharp = max(0.003, 0.6 / size)
    inside = lambda distance: torch.sigmoid(-distance / sharp)  # 1 where the signed distance is negative
    image = (person.skin[:, None, None] + person.spots).expand(len(muscles), -1, -1, -1)

    def over(image: torch.Tensor, cover: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        return image + cover.expand(len(image), size, size)[:, None] * (colour.view(1, 3, 1, 1) - image)

    dark, white = torch.tensor([0.12, 0.07, 0.06]), torch.tensor([0.93, 0.92, 0.9])
    image = over(image, 0.25 * (m["smile_left"] + m["smile_right"]).clamp(0, 1) * (
        _bump(u, v, (0.27, 0.58), 0.08, 0.07) + _bump(u, v, (0.73, 0.58), 0.08, 0.07)
    ), person.lips)  # fmt: skip
    image = over(image, (0.55 * _wrinkles(u, v, m)).clamp(0, 0.6), 0.5 * person.skin)
    for eye, sign, name in ((EYES[0], -1, "left"), (EYES[1], 1, "right")):
        lifted = 0.045 * m[f"brow_{name}"] - 0.022 * m["brow_furrow"]
        arch = 0.315 - lifted - 0.02 * torch.cos((u - eye[0]) / 0.075)
        inner = 0.015 * m["brow_furrow"] * sign
        brow = inside((v - arch).abs() - person.brow) * inside((u - eye[0] + inner).abs() - 0.085)
        image = over(image, 0.85 * brow, dark)
        opening = 0.024 * (1 + 0.5 * m["eyes_wide"]) * (1 - m[f"blink_{name}"]).clamp(0.02, 1.2)
        across = 1 - ((u - eye[0]) / 0.068) ** 2
        open_eye = inside((v - eye[1]).abs() - opening * across.clamp(min=0)) * (across > 0)
        place = eye[0] + 0.022 * m["gaze_side"], eye[1] - 0.012 * m["gaze_up"]
        distance = ((u - place[0]) ** 2 + (v - place[1]) ** 2).sqrt()
        ball = over(image, torch.ones_like(open_eye), white)
        ball = over(over(ball, inside(distance - 0.024), person.iris), inside(distance - 0.011), 0.3 * dark)
        ball = over(ball, inside(((u - place[0] - 0.008) ** 2 + (v - place[1] + 0.008) ** 2).sqrt() - 0.004), white)
        image = image + open_eye[:, None] * (ball - image)
        lashes = inside(((v - eye[1]) + opening * across.clamp(min=0)).abs() - 0.004) * (across > 0)
        image = over(image, 0.8 * lashes, dark)
        image = over(image, 0.8 * inside(_ellipse(u, v, (0.5 + sign * 0.028, 0.592), 0.016, 0.009)), dark)
    return _mouth(image, u, v, m, person, inside, over).clamp(0, 1)


def _ellipse(u, v, at, width, height) -> torch.Tensor:
    """Return about the distance from an ellipse, negative inside."""
    return ((((u - at[0]) / width) ** 2 + ((v - at[1]) / height) ** 2).sqrt() - 1) * height


def _wrinkles(u: torch.Tensor, v: torch.Tensor, m: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the strength of the wrinkles, (n, size, size): forehead, brows, nose, beside the mouth, eyes."""
    crease = lambda phase, power=8: (0.5 + 0.5 * torch.cos(2 * pi * phase)) ** power
    forehead = crease(v / 0.035 + 0.3 * torch.cos(6 * u))
    total = m["brow_left"] * forehead * _bump(u, v, (0.36, 0.17), 0.13, 0.07)
    total = total + m["brow_right"] * forehead * _bump(u, v, (0.64, 0.17), 0.13, 0.07)
    total = total + m["brow_furrow"] * crease(u / 0.03) * _bump(u, v, (0.5, 0.30), 0.035, 0.05)
    total = total + m["nose_wrinkle"] * crease(v / 0.02) * _bump(u, v, (0.5, 0.45), 0.05, 0.05)
    for sign, name in ((-1, "left"), (1, "right")):
        fold = (sign * (u - 0.5) - 0.075 - 0.35 * (v - 0.60)).abs()
        smile = m[f"smile_{name}"]
        total = total + 1.2 * smile * torch.exp(-((fold / 0.008) ** 2)) * _bump(
            u, v, (0.5 + sign * 0.1, 0.66), 0.2, 0.07
        )
        total = total + smile * crease((v + 0.4 * (u - 0.5).abs()) / 0.018) * _bump(
            u, v, (0.5 + sign * 0.235, 0.40), 0.02, 0.04
        )
    return total


def _mouth(image, u, v, m, person, inside, over) -> torch.Tensor:
    """Paint the mouth over an image: lips, and teeth and darkness where it is open."""
    smile = (m["smile_left"] + m["smile_right"]) / 2
    width = 0.105 * (1 + 0.25 * smile - 0.4 * m["pucker"])
    skew = (m["smile_right"] - m["smile_left"]) * (u - MOUTH[0]) * 0.18
    curve = (-0.030 * smile + 0.035 * m["frown"]) * ((u - MOUTH[0]) / 0.1) ** 2 - skew
    centre = MOUTH[1] + curve
    arc = (1 - ((u - MOUTH[0]) / width) ** 2).clamp(min=0).sqrt()
    thick = 0.026 * (1 + 0.5 * m["pucker"] - 0.6 * m["press"]).clamp(min=0.1)
    gap = (0.055 * m["jaw_open"] + 0.010 * smile).clamp(min=0) * arc
    inner = (v - centre - 0.3 * gap).abs() - gap
    outer = (v - centre - 0.3 * gap).abs() - gap - thick * arc
    between = arc > 0
    image = over(image, inside(outer) * between, person.lips)
    image = over(image, inside(inner) * inside(-gap + 0.002) * between, torch.tensor([0.16, 0.05, 0.05]))
    upper = inside((v - centre + 0.45 * gap).abs() - 0.3 * gap) * inside(-gap + 0.004) * between
    teeth = 0.85 + 0.12 * torch.cos(2 * pi * (u - 0.5) / 0.024)
    image = over(image, upper * teeth * inside((u - MOUTH[0]).abs() - 0.8 * width), torch.tensor([0.92, 0.9, 0.85]))
    seam = inside((v - centre).abs() - 0.003) * inside(gap - 0.004) * between
    return over(image, 0.8 * seam, 0.35 * person.lips)
