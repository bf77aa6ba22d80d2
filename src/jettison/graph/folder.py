"""A model as it lies on disk: what its config says, and any parameter by the name its module has."""

import os
import re
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.files import check_regular, content_digest, digest, read_bytes
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.shape import ModelShape, shape_names, shapes

if TYPE_CHECKING:  # a plan opens folders without torch and transformers, which take seconds to import
    import torch

BUNDLED = {"scribe": Path(__file__).parent / "scribe"}
# What shapes the token ids of a text or a chat, and where a text ends.
TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.tiktoken|"
    r"spiece\.model|sentencepiece.*\.model|chat_template\.(jinja|json)|generation_config\.json"
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]
TOKENIZER_LIMIT, CARD_LIMIT = 1 << 28, 1 << 24  # bytes
FULL_PRECISION = ("float16", "bfloat16", "float32", "float64")  # types of torch


def find_folder(name: str | Path) -> Path:
    """The folder of a model: ``scribe`` (bundled), a local folder, or a Hugging Face hub id, fetched once.

    Raises UsageError if there is no such model, or only its shape.
    """
    if str(name) in BUNDLED:
        return BUNDLED[str(name)]
    folder = Path(name)
    if os.path.isdir(folder):  # unlike Path.is_dir, also of a name that is too long
        try:
            str(folder.resolve()).encode()
        except UnicodeEncodeError:
            raise UsageError(f"folder {str(name)!r}: safetensors needs a name in UTF-8") from None
        return folder.resolve()
    if str(name) in shapes():
        hub = shapes()[str(name)]["hub"]
        raise UsageError(f"{name} is a shape without weights, for `jettison plan`; give its folder or hub id {hub}")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        shape = next(iter(get_close_matches(str(name).lower(), shape_names(), n=1)), "qwen3-4b")
        raise UsageError(
            f"no model {str(name)!r}: give 'scribe', an existing folder, a hub id such as Qwen/Qwen3-4B, "
            f"or, for `jettison plan`, a known shape such as {shape}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"no folder {str(name)!r} here, and the hub could not serve it: {error}") from error


def open_shape(name: str | Path) -> ModelShape:
    """What a plan can be made for: a known shape (see ``shape_names``), a config.json, or what ``ModelFolder`` opens.

    A model's folder goes before a shape of the same name. Raises UsageError if there is no such model.
    """
    path = Path(name)
    if str(name) in shapes() and not (path / "config.json").exists():
        return ModelShape.known(str(name))
    if path.suffix == ".json":
        if not os.path.isfile(path):
            raise UsageError(f"there is no file {path}; give the config.json of a model")
        return ModelShape(str(name), read_json(path), path.resolve())
    return ModelFolder(name)


class ModelFolder(ModelShape):
    """A Hugging Face folder. Opening it reads the config and the headers of the shards, no weights."""

    def __init__(self, name: str | Path):
        self.folder = find_folder(name)
        if not (self.folder / "config.json").exists():
            raise UsageError(f"{self.folder} is not a model folder: it has no config.json")
        super().__init__(str(name), read_json(self.folder / "config.json"), self.folder)

    def _opened_again(self) -> "ModelFolder":
        return ModelFolder(self.folder)

    @property
    def weights(self) -> bool:
        """Whether the folder has safetensors, and not its config alone."""
        return (self.folder / INDEX).exists() or any(self.folder.glob("model*.safetensors"))

    @property
    def tileable(self) -> bool:
        """Whether what the kernels read may be kept beside the checkpoint: not for models with convolutions."""
        return all(linear.layout != "conv2d" for linear in self.anatomy)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def tokenizer(self):
        """As transformers reads it. Raises UsageError if it cannot."""
        from transformers import AutoTokenizer

        for path in self.folder.iterdir():
            if TOKENIZER.fullmatch(path.name):
                check_regular(path, TOKENIZER_LIMIT)
        with guarded(f"{self.folder} has no usable tokenizer", rust=True):
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def identity(self) -> dict[str, Any]:
        """What the model's outputs depend on: digests of its config, and of all bytes of its weights and its tokenizer,
        file by file."""
        companions = sorted(path for path in self.folder.iterdir() if TOKENIZER.fullmatch(path.name) and path.is_file())
        return {
            "config": digest(self.raw_config),
            "weights": self.checkpoint.content(),
            "tokenizer": {path.name: content_digest(path) for path in companions},
        }

    def fingerprint(self) -> str:
        """16 hex digits that name the whole content, see ``identity``."""
        return digest(self.identity())

    def locate(self, parameter: str) -> tuple[str, int | None, str]:
        """Where a module's parameter is stored: (tensor, expert number for a stacked tensor, what to take of it).

        Raises JettisonError if the checkpoint has no such tensor.
        """
        if (tensor := self._tensor(parameter)) is not None:
            return tensor, None, ""
        experts = self.anatomy.family.experts
        if experts and experts["stored"] == "stacked" and (at := f".{experts['at']}.") in parameter:
            before, _, after = parameter.partition(at)
            number, projection, kind = after.split(".")
            stem = "down_proj" if projection == "down_proj" else "gate_up_proj"
            tensor = self._tensor(f"{before}{at}{stem}" + ("_bias" if kind == "bias" else ""))
            if tensor is not None:
                return tensor, int(number), projection
        head = self.anatomy.head
        if self.anatomy.tied and head and parameter == f"{head.name}.weight":
            return self.locate(f"{self.anatomy.linears[0].name}.weight")
        raise JettisonError(f"{self.folder}: the checkpoint has no tensor for {parameter}")

    def has(self, parameter: str) -> bool:
        return self._tensor(parameter) is not None

    def _tensor(self, parameter: str) -> str | None:
        """The checkpoint's name for a parameter: its own, or the same without or with another prefix."""
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
        """Parameter -> the checkpoint's tensor, where the class has other names now than when the checkpoint was
        written (``vit.encoder.layer.0.attention.attention.query`` is ``vit.layers.0.attention.q_proj``). transformers
        knows them; what it also splits or joins is left out."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings

        renamings = [each for each in get_model_conversion_mapping(self.skeleton) if isinstance(each, WeightRenaming)]
        return {apply_renamings(tensor, renamings): tensor for tensor in self.checkpoint}

    @cached_property
    def _prefixes(self) -> list[tuple[str, str]]:
        """Module prefix -> older spellings of it in checkpoints."""
        base = self.skeleton.base_model_prefix + "."
        return [
            (base, ""),  # saved from the bare base model
            ("model.language_model.", "language_model.model."),  # multimodal checkpoints before transformers 4.52
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ]

    def tensors_of(self, block: int | None) -> list[str]:
        """The checkpoint's tensors that belong to a block; with None, all that belong to none."""
        return [tensor for tensor, of in self._block_of.items() if of == block]

    @cached_property
    def _block_of(self) -> dict[str, int | None]:
        blocks = dict.fromkeys(sorted(self.checkpoint))
        for name in self.skeleton.state_dict():
            block = self.anatomy.block_of(name)
            if block is not None and (self.has(name) or "experts" in name):
                blocks[self.locate(name)[0]] = block
        return blocks

    @cached_property
    def license(self) -> str:
        """As the folder states it: the model card's ``license`` field, else the name of a licence file, else ''."""
        with suppress(JettisonError):  # no card, or none that can be read
            card = read_bytes(self.folder / "README.md", CARD_LIMIT).decode("utf-8", "replace")
            if found := re.search(r"^license:\s*(\S+)", card, re.MULTILINE):
                return found[1]
        return next((path.name for path in sorted(self.folder.glob("LICENSE*"))), "")

    def read(self, parameter: str) -> "torch.Tensor":
        """A module's parameter, in the module's own layout, in the type it is stored in."""
        tensor, expert, part = self.locate(parameter)
        if expert is not None and len(self.checkpoint.shape(tensor)) not in (2, 3):  # of biases and of weights
            raise JettisonError(
                f"{self.folder}: {tensor} has shape {self.checkpoint.shape(tensor)}, not one of experts"
            )
        value = self.checkpoint.read(tensor, expert)
        if expert is None:
            return value
        if value.dim() == 2:  # stacked experts are stored (in, out)
            value = value.T
        if part != "down_proj":  # gate and up alternate
            value = value[0::2] if part == "gate_proj" else value[1::2]
        return value.contiguous()

    def stored_shape(self, parameter: str) -> tuple[str, tuple[int, ...]]:
        """The tensor that holds a parameter, and the shape that ``read`` gives, from the header alone."""
        tensor, expert, part = self.locate(parameter)
        shape = self.checkpoint.shape(tensor)
        if expert is None:
            return tensor, shape
        if not shape or expert >= shape[0]:
            raise JettisonError(f"{self.folder}: {tensor} has shape {shape}, so it holds no expert {expert}")
        shape = tuple(reversed(shape[1:]))
        return tensor, (shape if part == "down_proj" else (shape[0] // 2, *shape[1:]))

    def _check_tensor(
        self, parameter: str, value: "torch.Tensor", shape: tuple | None = None, wanted: tuple | None = None
    ) -> None:
        """shape: of the whole tensor, where ``value`` is a part of it. wanted: by default what the skeleton has."""
        shape = tuple(value.shape if shape is None else shape)
        wanted = tuple(self.skeleton.get_parameter(parameter).shape if wanted is None else wanted)
        where = f"{self.folder}: {self.locate(parameter)[0]}"
        if shape != wanted:
            raise JettisonError(f"{where} has shape {shape}, the config asks for {wanted} at {parameter}")
        if str(value.dtype).removeprefix("torch.") not in FULL_PRECISION:
            raise JettisonError(f"{where} is stored as {value.dtype}: full-precision weights are needed at {parameter}")

    def read_weight(self, name: str, layout: str, rows: slice | None = None) -> "torch.Tensor":
        """The weight of a linear as float32 (rows, columns), or some rows of it, which alone are then read where they
        lie together. Raises JettisonError if its shape is not what the config asks for, or a value is not finite."""
        from jettison.graph.modules import as_matrix

        tensor, expert, _ = self.locate(f"{name}.weight")
        if rows is None:
            stored = self.read(f"{name}.weight")
            self._check_tensor(f"{name}.weight", stored)
        elif expert is None and layout != "conv1d":
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
        """Give every parameter and stored buffer of ``module`` that is on meta its value; parameters of the modules in
        ``skip`` stay there.

        Parameters ask for gradients, as transformers leaves them: for frozen weights and a strided input, PyTorch's
        linear copies the weight once per row of the batch.
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
                if key not in seen:  # tied parameters stay one
                    value = self.read(full)
                    self._check_tensor(full, value, wanted=parameter.shape)
                    seen[key] = Parameter(value.to(dtype) if dtype else value)
                owner._parameters[name] = seen[key]
            for name in owner._buffers.keys() - owner._non_persistent_buffers_set:
                if (buffer := owner._buffers[name]) is not None and buffer.device.type == "meta":
                    full = ".".join(part for part in (prefix, path, name) if part)
                    value = self.read(full)
                    owner._buffers[name] = value.to(dtype) if dtype and value.is_floating_point() else value


def empty(module: "torch.nn.Module") -> None:
    """Send the parameters of a module back to meta, freeing their memory."""
    import torch

    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"))
