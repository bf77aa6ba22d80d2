"""What worlds to render, and how their scenes and frames are named."""

from dataclasses import dataclass

from jettison.core.errors import unknown
from jettison.core.numbers import check_number, check_seed
from jettison.domains.perception.scenes import Camera
from jettison.domains.perception.world.cameras import FRONT, checked_size, make_rig

SPLIT = ("train", "val", "test", "train", "train")  # of scene number i: entry i modulo 5
BEGIN = 1_600_000_000_000_000  # microseconds, the time stamp of the first frame
MOST_FRAMES = 1000
CAMERAS = ("all", "front")


@dataclass(frozen=True)
class Order:
    """What to render.

    size: (height, width). frames: of each scene. interval: seconds from frame to frame.
    place, weather: of all scenes; None draws them. Scene i has the seed ``seed`` + i.
    cameras: ``all`` or ``front``, which takes a sixth of the time and is enough to learn lanes.
    """

    seed: int = 0
    size: tuple[int, int] = (160, 400)
    frames: int = 6
    interval: float = 0.5
    place: str | None = None
    weather: str | None = None
    cameras: str = "all"

    def __post_init__(self):
        check_seed(self.seed)
        checked_size(self.size)
        check_number("frames", self.frames, 1, MOST_FRAMES, whole=True)
        check_number("interval", self.interval, 0.01, 10)
        if self.cameras not in CAMERAS:
            raise unknown("cameras", self.cameras, CAMERAS)

    def rig(self, scene: int) -> dict[str, Camera]:
        """Return the cameras of a scene by its number."""
        rig = make_rig(self.size, self.seed + scene)
        return rig if self.cameras == "all" else {FRONT: rig[FRONT]}


def split_of(scene: int) -> str:
    """Return the split of a scene by its number: of five scenes, three train, one validates, one tests."""
    return SPLIT[scene % len(SPLIT)]


def stamp(order: Order, frame: int) -> int:
    """Return the time stamp of a frame in microseconds."""
    return BEGIN + round(frame * order.interval * 1e6)


def depth_name(image: str) -> str:
    """Return the name of the depth map of an image. Both are from the folder of the worlds."""
    return image.replace("/image/", "/depth/").removesuffix(".jpg") + ".npz"


def base(scene: int) -> str:
    """Return the folder of a scene, from the folder of the worlds."""
    return f"{split_of(scene)}/{scene:05d}"
