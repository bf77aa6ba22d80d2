"""Renders what the cameras see: for every pixel a ray, the nearest thing on it, its colour and its depth.

- The ray of pixel (u, v) has depth 1 per unit, so its parameter is the depth along the camera's axis.
- A pixel's depth and its number belong to its centre. Its colour at edges is the mean of four rays.
- Colours, depths and labels come from the same world: ``labels`` uses the same cameras and the same ground.
"""

from dataclasses import dataclass

import numpy as np

from jettison.domains.perception.scenes import Camera
from jettison.domains.perception.world.ground import Footprint, Ground
from jettison.domains.perception.world.light import Light, rain
from jettison.domains.perception.world.paints import paint
from jettison.domains.perception.world.solids import NEAR, Solid
from jettison.domains.perception.world.streets import Hills
from jettison.domains.perception.world.world import World

FAR = 250.0  # metres of depth; what is farther is in the haze and has no depth
SKY, GROUND = -1, 0  # numbers of pixels; solid k has number k + 1
REACH, SHADOW_REACH = 190.0, 100.0  # metres from the camera to the farthest solid, and shadow, that is drawn
CHUNK = 1 << 17  # rays that are followed at once, which bounds the memory
STEPS = 18  # of the search along flat rays
CORNERS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # rays of a pixel at an edge


@dataclass(frozen=True, eq=False)
class Picture:
    """What one camera sees.

    image: (height, width, 3) uint8. depth: (height, width) float32 metres along the axis, 0 where nothing is near.
    things: (height, width) int32: -1 sky, 0 ground, k + 1 solid number k of ``World.solids``.
    """

    image: np.ndarray
    depth: np.ndarray
    things: np.ndarray


