"""Reads frames of one person from a folder in the layout of multiface (arXiv:2207.11243).

- ``KRT`` has the cameras; ``tracked_mesh/EXPRESSION/FRAME.bin`` vertices, ``FRAME_transform.txt`` the pose of the head;
  ``unwrapped_uv_1024/EXPRESSION/CAMERA/FRAME.png`` textures, with ``average`` in place of a camera for their mean;
  ``tex_mean.png``, ``tex_var.txt``, ``vert_mean.bin``, ``vert_var.txt`` the normalization.
- A texel that is black was not seen. Textures are upside down in the files, and turned here.
- Nothing is downloaded: the data set has its own license, which allows no commercial use.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jettison.core.errors import UsageError, guarded
from jettison.core.files import check_regular, read_bytes
from jettison.core.numbers import check_number
from jettison.domains.perception.avatars.frames import AvatarFrames, Normalization

TEXT, IMAGE, MESH = 1 << 22, 1 << 27, 1 << 25  # limits in bytes of a text, an image, a mesh
AVERAGE, TEXTURES, MESHES = "average", "unwrapped_uv_1024", "tracked_mesh"
NAME = re.compile(r"[\w.-]+")  # of an expression, a frame or a camera
VALID = "a folder in the layout of multiface is needed, with KRT, frame_list.txt, tracked_mesh and unwrapped_uv_1024"


@dataclass(frozen=True)
class Shot:
    """One frame as one camera sees it."""

    expression: str
    frame: str
    camera: str


class Multiface:
    """The frames of one person.

    folder: of the person, such as m--20180227--0000--6795937--GHS.
    texture: side to which textures are resized.
    expressions: names, or beginnings of names, of the expressions to read; None reads all.
    cameras: names of the cameras to read; None reads all.
    Raises UsageError if the folder has another layout, or no frames of these expressions and cameras. Needs Pillow.
    """

    def __init__(
        self, folder: str | Path, texture: int = 1024, expressions: Collection[str] | None = None,
        cameras: Collection[str] | None = None,
    ):  # fmt: skip
        check_number("texture", texture, 8, 4096, whole=True)
        self.folder, self.texture = Path(folder), texture
        for name in ("KRT", "frame_list.txt", TEXTURES, MESHES):
            if not (self.folder / name).exists():
                raise UsageError(f"{self.folder} has no {name}: {VALID}")
        self._positions = _read_cameras(self.folder / "KRT")  # name -> (3,)
        self.cameras = [name for name in self._positions if cameras is None or name in cameras]
        self.shots = [
            Shot(expression, frame, camera)
            for expression, frame in _read_list(self.folder / "frame_list.txt")
            if expressions is None or expression.startswith(tuple(expressions))
            if self._image(Shot(expression, frame, AVERAGE)).is_file()
            for camera in self.cameras
            if self._image(Shot(expression, frame, camera)).is_file()
        ]
        if not self.shots:
            raise UsageError(f"{self.folder} has no frames with textures of these expressions and cameras")
        self.expressions = sorted({shot.expression for shot in self.shots})

    def __len__(self) -> int:
        return len(self.shots)

    def _image(self, shot: Shot) -> Path:
        return self.folder / TEXTURES / shot.expression / shot.camera / f"{shot.frame}.png"

    def load(self, places: torch.Tensor) -> AvatarFrames:
        """Load frames by their places in ``shots``, (n,). Raises UsageError for files that cannot be read."""
        shots = [self.shots[place] for place in places.tolist()]
        textures = [self._texture(self._image(shot)) for shot in shots]
        meshes = [self._mesh(shot) for shot in shots]
        for shot, mesh in zip(shots, meshes, strict=True):
            if len(mesh) != len(meshes[0]):
                raise UsageError(
                    f"{self.folder}: the mesh of {shot.expression} {shot.frame} has {len(mesh)} vertices, and that of "
                    f"{shots[0].expression} {shots[0].frame} {len(meshes[0])}: all need as many"
                )
        averages = [self._texture(self._image(Shot(shot.expression, shot.frame, AVERAGE)))[0] for shot in shots]
        return AvatarFrames(
            torch.stack(averages),
            torch.stack([texture for texture, _ in textures]),
            torch.stack([seen for _, seen in textures]),
            torch.stack(meshes),
            torch.stack([self._view(shot) for shot in shots]),
            torch.tensor([self.cameras.index(shot.camera) for shot in shots]),
            torch.tensor([self.expressions.index(shot.expression) for shot in shots]),
        )

    def normalization(self) -> Normalization:
        """Read mean and deviation of the person, as the data set has them; textures on a scale of 0 to 1."""
        texture, _ = self._texture(self.folder / "tex_mean.png")
        variances = [_numbers(self.folder / name, 1)[0] for name in ("tex_var.txt", "vert_var.txt")]
        mesh = _floats(self.folder / "vert_mean.bin")
        return Normalization(texture, float(variances[0]) ** 0.5 / 255, mesh, float(variances[1]) ** 0.5)

    def _texture(self, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a texture: colours (3, side, side), 0 to 1, and which texels were seen (1, side, side)."""
        try:
            from PIL import Image
        except ImportError as error:
            raise UsageError("images need Pillow: pip install 'jettison[vision]'") from error
        check_regular(path, IMAGE)
        with guarded(f"cannot read {path}"), Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        colours = torch.from_numpy(np.ascontiguousarray(pixels[::-1])).permute(2, 0, 1)
        seen = (colours > 0).any(0, keepdim=True).float()
        resized = torch.nn.functional.interpolate(
            torch.cat([colours, seen])[None], size=(self.texture, self.texture), mode="area"
        )[0]
        return resized[:3], resized[3:]

    def _mesh(self, shot: Shot) -> torch.Tensor:
        return _floats(self.folder / MESHES / shot.expression / f"{shot.frame}.bin")

    def _view(self, shot: Shot) -> torch.Tensor:
        """Return the direction from the head to the camera, in the coordinates of the head, (3,)."""
        pose = _numbers(self.folder / MESHES / shot.expression / f"{shot.frame}_transform.txt", 12)[:12].reshape(3, 4)
        away = pose[:, :3].T @ (self._positions[shot.camera] - pose[:, 3])
        return torch.from_numpy(away / max(np.linalg.norm(away), 1e-12)).float()


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Read expression and frame of every line."""
    pairs = [
        tuple(line.split()) for line in read_bytes(path, TEXT).decode("utf-8", "replace").splitlines() if line.strip()
    ]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(NAME.fullmatch(name) and name.strip(".") for name in pair):
            raise UsageError(
                f"{path}: entry {number} is {' '.join(pair)!r}; the name of an expression and a frame is needed"
            )
    return pairs


def _read_cameras(path: Path) -> dict[str, np.ndarray]:
    """Read the positions of the cameras, name -> (3,).

    A camera has a line with its name, three with its intrinsics, one with its distortion, three with its extrinsics
    [R | t], and an empty one.
    """
    lines = [line for line in read_bytes(path, TEXT).decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines or len(lines) % 8:
        raise UsageError(f"{path} has {len(lines)} lines with text; 8 for each camera are needed")
    cameras = {}
    for first in range(0, len(lines), 8):
        name = lines[first].strip()
        if not NAME.fullmatch(name) or not name.strip("."):
            raise UsageError(f"{path}: {name!r} is not the name of a camera")
        rows = np.array([_parse(line, 4, path) for line in lines[first + 5 : first + 8]])
        cameras[name] = -rows[:, :3].T @ rows[:, 3]
    return cameras


def _numbers(path: Path, least: int) -> np.ndarray:
    return np.array(_parse(read_bytes(path, TEXT).decode("utf-8", "replace"), least, path))


def _parse(text: str, least: int, path: Path) -> list[float]:
    with guarded(f"{path} has text in place of numbers"):
        numbers = [float(word) for word in text.split()]
    if len(numbers) < least or not np.isfinite(numbers).all():
        raise UsageError(f"{path}: {len(numbers)} numbers in {text[:40]!r}; {least} finite ones are needed")
    return numbers


def _floats(path: Path) -> torch.Tensor:
    """Read vertices, (vertices, 3) float32."""
    data = read_bytes(path, MESH)
    if not data or len(data) % 12:
        raise UsageError(f"{path} has {len(data)} bytes; 12 for every vertex are needed")
    vertices = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32)).view(-1, 3)
    if not torch.isfinite(vertices).all():
        raise UsageError(f"{path} has vertices that are not finite")
    return vertices
