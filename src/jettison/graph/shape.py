"""A model without weights: the skeleton and anatomy that follow from its config. ``shapes.yaml`` has known configs.

A plan needs only numbers. torch and transformers, which take seconds to import, are imported only to build a model.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from jettison.core.errors import UsageError
from jettison.graph import described_files
from jettison.graph.anatomy import OWN, Anatomy, Family
from jettison.graph.layout import Layout
from jettison.graph.sizes import Sizes, read_sizes

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """Return the rows of shapes.yaml: name -> hub, license, parameters, config."""
    return yaml.safe_load((files("jettison.graph") / "shapes.yaml").read_text(encoding="utf-8"))


def shape_names() -> list[str]:
    """Return the names of the known shapes in the file's order: by family, then by size."""
    return list(shapes())


class ModelShape:
    """A model of which only the config is known. It suffices to count weights and cache, not to compress.

    path: the folder or file that holds the config; None for a row of shapes.yaml.
    replaced: module path -> description of the module that stands there, see ``graph.described_files``.
    The skeleton is built when it is first used.
    """

    weights = False  # whether the weights are available, too
    layout = Layout()

    def __init__(
        self,
        name: str,
        raw_config: Mapping[str, Any],
        path: Path | None = None,
        replaced: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.name, self.raw_config, self.path, self.replaced = name, deepcopy(dict(raw_config)), path, dict(replaced)

    @classmethod
    def known(cls, name: str) -> "ModelShape":
        """Make the shape of the row ``name`` in shapes.yaml."""
        return cls(name, shapes()[name]["config"])

    @property
    def library(self) -> str:
        """Who has the class of the model: ``transformers``, ``diffusers`` or ``jettison`` (``graph.own_models``)."""
        own = str(self.raw_config.get("model_type")).startswith(OWN)
        return "jettison" if own else self.layout.library

    @property
    def hub(self) -> str:
        """The Hugging Face hub id of a known shape, which has the weights; '' for a model on disk."""
        return shapes()[self.name]["hub"] if self.path is None else ""

    @property
    def license(self) -> str:
        """The licence of a known shape's weights; '' if it is not known."""
        return shapes()[self.name]["license"] if self.path is None else ""

    @property
    def where(self) -> str:
        """The name of the config in errors."""
        if self.path is None:
            return f"shape {self.name}"
        return str(self.path / "config.json" if self.path.is_dir() else self.path)

    def require_text(self, what: str) -> None:
        """Raise UsageError if this is no language model. what: the reason why one is needed, as a sentence."""
        if self.anatomy.family.domain != "text":
            raise UsageError(f"{self.name} is no language model: {what}")

    def require_own_modules(self, what: str) -> None:
        """Raise UsageError if modules of the model are replaced. what: the reason why that matters, as a sentence."""
        if self.replaced:
            raise UsageError(f"{self.name} has modules in place of its own ({described_files.NAME}): {what}")

    @cached_property
    def config(self) -> "PretrainedConfig":
        """The config, read by the library that has the model. Raises UsageError, see ``graph.config``."""
        _ = self.quantization  # raises a clearer error than the library
        if self.library == "diffusers":
            from jettison.graph.denoisers import read_config
        elif self.library == "jettison":
            from jettison.graph.own_models import read_config
        else:
            from jettison.graph.config import read_config

        return read_config(self.raw_config, self.path, self.where)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model knows, whose ids are 0 to one less."""
        return self.config.get_text_config().vocab_size

    @property
    def positions(self) -> int | None:
        """The greatest number of tokens that the model reads at once; None if the config sets no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def window(self, length: int) -> int:
        """Return ``length``, or the model's number of positions if it is less. Use it for defaults, not user input."""
        return min(length, self.positions or length)

    def check_window(self, length: int, what: str) -> None:
        """Raise UsageError if the model has fewer than ``length`` positions. what: the length's name in the error."""
        if length > (self.positions or length):
            raise UsageError(f"{what} = {length} tokens: {self.name} has positions for at most {self.positions}")

    def check_tokens(self, ids: "torch.Tensor | Iterable[int]", what: str) -> None:
        """Raise UsageError for a token that the model does not know.

        Such tokens come, for example, from a tokenizer with added tokens whose model's embedding was not resized.
        what: the source of the tokens, for the error.
        """
        import torch

        ids = torch.as_tensor(ids)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise UsageError(f"{what} has token {wrong}: {self.name} has tokens 0 to {self.vocabulary - 1}")

    def shortened(self, blocks: int) -> "ModelShape":
        """Return the same model with only its first ``blocks`` blocks (or all, if it has fewer), for trials."""
        copy = self._reopened()
        config = copy.config.get_text_config()
        config.num_hidden_layers = min(blocks, config.num_hidden_layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:blocks]
        copy._read = None  # ``_read`` would read raw_config, which still describes the whole model
        stays = lambda path: (self.anatomy.block_of(path) or 0) < blocks
        copy.replaced = {path: spec for path, spec in self.replaced.items() if stays(path)}
        return copy

    def _reopened(self) -> "ModelShape":
        return ModelShape(self.name, self.raw_config, self.path, self.replaced)

    @cached_property
    def _built(self) -> "tuple[torch.nn.Module, Family]":
        """The skeleton and its family."""
        return self._build()

    def _build(self) -> "tuple[torch.nn.Module, Family]":
        if self.library == "diffusers":
            from jettison.graph.denoisers import build_skeleton
        elif self.library == "jettison":
            from jettison.graph.own_models import build_skeleton
        else:
            from jettison.graph.skeleton import build_skeleton

        model, family = build_skeleton(self.config)
        described_files.replace_modules(model, self.replaced, f"{described_files.NAME} of {self.path or self.name}")
        return model, family

    @property
    def skeleton(self) -> "torch.nn.Module":
        """The model without weights. It is shared, so do not change it; ``new_skeleton`` makes one to fill."""
        return self._built[0]

    def new_skeleton(self) -> "torch.nn.Module":
        """Build a model without weights, which the caller may fill."""
        return self._build()[0]

    @cached_property
    def _read(self) -> tuple[Anatomy, Sizes] | None:
        """Anatomy and sizes from the config's numbers; None if transformers must read the config."""
        return None if self.replaced else read_sizes(self.raw_config)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The linears of the model. Raises UsageError if the model can neither be read from the config nor built."""
        if self._read is not None:
            return self._read[0]
        from jettison.graph.skeleton import collector_at_rest, read_anatomy

        with collector_at_rest():
            return read_anatomy(*self._built, self.replaced)

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes that determine the cost of attention and experts beside the matrices."""
        return self._read[1] if self._read else Sizes.of(self.config.get_text_config(), self.anatomy.blocks)

    @property
    def quantization(self) -> dict | None:
        """``quantization_config`` of config.json if the weights are already quantized, else None.

        Raises UsageError if it is not an object.
        """
        section = self.raw_config.get("quantization_config")
        if section is not None and not isinstance(section, dict):
            raise UsageError(f"{self.where}: quantization_config is {type(section).__name__}; an object is needed")
        return section
