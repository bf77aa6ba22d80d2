"""What follows from a config alone: skeleton and anatomy, no weights. ``shapes.yaml`` has configs of known models.

A plan needs numbers alone: torch and transformers, which take seconds to import, are imported where a model is built.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jettison.core.errors import UsageError
from jettison.graph.anatomy import Anatomy, Family
from jettison.graph.sizes import Sizes, read_sizes

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """The rows of shapes.yaml: name -> hub, license, parameters, config."""
    return yaml.safe_load((files("jettison.graph") / "shapes.yaml").read_text(encoding="utf-8"))


def shape_names() -> list[str]:
    """The known shapes, in the file's order: by family, then by size."""
    return list(shapes())


class ModelShape:
    """A model of which only the config is known: enough to count its weights and its cache, nothing to compress.

    path: the folder or file that holds the config; None for a row of shapes.yaml. Opening it builds nothing yet.
    """

    weights = False  # whether the tensors are there, too

    def __init__(self, name: str, raw_config: Mapping[str, Any], path: Path | None = None):
        self.name, self.raw_config, self.path = name, deepcopy(dict(raw_config)), path

    @classmethod
    def known(cls, name: str) -> "ModelShape":
        """The shape of that name in shapes.yaml."""
        return cls(name, shapes()[name]["config"])

    @property
    def hub(self) -> str:
        """The hub id of a known shape, where its weights are; '' for a model on disk."""
        return shapes()[self.name]["hub"] if self.path is None else ""

    @property
    def license(self) -> str:
        """The licence of a known shape's weights; '' if it is not known."""
        return shapes()[self.name]["license"] if self.path is None else ""

    @property
    def where(self) -> str:
        """What errors call the config."""
        if self.path is None:
            return f"shape {self.name}"
        return str(self.path / "config.json" if self.path.is_dir() else self.path)

    @cached_property
    def config(self) -> "PretrainedConfig":
        """As transformers reads it. Raises UsageError, see ``graph.config``."""
        from jettison.graph.config import read_config

        _ = self.quantization
        return read_config(self.raw_config, self.path, self.where)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows: 0 to one less."""
        return self.config.get_text_config().vocab_size

    @property
    def positions(self) -> int | None:
        """How many tokens it sees at once at most; None where the config sets no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def window(self, length: int) -> int:
        """``length``, or what the model has positions for if that is less: for lengths that nobody asked for."""
        return min(length, self.positions or length)

    def check_window(self, length: int, what: str) -> None:
        """what: how the error calls the length. Raises UsageError if the model does not have so many positions."""
        if length > (self.positions or length):
            raise UsageError(f"{what} = {length} tokens: {self.name} has positions for at most {self.positions}")

    def check_tokens(self, ids: "torch.Tensor | Iterable[int]", what: str) -> None:
        """what: whose tokens they are, for the error. Raises UsageError for one that the model does not know, such as
        of a tokenizer to which tokens were added without the embedding being resized."""
        import torch

        ids = torch.as_tensor(ids)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise UsageError(f"{what} has token {wrong}: {self.name} has tokens 0 to {self.vocabulary - 1}")

    def shortened(self, blocks: int) -> "ModelShape":
        """The same model cut down to its first blocks (all, if there are no more), to try something on."""
        short = self._opened_again()
        config = short.config.get_text_config()
        config.num_hidden_layers = min(blocks, config.num_hidden_layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:blocks]
        short._read = None  # raw_config is of the whole model
        return short

    def _opened_again(self) -> "ModelShape":
        return ModelShape(self.name, self.raw_config, self.path)

    @cached_property
    def _built(self) -> "tuple[torch.nn.Module, Family]":
        from jettison.graph.skeleton import build_skeleton

        return build_skeleton(self.config)

    @property
    def skeleton(self) -> "torch.nn.Module":
        """Shared: for reading only. ``new_skeleton`` makes one to fill."""
        return self._built[0]

    def new_skeleton(self) -> "torch.nn.Module":
        from jettison.graph.skeleton import build_skeleton

        return build_skeleton(self.config)[0]

    @cached_property
    def _read(self) -> tuple[Anatomy, Sizes] | None:
        """Anatomy and sizes from the config's numbers; None where transformers must say."""
        return read_sizes(self.raw_config)

    @cached_property
    def anatomy(self) -> Anatomy:
        if self._read is not None:
            return self._read[0]
        from jettison.graph.skeleton import collector_at_rest, read_anatomy

        with collector_at_rest():
            return read_anatomy(*self._built)

    @cached_property
    def sizes(self) -> Sizes:
        """What attention and experts cost beside the matrices."""
        return self._read[1] if self._read else Sizes.of(self.config.get_text_config(), self.anatomy.blocks)

    @property
    def quantization(self) -> dict | None:
        """``quantization_config`` of config.json, if the weights are already quantized. Raises UsageError if it is no
        object."""
        found = self.raw_config.get("quantization_config")
        if found is not None and not isinstance(found, dict):
            raise UsageError(f"{self.where}: quantization_config is {type(found).__name__}; an object is needed")
        return found
