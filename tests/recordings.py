"""A tiny recording of a person in the layout of multiface."""

import numpy as np
from PIL import Image

FRAMES = (("E001_Neutral", "000102"), ("E001_Neutral", "000105"), ("E002_Swallow", "000201"))


def write_multiface(folder, frames=FRAMES):
    """Write a tiny folder in the layout: two cameras, one texture is missing. frames: expression and number of each."""
    rng = np.random.default_rng(0)
    cameras = {"400002": [0.0, 0.0, -2.0], "400004": [2.0, 0.0, 0.0]}
    identity = "\n".join(f"{int(i == 0)} {int(i == 1)} {int(i == 2)}" for i in range(3))
    krt = ""
    for name, position in cameras.items():  # R is the identity, so t is minus the position
        rows = "\n".join(f"{int(i == 0)} {int(i == 1)} {int(i == 2)} {-position[i]}" for i in range(3))
        krt += f"{name}\n{identity}\n0 0 0 0 0\n{rows}\n\n"
    (folder / "KRT").write_text(krt)
    (folder / "frame_list.txt").write_text("".join(f"{a} {b}\n" for a, b in frames))

    def image(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), value, dtype=np.uint8)
        pixels[:4] = 0  # in the file the first rows, after turning the last ones
        Image.fromarray(pixels).save(path)

    for number, (expression, frame) in enumerate(frames):
        for place, camera in enumerate(("average", *cameras)):
            if (frame, camera) != ("000105", "400004"):
                image(
                    folder / "unwrapped_uv_1024" / expression / camera / f"{frame}.png",
                    (51 * (number + 1) + place) % 256,
                )
        mesh = folder / "tracked_mesh" / expression
        mesh.mkdir(parents=True, exist_ok=True)
        rng.normal(size=(5, 3)).astype("<f4").tofile(mesh / f"{frame}.bin")
        (mesh / f"{frame}_transform.txt").write_text("0 0 1 0\n0 1 0 0\n-1 0 0 0\n")
    image(folder / "tex_mean.png", 100)
    rng.normal(size=(5, 3)).astype("<f4").tofile(folder / "vert_mean.bin")
    (folder / "tex_var.txt").write_text("650.25\n")
    (folder / "vert_var.txt").write_text("4.0\n")
    return folder