def meet_ground(hills: Hills, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return where rays meet the ground first: the parameter along the ray (n,), infinite beyond FAR.

    origin: (3,). rays: (n, 3) float32. Steep rays by Newton's method; flat ones by a search, then regula falsi.
    """
    ox, oy, oz = (float(part) for part in origin)
    dx, dy, dz = rays[:, 0], rays[:, 1], rays[:, 2]
    flat_length = np.hypot(dx, dy)
    t = np.full(len(rays), np.inf, np.float32)
    below = float(hills.height(np.array([ox]), np.array([oy]))[0])
    steep = np.flatnonzero(dz < -0.16 * flat_length)
    if len(steep):
        x, y, z = dx[steep], dy[steep], dz[steep]
        at = (below - oz) / z
        for _ in range(5):
            px, py = ox + at * x, oy + at * y
            slope_x, slope_y = hills.slope(px, py)
            at = at - (oz + at * z - hills.height(px, py)) / (z - slope_x * x - slope_y * y)
        t[steep] = at
    flat = np.flatnonzero((dz >= -0.16 * flat_length) & (dz < 0.07 * flat_length))
    if len(flat):
        t[flat] = _search(hills, (ox, oy, oz), dx[flat], dy[flat], dz[flat])
    t[t > FAR] = np.inf
    return t


def _search(hills: Hills, origin: tuple[float, float, float], dx, dy, dz) -> np.ndarray:
    ox, oy, oz = origin
    gap = lambda t, x, y, z: oz + t * z - hills.height(ox + t * x, oy + t * y)
    result = np.full(len(dx), np.inf, np.float32)
    left = np.arange(len(dx))
    before, last = np.full(len(dx), 3.0, np.float32), gap(np.float32(3.0), dx, dy, dz)
    low, high = np.zeros(len(dx), np.float32), np.zeros(len(dx), np.float32)
    low_gap, high_gap = np.zeros(len(dx), np.float32), np.zeros(len(dx), np.float32)
    hits = []
    for t in np.geomspace(5.0, FAR * 1.02, STEPS).astype(np.float32):
        now = gap(t, dx[left], dy[left], dz[left])
        below = now <= 0
        these = left[below]
        low[these], high[these], low_gap[these], high_gap[these] = before[below], t, last[below], now[below]
        hits.append(these)
        left, last = left[~below], now[~below]
        before = np.full(len(left), t, np.float32)
    hits = np.concatenate(hits)
    a, b, ga, gb = low[hits], high[hits], low_gap[hits], high_gap[hits]
    x, y, z = dx[hits], dy[hits], dz[hits]
    for _ in range(6):  # Illinois
        middle = a + (b - a) * np.clip(ga / np.maximum(ga - gb, 1e-9), 0.02, 0.98)
        g = gap(middle, x, y, z)
        over = g > 0
        gb, ga = np.where(over, gb * 0.5, g), np.where(over, g, ga * 0.5)
        a, b = np.where(over, middle, a), np.where(over, b, middle)
    slope_x, slope_y = hills.slope(ox + middle * x, oy + middle * y)
    fall = z - slope_x * x - slope_y * y
    step = gap(middle, x, y, z) / np.where(np.abs(fall) < 1e-4, -1e-4, fall)
    result[hits] = np.where(np.abs(step) < 0.1 * middle, middle - step, middle)
    return result


class Renderer:
    """Renders a world at one time."""

    def __init__(self, world: World, time: float):
        """Place everything at a time in seconds."""
        self.world, self.time = world, time
        self.pose = world.ego_to_world(time)
        self.ground, self.light = Ground(world), Light(world, time)
        self.solids = world.solids(time)
        self.corners = np.stack([solid.corners() for solid in self.solids])  # (solids, 8, 3)
        self.casters = self._casters()

    def _casters(self) -> tuple[list[Solid], np.ndarray, np.ndarray]:
        """What throws shadows, and the circles (n, 2), (n,) in the plane in which the shadows lie."""
        solids = [solid for solid in self.solids if solid.paint != "board"] if self.light.shadows else []
        if not solids:
            return [], np.zeros((0, 2)), np.zeros(0)
        centres, halves = (np.stack([getattr(solid, name) for solid in solids]) for name in ("centre", "half"))
        ground = self.world.hills.height(centres[:, 0], centres[:, 1])
        away = -self.world.sun[:2] / self.world.sun[2]  # metres of shadow for each metre of height
        top, bottom = (np.maximum(centres[:, 2] + side * halves[:, 2] - ground, 0) for side in (1, -1))
        spread = np.linalg.norm(away) * (top - bottom) / 2 + 0.1 * np.linalg.norm(away) * top  # more on a slope
        middles = centres[:, :2] + away * ((top + bottom) / 2)[:, None]
        return solids, middles, np.hypot(halves[:, 0], halves[:, 1]) + spread

    def picture(self, camera: Camera, seed: int = 0) -> Picture:
        """Render what a camera sees. seed: of the noise of the sensor, and of the rain."""
        height, width = camera.height, camera.width
        v, u = np.divmod(np.arange(height * width, dtype=np.int32), width)
        view = _View(self, camera)
        colour, depth, things, asphalt = view.look(u.astype(np.float32), v.astype(np.float32))
        number = things.reshape(height, width)
        edge = np.zeros((height, width), bool)
        edge[:, 1:] |= number[:, 1:] != number[:, :-1]
        edge[1:] |= number[1:] != number[:-1]
        edge[:, :-1] |= edge[:, 1:].copy()
        edge[:-1] |= edge[1:].copy()
        rows, columns = np.nonzero(edge)
        if len(rows):
            du, dv = np.array(CORNERS, np.float32).T[:, :, None]
            around = view.look((columns + du).ravel(), (rows + dv).ravel())[0]
            colour[rows * width + columns] = around.reshape(len(CORNERS), len(rows), 3).mean(0)
        image = colour.reshape(height, width, 3)
        rng = np.random.default_rng([20240406, self.world.seed, seed])
        if self.world.weather == "rain":
            image = rain(self._wet(image, view, number, asphalt), rng)
        grain = 0.006 if self.world.weather != "night" else 0.008
        image = image + rng.standard_normal((height, width, 1), dtype=np.float32) * grain
        depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32).reshape(height, width)
        return Picture((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), depth, number.astype(np.int32))

    def _wet(self, image: np.ndarray, view: "_View", things: np.ndarray, asphalt: np.ndarray) -> np.ndarray:
        """Mirror what is above the horizon in the wet ground, by looking up the mirrored direction in the image."""
        height, width = things.shape
        rows, columns = np.nonzero(things == GROUND)
        rays = view.rays(columns.astype(np.float32), rows.astype(np.float32))
        asphalt = asphalt[rows * width + columns]
        flat = np.abs(rays[:, 2]) / np.linalg.norm(rays, axis=1)
        rays[:, 2] *= -1
        own = rays @ view.rotation
        u = own[:, 0] / own[:, 2] * view.focal[0] + view.centre[0]
        v = own[:, 1] / own[:, 2] * view.focal[1] + view.centre[1]
        i, j = np.clip(v, 0, height - 1).astype(int), np.clip(u, 0, width - 1).astype(int)
        mirrored = np.where((things[i, j] != GROUND)[:, None], image[i, j], self.light.glare)
        share = (asphalt * (0.08 + 0.55 * (1 - flat) ** 5))[:, None]
        result = image.copy()
        result[rows, columns] = image[rows, columns] * (1 - 0.25 * asphalt[:, None]) * (1 - share) + mirrored * share
        return result


class _View:
    """One camera of a renderer."""

    def __init__(self, renderer: Renderer, camera: Camera):
        self.renderer, self.camera = renderer, camera
        pose = renderer.pose @ camera.camera_to_ego
        self.origin, self.rotation = pose[:3, 3], pose[:3, :3].astype(np.float32)
        k = camera.intrinsics
        self.focal, self.centre = (float(k[0, 0]), float(k[1, 1])), (float(k[0, 2]), float(k[1, 2]))
        self.matrix = k @ np.linalg.inv(pose)[:3]  # world to pixels
        self.bounds = self._bounds()

    def rays(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Directions (n, 3) in the world with depth 1."""
        own = np.stack([(u - self.centre[0]) / self.focal[0], (v - self.centre[1]) / self.focal[1], np.ones_like(u)], 1)
        return own @ self.rotation.T

    def _bounds(self) -> list[tuple[int, Solid, tuple[float, ...]]]:
        """The solids that may be in the image: number, solid, and the part of the image."""
        corners, size = self.renderer.corners, np.array([self.camera.width, self.camera.height])
        projected = corners @ self.matrix[:, :3].T + self.matrix[:, 3]  # (solids, 8, 3)
        ahead = projected[..., 2] > NEAR
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = projected[..., :2] / projected[..., 2:]
        low, high = pixels.min(1) - 0.01, pixels.max(1) + 0.01
        partly = ahead.any(1) & ~ahead.all(1)  # it passes the camera: it may be anywhere
        low[partly], high[partly] = -1, size
        distance = np.linalg.norm(corners - self.origin, axis=2).min(1)
        seen = ahead.any(1) & (distance < REACH) & (high > -1).all(1) & (low < size).all(1)
        seen &= (high - low).max(1) > 0.2
        solids = self.renderer.solids
        return [
            (place + 1, solids[place], (*low[place].tolist(), *high[place].tolist())) for place in np.flatnonzero(seen)
        ]

    def look(self, u: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        """Colours (n, 3), depths (n,), numbers (n,) and shares of asphalt (n,) at pixels (n,)."""
        parts = [self._look(u[low : low + CHUNK], v[low : low + CHUNK]) for low in range(0, len(u), CHUNK)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _look(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        rays = self.rays(u, v)
        depth = meet_ground(self.renderer.world.hills, self.origin, rays)
        things = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int32)
        hits = []
        for number, solid, (u0, v0, u1, v1) in self.bounds:
            rows = np.flatnonzero((u >= u0) & (u <= u1) & (v >= v0) & (v <= v1))
            if not len(rows):
                continue
            t, point, normal = solid.hit(self.origin, rays[rows])
            close = t < depth[rows]
            if close.any():
                rows = rows[close]
                depth[rows], things[rows] = t[close], number
                hits.append((number, solid, rows, point[close], normal[close]))
        colour = np.zeros((len(u), 3), np.float32)
        self._colour_sky(colour, things, rays)
        asphalt = self._colour_ground(colour, things, rays, depth)
        for number, solid, rows, point, normal in hits:
            seen = things[rows] == number
            if seen.any():
                self._colour_solid(colour, solid, rows[seen], point[seen], normal[seen], rays, depth)
        return colour, depth, things, asphalt

    def _colour_sky(self, colour, things, rays) -> None:
        rows = np.flatnonzero(things == SKY)
        if len(rows):
            colour[rows] = self.renderer.light.sky(rays[rows])

    def _colour_ground(self, colour, things, rays, depth) -> np.ndarray:
        """Colour the ground. Returns the shares of asphalt (n,), 0 where there is other ground or none."""
        shares = np.zeros(len(things), np.float32)
        rows = np.flatnonzero(things == GROUND)
        if not len(rows):
            return shares
        renderer, light = self.renderer, self.renderer.light
        t, ray = depth[rows], rays[rows]
        points = self.origin.astype(np.float32) + t[:, None] * ray
        x, y = points[:, 0], points[:, 1]
        slope_x, slope_y = renderer.world.hills.slope(x, y)
        normals = np.stack([-slope_x, -slope_y, np.ones_like(x)], 1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        length = np.linalg.norm(ray, axis=1)
        across = t * length / self.focal[0]
        facing = np.maximum(-(ray * normals).sum(1) / length, 1e-3)
        flat = np.maximum(np.hypot(ray[:, 0], ray[:, 1]), 1e-6)
        footprint = Footprint(across / facing, across, ray[:, 0] / flat, ray[:, 1] / flat)
        plain, shares[rows] = renderer.ground.colour(x, y, footprint)
        shade = self._shade(x, y, points[:, 2])
        colour[rows] = light.hazed(light.lit(plain, points, normals, shade), t * length)
        return shares

    def _shade(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Shadows of the sun (n,), 0 or 1."""
        shade = np.zeros(len(x), np.float32)
        solids, middles, radii = self.renderer.casters
        near = np.linalg.norm(middles - self.origin[:2], axis=1) - radii < SHADOW_REACH
        low, high = np.array([x.min(), y.min()]) - radii[:, None], np.array([x.max(), y.max()]) + radii[:, None]
        near &= ((middles > low) & (middles < high)).all(1)
        for place in np.flatnonzero(near):
            (cx, cy), radius = middles[place].tolist(), radii[place].item()
            rows = np.flatnonzero((np.abs(x - cx) < radius) & (np.abs(y - cy) < radius))
            if len(rows):
                dark = solids[place].blocks(x[rows], y[rows], z[rows], self.renderer.world.sun)
                shade[rows[dark]] = 1
        return shade

    def _colour_solid(self, colour, solid: Solid, rows, point, normal, rays, depth) -> None:
        light, t, ray = self.renderer.light, depth[rows], rays[rows]
        length = np.linalg.norm(ray, axis=1)
        axes = solid.axes.astype(np.float32)
        world_normal = normal @ axes
        facing = np.clip(-(ray * world_normal).sum(1) / length, 0.15, 1)
        pixel = t * length / self.focal[0] / np.sqrt(facing)
        points = self.origin.astype(np.float32) + t[:, None] * ray
        plain, glow = paint(solid, point, normal, pixel, self.renderer.world.weather == "night")
        if solid.paint == "leaves":
            world_normal = 0.6 * world_normal + np.array([0, 0, 0.4], np.float32)
        lit = light.lit(plain, points, world_normal, 0.0) + glow
        colour[rows] = light.hazed(lit, t * length)
