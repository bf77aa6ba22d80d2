"""Synthetic avatars: frames of faces that nobody has, for tests and studies. Ours; no source.

- A mesh on a grid, moved by sixteen blendshapes; textures with lids, gaze, lips, teeth, brows and wrinkles.
- View effects: a gloss that moves with the camera, texels that it does not see, a colour cast for every camera.
- Expressions are mixtures of muscles; every frame of one differs a little. In ``sequence`` they are held, change
  smoothly, and their statistics drift: the light, and how strongly muscles move.
- The same seed gives the same frames.
"""

from collections.abc import Sequence
from math import pi

import torch

from jettison.core.numbers import check_number, check_seed
from jettison.domains.perception.avatars.face import MUSCLES, make_person, normals, paint, surface
from jettison.domains.perception.avatars.frames import AvatarFrames, join

CAMERAS = 9
AT_ONCE = 1 << 23  # texels that are painted together
SHARE = 64  # side of the normal map at most; it has no finer detail


class SyntheticAvatars:
    """Makes frames of synthetic faces.

    texture: side of the texture. grid: rows and columns of the mesh's vertices.
    expressions: how many there are; 0 is neutral. identities: how many persons there are.
    jitter: how much muscles differ between frames of one expression.
    Raises UsageError for sizes that are not valid.
    """

    def __init__(
        self, texture: int = 256, grid: tuple[int, int] = (56, 56), expressions: int = 40, identities: int = 1,
        jitter: float = 0.08, seed: int = 0,
    ):  # fmt: skip
        check_number("texture", texture, 8, 4096, whole=True)
        for side in grid:
            check_number("grid", side, 4, 1024, whole=True)
        check_number("expressions", expressions, 2, 10_000, whole=True)
        check_number("identities", identities, 1, 10_000, whole=True)
        check_number("jitter", jitter, 0, 1)
        check_seed(seed)
        self.texture, self.grid, self.jitter, self.seed = texture, grid, jitter, seed
        rng = torch.Generator().manual_seed(seed)
        self.expressions = _expressions(expressions, rng)  # (expressions, muscles)
        self.persons = [make_person(texture, rng) for _ in range(identities)]
        turns = torch.linspace(-0.35, 0.35, CAMERAS) * pi
        rises = 0.35 * torch.rand(CAMERAS, generator=rng) - 0.15
        turns, rises = turns.roll(-(CAMERAS // 2)), rises.index_fill(0, torch.tensor([0]), 0.0)  # camera 0 is in front
        self.cameras = torch.stack([turns.sin() * rises.cos(), rises.sin(), turns.cos() * rises.cos()], -1)
        self.casts = 1 + 0.02 * torch.randn(CAMERAS, 3, generator=rng)
        self.casts[0] = 1.0

    @property
    def vertices(self) -> int:
        """The number of vertices of the mesh."""
        return self.grid[0] * self.grid[1]

    def sample(self, expression: torch.Tensor | Sequence[int], seed: int, identity: int = 0) -> AvatarFrames:
        """Make independent frames of the expressions (n,), from random cameras."""
        expression = torch.as_tensor(expression, dtype=torch.int64)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        shake = self.jitter * torch.randn(len(expression), len(MUSCLES), generator=rng)
        muscles = self.expressions[expression] * (1 + 2 * shake.roll(1, 1)) + shake
        camera = torch.randint(CAMERAS, (len(expression),), generator=rng)
        return self._frames(muscles, expression, camera, identity, torch.ones(len(expression), 3))

    def sequence(self, count: int, seed: int, identity: int = 0, hold: int = 30, drift: float = 0.0) -> AvatarFrames:
        """Make consecutive frames: a random expression is held for ``hold`` frames, then the next.

        hold: frames; the first quarter is the way from the last expression.
        drift: how far the statistics move: over the sequence, muscles become stronger by this share, and light redder.
        """
        check_number("count", count, 1, whole=True)
        check_number("hold", hold, 1, whole=True)
        check_number("drift", drift, 0, 10)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        order = torch.randint(len(self.expressions), (count // hold + 2,), generator=rng)
        place = torch.arange(count)
        now, before = order[1 + place // hold], order[place // hold]
        way = ((place % hold + 1) / max(1, hold // 4)).clamp(max=1)[:, None]
        way = way * way * (3 - 2 * way)
        muscles = self.expressions[before] + way * (self.expressions[now] - self.expressions[before])
        shake, walk = torch.zeros(len(MUSCLES)), []
        for step in torch.randn(count, len(MUSCLES), generator=rng):  # an Ornstein-Uhlenbeck process
            shake = 0.95 * shake + (1 - 0.95**2) ** 0.5 * self.jitter * step
            walk.append(shake)
        time = torch.linspace(0, 1, count)[:, None]
        muscles = (muscles + torch.stack(walk)) * (1 + drift * time)
        light = 1 + drift * time * torch.tensor([0.25, 0.05, -0.15])
        camera = (place // hold) % CAMERAS
        return self._frames(muscles, now, camera, identity, light)

    def _frames(
        self, muscles: torch.Tensor, expression: torch.Tensor, camera: torch.Tensor, identity: int, light: torch.Tensor
    ) -> AvatarFrames:
        parts = max(1, AT_ONCE // self.texture**2)
        splits = zip(*(values.split(parts) for values in (muscles, expression, camera, light)), strict=True)
        return join([self._few(*split, identity) for split in splits])

    def _few(self, muscles, expression, camera, light, identity) -> AvatarFrames:
        """Make frames that are painted together. light: colour of the light, (n, 3)."""
        person = self.persons[identity]
        points = surface(person, muscles, *self.grid)
        detailed = surface(person, muscles, min(SHARE, self.texture), min(SHARE, self.texture))
        normal = normals(detailed, self.texture)
        colour = paint(person, muscles) * light[:, :, None, None]
        shade = 0.72 + 0.28 * normal[:, 2:].clamp(min=0)  # the light is soft and from the front
        lit = lambda view: colour * shade + _gloss(normal, view)[:, None]
        average = torch.stack([lit(view.expand(len(muscles), 3)) for view in self.cameras]).mean(0)
        view = self.cameras[camera]
        texture = lit(view) * self.casts[camera][:, :, None, None]
        facing = torch.einsum("ndhw,nd->nhw", normal, view)[:, None]
        mask = ((facing - 0.05) / 0.1).clamp(0, 1)
        return AvatarFrames(
            average.clamp(0, 1), texture.clamp(0, 1), mask, points.flatten(1, 2), view, camera, expression
        )


def _gloss(normal: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Return the gloss of the skin, (n, height, width): light from above in front, seen from ``view`` (n, 3)."""
    half = torch.nn.functional.normalize(view + torch.tensor([0.1, 0.5, 0.85]), dim=-1)
    return 0.12 * torch.einsum("ndhw,nd->nhw", normal, half).clamp(min=0) ** 24


def _expressions(count: int, rng: torch.Generator) -> torch.Tensor:
    """Return the muscles of every expression, (count, muscles). 0 is neutral; the others move two to six muscles."""
    muscles = torch.zeros(count, len(MUSCLES))
    for row in muscles[1:]:
        number = int(torch.randint(2, 7, (1,), generator=rng))
        chosen = torch.randperm(len(MUSCLES), generator=rng)[:number]
        row[chosen] = 0.5 + 0.5 * torch.rand(number, generator=rng)
        row[-2:] *= torch.sign(torch.randn(2, generator=rng))  # a gaze has two directions
    return muscles
