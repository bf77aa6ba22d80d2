"""Light and weather: sun and sky, street lamps and headlights at night, haze, wet asphalt and rain."""

import numpy as np

from jettison.domains.perception.world import noise
from jettison.domains.perception.world.world import World

NIGHT_LAMPS = 10  # nearest street lamps that give light
LAMP_COLOUR, BEAM_COLOUR = np.array([1.0, 0.8, 0.52], np.float32), np.array([1.0, 0.97, 0.88], np.float32)
HAZE = {"day": 1 / 900, "night": 1 / 700, "rain": 1 / 190}  # per metre
AMBIENT = {"day": (0.5, 0.53, 0.6), "night": (0.17, 0.18, 0.23), "rain": (0.72, 0.75, 0.79)}
SUN = {"day": (1.25, 1.17, 1.0), "night": (0.0, 0.0, 0.0), "rain": (0.0, 0.0, 0.0)}
GLARE = {"day": (0.7, 0.79, 0.9), "night": (0.045, 0.05, 0.075), "rain": (0.6, 0.63, 0.66)}  # colour of the haze


class Light:
    """The light of a world at one time."""

    def __init__(self, world: World, time: float):
        """Place the lamps and headlights that shine at a time in seconds."""
        self.world, self.weather = world, world.weather
        self.sun = world.sun.astype(np.float32)
        self.ambient, self.direct, self.glare = (
            np.array(table[world.weather], np.float32) for table in (AMBIENT, SUN, GLARE)
        )
        pose = world.ego_to_world(time)
        self.to_ego = np.linalg.inv(pose).astype(np.float32)
        distance = np.linalg.norm(world.lamps - pose[:3, 3], axis=1)
        self.lamps = world.lamps[np.argsort(distance)[:NIGHT_LAMPS]].astype(np.float32)

    @property
    def shadows(self) -> bool:
        """Whether the sun throws shadows."""
        return self.weather == "day"

    def lit(self, colour: np.ndarray, points: np.ndarray, normals: np.ndarray, shade: np.ndarray | float) -> np.ndarray:
        """Return colours in this light, (n, 3). points, normals: (n, 3), world frame. shade: (n,), 1 in full shadow."""
        sky = 0.75 + 0.25 * normals[:, 2]
        light = self.ambient * sky[:, None]
        if self.shadows:
            light = light + self.direct * (np.maximum(normals @ self.sun, 0) * (1 - shade))[:, None]
        if self.weather == "night":
            light = light + self._lamp_light(points, normals) + self._beam(points)
        return colour * light

    def _lamp_light(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        total = np.zeros(len(points), np.float32)
        for lamp in self.lamps:
            towards = lamp - points
            square = (towards * towards).sum(1)
            near = np.flatnonzero(square < 900)
            if len(near):
                facing = np.maximum((towards[near] * normals[near]).sum(1), 0)
                total[near] += 42 * facing / np.maximum(square[near], 4) ** 1.5
        return total[:, None] * LAMP_COLOUR

    def _beam(self, points: np.ndarray) -> np.ndarray:
        own = points @ self.to_ego[:3, :3].T + self.to_ego[:3, 3]
        ahead = own[:, 0] - 3.5
        inside = np.clip(1.6 - np.abs(own[:, 1]) / (1.4 + 0.32 * np.maximum(ahead, 0)), 0, 1)
        low = np.clip(1.4 - (own[:, 2] - 0.5) / (0.35 + 0.06 * np.maximum(ahead, 0)), 0.12, 1)
        power = np.where(ahead > 0, 1.5 * np.exp(-ahead / 26) * np.clip(ahead / 3, 0, 1), 0)
        return (inside * low * power)[:, None] * BEAM_COLOUR

    def sky(self, rays: np.ndarray) -> np.ndarray:
        """Return the colour of the sky in directions (n, 3)."""
        unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        up = np.clip(unit[:, 2], 0, 1)
        high = {"day": (0.24, 0.46, 0.82), "night": (0.012, 0.015, 0.035), "rain": (0.46, 0.49, 0.53)}[self.weather]
        mix = np.sqrt(up)[:, None]
        colour = self.glare * (1 - mix) + np.array(high, np.float32) * mix
        flat = unit[:, :2] / (up[:, None] + 0.18)
        cloud = noise.texture(
            flat[:, 0], flat[:, 1], np.full(len(flat), 0.01, np.float32), ((1.6, 0.5), (0.6, 0.3)), 40
        )
        amount = (
            np.clip((cloud + self.world.seed % 5 * 0.1 - 0.1) * 1.2, 0, 1)[:, None] * np.clip(up * 9, 0, 1)[:, None]
        )
        white = {"day": 0.95, "night": 0.05, "rain": 0.55}[self.weather]
        colour = colour * (1 - 0.75 * amount) + white * 0.75 * amount
        if self.shadows:
            colour = colour + (np.clip(unit @ self.sun, 0, 1) ** 300)[:, None] * np.array([1.0, 0.9, 0.7], np.float32)
        return colour

    def hazed(self, colour: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Return colours (n, 3) behind so many metres of air (n,)."""
        clear = np.exp(-distance * HAZE[self.weather])[:, None]
        return colour * clear + self.glare * (1 - clear)


def rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw streaks of rain over an image (height, width, 3), and return it."""
    height, width = image.shape[:2]
    result = image.copy()
    for _ in range(int(height * width / 420)):
        length = int(rng.integers(max(2, height // 28), max(3, height // 9)))
        x, y = rng.uniform(0, width), rng.uniform(-length, height)
        rows = np.arange(max(0, int(y)), min(height, int(y) + length))
        columns = np.clip((x + 0.12 * (rows - y)).astype(int), 0, width - 1)
        result[rows, columns] = result[rows, columns] * 0.84 + 0.16 * rng.uniform(0.65, 0.95)
    return result
