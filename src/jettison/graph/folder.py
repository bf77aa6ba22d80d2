"""A model folder on disk: its config, and its parameters by the names that they have in the module."""

import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.files import check_regular, content_digest, digest, read_bytes
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.described_files import is_described, read_replaced
from jettison.graph.find import find_folder
from jettison.graph.gguf.container import SUFFIX
from jettison.graph.layout import PIPELINE, find_layout, other_files
from jettison.graph.shape import ModelShape, shapes

if TYPE_CHECKING:  # a plan opens folders without torch and transformers, which take seconds to import
    import torch

    from jettison.graph.experts import Experts, GroupedExperts

# The files that determine the token ids of a text or a chat, and where a text ends.
TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.tiktoken|"
    r"spiece\.model|sentencepiece.*\.model|chat_template\.(jinja|json)|generation_config\.json"
)
TOKENIZER_LIMIT, CARD_LIMIT = 1 << 28, 1 << 24  # bytes
# The parameter of an expert's linear: path of the experts, number, projection, weight or bias.
EXPERT = re.compile(r"(.+)\.(\d+)\.(gate_proj|up_proj|down_proj|expert)\.(weight|bias)")
FULL_PRECISION = ("float16", "bfloat16", "float32", "float64")  # types of torch


def open_shape(name: str | Path) -> ModelShape:
    """Open what a plan can be made for: a known shape (see ``shape_names``), a config.json, or a model folder.

    A local folder has precedence over a shape of the same name. Raises UsageError if there is no such model.
    """
    path = Path(name)
    if str(name) in shapes() and not (path / "config.json").exists():
        return ModelShape.known(str(name))
    if path.suffix == ".json":
        if not os.path.isfile(path):
            raise UsageError(f"there is no file {path}; give the config.json of a model")
        return ModelShape(str(name), read_json(path), path.resolve(), read_replaced(path.parent))
    return ModelFolder(name)


