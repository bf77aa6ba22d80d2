"""Where the config and the weights of a model lie in its folder, and which library has the model's class.

- A model of transformers lies in the folder itself: config.json, model.safetensors.
- A pipeline of diffusers has a folder for every part, named in model_index.json. Jettison's model is the denoiser, in
  transformer/ or unet/; the other parts stay as they are.

This file does not import torch, whose import takes seconds.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, shown, unknown
from jettison.graph.families import families

PIPELINE = "model_index.json"
DENOISERS = ("transformer", "unet")  # the parts of pipelines that Jettison compresses
COPIED = (".json", ".safetensors", ".txt", ".model", ".jinja", ".md")  # endings of files of other parts
CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")  # of a part


@dataclass(frozen=True)
class Layout:
    """The place of a model in its folder.

    library: that has the class of the model, ``transformers`` or ``diffusers``.
    part: subfolder of config and weights; "" for the folder itself.
    stem: of the names of weight files.
    """

    library: str = "transformers"
    part: str = ""
    stem: str = "model"

    @property
    def index(self) -> str:
        """The name of the index, which says what shard holds which tensor."""
        return f"{self.stem}.safetensors.index.json"

    def shard(self, number: int, count: int) -> str:
        """Return the path of a shard in the model's folder. number: from 1 to ``count``."""
        name = f"{self.stem}-{number:05d}-of-{count:05d}.safetensors"
        return f"{self.part}/{name}" if self.part else name


def find_layout(folder: Path) -> Layout:
    """Return the layout of a model folder.

    Raises UsageError for a pipeline with a part missing, and for one whose denoiser Jettison does not know.
    """
    if os.path.lexists(folder / "config.json") or not os.path.lexists(folder / PIPELINE):
        return Layout()
    parts = read_parts(folder)
    part = next((name for name in DENOISERS if name in parts), None)
    if part is None:
        raise UsageError(f"{folder / PIPELINE} names no denoiser; valid: {' or '.join(DENOISERS)}")
    for name in parts:
        if not any((folder / name / file).is_file() for file in CONFIGS):
            raise UsageError(f"{folder} has no part {name}, which {PIPELINE} names: copy the whole pipeline")
    known = [name for name, row in families().items() if row.domain == "diffusion"]
    library, kind = parts[part]
    if library != "diffusers" or kind not in known:
        raise unknown("denoiser", f"{library}.{kind}"[:80], [f"diffusers.{name}" for name in known], f" of {folder}")
    return Layout("diffusers", part, "diffusion_pytorch_model")


def other_files(folder: Path, layout: Layout) -> list[str]:
    """Return the paths of a pipeline's files beside its denoiser, sorted; [] for a model that is no pipeline.

    Hidden files, code and pickles are left out, and links that lead out of a folder are not followed.
    """
    if not layout.part:
        return []
    parts = [name for name in read_parts(folder) if name != layout.part]
    files = [path for name in parts for path in sorted((folder / name).rglob("*")) if path.is_file()]
    named = [path.relative_to(folder).as_posix() for path in files if path.suffix in COPIED]
    return [PIPELINE, *(name for name in named if not any(step.startswith(".") for step in name.split("/")))]


def read_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Return name -> (library, class) of the parts that a pipeline's model_index.json names, without those left out.

    Raises UsageError for an entry of another form.
    """
    parts = {}
    for name, entry in read_json(folder / PIPELINE).items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        if len(entry) != 2 or not all(isinstance(item, str | None) for item in entry) or set(name) & set("/\\."):
            raise UsageError(f"{folder / PIPELINE}: {name[:80]} = {shown(entry)}; [library, class] is needed")
        if None not in entry:
            parts[name] = (entry[0], entry[1])
    return parts