class ModelFolder(ModelShape):
    """A model folder, or a GGUF file. Opening it reads the config and the headers of the shards, no weights.

    folder: its path; for a GGUF file, the path of the file.
    layout: where config and weights lie in the folder; home: that place.
    name: ``scribe``, a local folder, a GGUF file or a hub id (see ``find_folder``).
    Raises UsageError if there is no such folder or it has no config.json.
    """

    chain: bool | None = None  # whether it can be walked block by block, once that was tried (``graph.whole``)

    def __init__(self, name: str | Path):
        self.folder = find_folder(name)
        if self.in_file:
            from jettison.graph.gguf.checkpoint import GgufCheckpoint

            self.home, self.checkpoint = self.folder, GgufCheckpoint(self.folder)
            super().__init__(str(name), self.checkpoint.config, self.folder)
            return
        if is_described(self.folder):
            raise UsageError(
                f"{self.folder} holds a model that transformers does not have: only jettison.load reads it"
            )
        self.layout = find_layout(self.folder)
        self.home = self.folder / self.layout.part
        if not (self.home / "config.json").exists():
            raise UsageError(f"{self.folder} is not a model folder: it has no config.json and no {PIPELINE}")
        raw_config = read_json(self.home / "config.json")
        super().__init__(str(name), raw_config, self.home, read_replaced(self.home))

    @property
    def in_file(self) -> bool:
        """Whether the model is a GGUF file, which also holds its config and its tokenizer."""
        return self.folder.suffix.lower() == SUFFIX and self.folder.is_file()

    @cached_property
    def companions(self) -> Path:
        """The folder with the tokenizer and the settings for generation: the model's own, or one in the cache."""
        return self.checkpoint.companions if self.in_file else self.folder

    def _reopened(self) -> "ModelFolder":
        return ModelFolder(self.folder)

    @property
    def weights(self) -> bool:
        """Whether the folder has safetensors files, not only a config."""
        stem = self.layout.stem
        return self.in_file or (self.home / self.layout.index).exists() or any(self.home.glob(f"{stem}*.safetensors"))

    @property
    def tileable(self) -> bool:
        """Whether the kernels' tiles may be cached beside the checkpoint: not for models with convolutions."""
        return all(linear.layout != "conv2d" for linear in self.anatomy)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The tensors of the folder. Raises UsageError or JettisonError, see ``Checkpoint``."""
        return Checkpoint(self.home, stem=self.layout.stem)

    @cached_property
    def tokenizer(self):
        """The tokenizer, read by transformers. Raises UsageError if transformers cannot read it."""
        from transformers import AutoTokenizer

        for path in self.companions.iterdir():
            if TOKENIZER.fullmatch(path.name):
                check_regular(path, TOKENIZER_LIMIT)
        with guarded(f"{self.folder} has no usable tokenizer", rust=True):
            return AutoTokenizer.from_pretrained(self.companions, trust_remote_code=False)

    def identity(self) -> dict[str, Any]:
        """Return digests of all that the model's outputs depend on: its config, its replaced modules, and every file
        of its weights, of its tokenizer and of the other parts of its pipeline."""
        beside = () if self.in_file else self.folder.iterdir()  # a GGUF file's digest covers its tokenizer
        tokenizer_files = sorted(path for path in beside if TOKENIZER.fullmatch(path.name) and path.is_file())
        return (
            {
                "config": digest(self.raw_config),
                "weights": self.checkpoint.content(),
                "tokenizer": {path.name: content_digest(path) for path in tokenizer_files},
            }
            | ({"replaced": digest(self.replaced)} if self.replaced else {})
            | self._other_parts()
        )

    def _other_parts(self) -> dict[str, Any]:
        """Return the digests of the files of the other parts of a pipeline; {} for a model that is none."""
        files = other_files(self.folder, self.layout)
        return {"parts": {name: content_digest(self.folder / name) for name in files}} if files else {}

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify the whole content, see ``identity``."""
        return digest(self.identity())

    def locate(self, parameter: str) -> tuple[str, int | None, str]:
        """Find where a module's parameter is stored.

        Returns the tensor, the number of the expert (None for a tensor that does not stack experts), and the projection
        to take of a stacked tensor: gate_proj, up_proj, down_proj, or expert for all of it ("" for others).
        Raises JettisonError if the checkpoint has no such tensor.
        """
        if (place := self.find(parameter)) is None:
            from jettison.graph.renaming import lacking

            raise JettisonError(f"{self.folder}: {lacking(self, parameter)}")
        return place

    def find(self, parameter: str) -> tuple[str, int | None, str] | None:
        """Return the same as ``locate``, or None if there is no such tensor."""
        if (tensor := self._tensor(parameter)) is not None:
            return tensor, None, ""
        if match := EXPERT.fullmatch(parameter):
            path, number, projection, kind = match.groups()
            stem = "gate_up_proj" if projection == "gate_proj" else projection
            if projection == "expert" and (tensor := self._tensor(f"{path}.{kind}")) is not None:
                return tensor, int(number), projection
            for stacked in (stem, "gate_up_proj") if projection == "up_proj" else (stem,):
                tensor = self._tensor(f"{path}.{stacked}" + ("_bias" if kind == "bias" else ""))
                if tensor is not None:
                    return tensor, int(number), projection
        head = self.anatomy.head
        if self.anatomy.tied and head and parameter.startswith(f"{head.name}.weight"):  # or of its packed parts
            return self.find(self.anatomy.linears[0].name + parameter.removeprefix(head.name))
        for other in self._tied.get(parameter, ()):
            if (tensor := self._tensor(other)) is not None:
                return tensor, None, ""
        return None

    def has(self, parameter: str) -> bool:
        """Return whether the checkpoint stores a module's parameter as a tensor of its own."""
        return self._tensor(parameter) is not None

    def _tensor(self, parameter: str) -> str | None:
        """Return the checkpoint's name for a parameter: the same, with another prefix, or an older name; else None."""
        if parameter in self.checkpoint:
            return parameter
        for prefix, replacement in self._prefixes:
            if (
                parameter.startswith(prefix)
                and (name := replacement + parameter.removeprefix(prefix)) in self.checkpoint
            ):
                return name
        return self._renamed.get(parameter)

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """Parameter -> the checkpoint's tensor, where transformers renames or joins tensors while it loads them."""
        from jettison.graph.renaming import renamed

        return renamed(self.skeleton, self.checkpoint)

    @cached_property
    def _tied(self) -> dict[str, list[str]]:
        from jettison.graph.renaming import tied

        return tied(self.skeleton)

    @cached_property
    def _prefixes(self) -> list[tuple[str, str]]:
        """Pairs of a prefix of module names, and an older form of this prefix in checkpoints."""
        base = self.skeleton.base_model_prefix + "."
        return [
            (base, ""),  # saved from the bare base model
            ("model.language_model.", "language_model.model."),  # multimodal checkpoints before transformers 4.52
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ]

    def tensors_of(self, block: int | None) -> list[str]:
        """Return the checkpoint's tensors that belong to a block; with None, those that belong to no block."""
        return [tensor for tensor, owner in self._block_of.items() if owner == block]

    @cached_property
    def _block_of(self) -> dict[str, int | None]:
        """Tensor of the checkpoint -> the number of its block, None outside the blocks."""
        blocks = dict.fromkeys(sorted(self.checkpoint))
        for name in self.skeleton.state_dict():
            block = self.anatomy.block_of(name)
            if block is not None and (self.has(name) or EXPERT.fullmatch(name)):
                blocks[self.locate(name)[0]] = block
        return blocks

    @cached_property
    def license(self) -> str:
        """The licence: the model card's ``license`` field, else the name of a licence file, else ''."""
        if self.in_file:
            return str(self.checkpoint.metadata.get("general.license", ""))
        with suppress(JettisonError):  # there is no card, or it cannot be read
            card = read_bytes(self.folder / "README.md", CARD_LIMIT).decode("utf-8", "replace")
            if match := re.search(r"^license:\s*(\S+)", card, re.MULTILINE):
                return match[1]
        return next((path.name for path in sorted(self.folder.glob("LICENSE*"))), "")

    def read(self, parameter: str) -> "torch.Tensor":
        """Read a module's parameter, in the module's own layout and in the stored type.

        Raises JettisonError if it is not stored, cannot be read, or stacked experts have a wrong number of dimensions.
        """
        tensor, expert, part = self.locate(parameter)
        if expert is not None and len(self.checkpoint.shape(tensor)) not in (2, 3):  # biases have 2, weights 3
            raise JettisonError(
                f"{self.folder}: {tensor} has shape {self.checkpoint.shape(tensor)}, not one of experts"
            )
        value = self.checkpoint.read(tensor, expert)
        return value if expert is None else self._experts_of(parameter).part(value, part)

    def _experts_of(self, parameter: str) -> "Experts | GroupedExperts":
        """Return the module of the skeleton that holds the expert of a parameter."""
        return self.skeleton.get_submodule(EXPERT.fullmatch(parameter)[1])

    def stored_shape(self, parameter: str) -> tuple[str, tuple[int, ...]]:
        """Return the tensor that holds a parameter, and the shape that ``read`` returns, from the header alone.

        Raises JettisonError if the parameter is not stored, or its tensor has too few experts.
        """
        tensor, expert, part = self.locate(parameter)
        shape = self.checkpoint.shape(tensor)
        if expert is None:
            return tensor, shape
        if not shape or expert >= shape[0]:
            raise JettisonError(f"{self.folder}: {tensor} has shape {shape}, so it holds no expert {expert}")
        return tensor, self._experts_of(parameter).part_shape(shape[1:], part)

    def _check_tensor(
        self, parameter: str, value: "torch.Tensor", shape: tuple | None = None, needed: tuple | None = None
    ) -> None:
        """Raise JettisonError if a stored parameter has a wrong shape or is not stored in full precision.

        shape: of the whole tensor, where ``value`` is only a part of it.
        needed: the right shape; by default that of the skeleton's parameter.
        """
        shape = tuple(value.shape if shape is None else shape)
        if needed is None:
            with suppress(AttributeError):  # of a block that the model does not have, see ``graph.extra``
                needed = self.skeleton.get_parameter(parameter).shape
        needed = shape if needed is None else tuple(needed)
        where = f"{self.folder}: {self.locate(parameter)[0]}"
        if shape != needed:
            raise JettisonError(f"{where} has shape {shape}, the config asks for {needed} at {parameter}")
        if str(value.dtype).removeprefix("torch.") not in FULL_PRECISION:
            raise JettisonError(f"{where} is stored as {value.dtype}: full-precision weights are needed at {parameter}")

    def read_weight(self, name: str, layout: str, rows: slice | None = None) -> "torch.Tensor":
        """Read the weight of a linear as float32 (rows, columns).

        layout: of the linear, see ``anatomy.Linear``.
        rows: return only these rows; only they are read from disk where they lie together.
        Raises JettisonError if the shape differs from what the config asks for, or a value is not finite.
        """
        from jettison.graph.modules import as_matrix

        tensor, expert, _ = self.locate(f"{name}.weight")
        if rows is None:
            stored = self.read(f"{name}.weight")
            self._check_tensor(f"{name}.weight", stored)
        elif expert is None and layout != "conv1d":  # the first stored dimension is that of the rows
            stored = self.checkpoint.read(tensor, rows)
            self._check_tensor(f"{name}.weight", stored, self.checkpoint.shape(tensor))
        else:
            return self.read_weight(name, layout)[rows]
        weight = stored.float()
        if not weight.isfinite().all():
            bad = int((~weight.isfinite()).sum())
            raise JettisonError(f"{name}.weight of {self.folder} has {bad} values that are NaN or infinite")
        return as_matrix(weight, layout)

    def fill(self, module: "torch.nn.Module", prefix: str = "", dtype: "torch.dtype | None" = None, skip=()) -> None:
        """Read the value of every parameter and stored buffer of ``module`` that is on the meta device.

        prefix: the module path of ``module`` in the model.
        dtype: the type of the values; None means the stored type.
        skip: modules whose parameters stay on meta.

        The parameters require gradients, as transformers leaves them: if the weights were frozen, PyTorch's linear
        would copy the weight once per row of the batch when its input is strided.
        """
        from torch.nn import Parameter

        skipped = {id(parameter) for inner in skip for parameter in inner.parameters()}
        seen: dict[str, Parameter] = {}
        for path, owner in module.named_modules():
            for name, parameter in list(owner._parameters.items()):
                if parameter is None or parameter.device.type != "meta" or id(parameter) in skipped:
                    continue
                full = ".".join(part for part in (prefix, path, name) if part)
                tensor, expert, part = self.locate(full)
                key = f"{tensor}/{expert}/{part}"
                if key not in seen:  # tied parameters stay one parameter
                    value = self.read(full)
                    self._check_tensor(full, value, needed=parameter.shape)
                    seen[key] = Parameter(value.to(dtype) if dtype else value)
                owner._parameters[name] = seen[key]
            for name in owner._buffers.keys() - owner._non_persistent_buffers_set:
                if (buffer := owner._buffers[name]) is not None and buffer.device.type == "meta":
                    full = ".".join(part for part in (prefix, path, name) if part)
                    value = self.read(full)
                    owner._buffers[name] = value.to(dtype) if dtype and value.is_floating_point() else value
