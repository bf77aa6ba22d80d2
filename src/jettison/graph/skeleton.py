"""Build a model without weights and read its anatomy.

The model is Hugging Face's own class on the meta device, with the experts as separate linears.
"""

import gc
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache

import psutil
import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from jettison.core.errors import UsageError, guarded
from jettison.core.numbers import figures
from jettison.graph.anatomy import Anatomy, Family, Linear, make_embedding, make_linear
from jettison.graph.config import kind_of
from jettison.graph.experts import separate_experts
from jettison.graph.families import families

KINDS = {"text": "causal language model", "vision": "image classifier"}
MATRICES = (nn.Linear, Conv1D, nn.Conv2d)
PLAIN = {nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv2d, Conv1D}  # have parameters alone, no computed buffers
OTHER_INPUTS = re.compile(r"vision|visual|image|audio|speech")  # encoders of what is no text
BLOCK = re.compile(r"(Layer|Block)$")  # names of the classes of blocks
PARAMETERS = 10**13  # more than any model has


def build_skeleton(config: PretrainedConfig) -> tuple[nn.Module, Family]:
    """Build the causal language model or image classifier of ``config``, without weights, in eval mode.

    Parameters and stored buffers are on the meta device in float32; computed buffers have their values.
    Raises UsageError if transformers has no such model for the config, or if the model is larger than any known one.
    """
    with guarded(f"no {KINDS[kind := kind_of(config)]} can be built from this config"):
        with torch.device("meta"):
            if kind == "vision":
                model = _class_of(config, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)._from_config(config)
            else:
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        _check_size(model)
        for module in model.modules():  # some constructors fill parameters themselves; the checkpoint has their values
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.device.type != "meta":
                    module._parameters[name] = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
        for module, name in _computed(model):
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        for module in model.modules():  # values that nobody sees: drawing them on meta takes most of the time
            module._is_hf_initialized = type(module) in PLAIN
        model.initialize_weights()  # fills the computed buffers
    with collector_at_rest():
        experts = separate_experts(model)
    return model.eval(), find_family(config.model_type, model, experts)


def _class_of(config: PretrainedConfig, mapping) -> type:
    """Return the class of a config; of several in the mapping, the one that the config names, else the first."""
    classes = mapping[type(config)]
    if not isinstance(classes, tuple):
        return classes
    named = [candidate for candidate in classes if candidate.__name__ in (config.architectures or ())]
    return (named or [classes[0]])[0]


def _computed(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the buffers that checkpoints do not store, as pairs of a module and a name."""
    return [
        (module, name)
        for module in model.modules()
        for name in module._non_persistent_buffers_set
        if module._buffers[name] is not None
    ]


def _check_size(model: nn.Module) -> None:
    """Raise UsageError if a model has too many parameters, or computed buffers that do not fit in free memory."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > PARAMETERS:
        raise UsageError(f"this config is of a model of {parameters:.3g} parameters; at most {PARAMETERS:.0e} are read")
    tables, free = (
        sum(module._buffers[name].nbytes for module, name in _computed(model)),
        psutil.virtual_memory().available,
    )
    if tables > free:
        raise UsageError(
            f"the tables of this config take {figures(tables / 1e9)} GB; {figures(free / 1e9)} GB of memory are free"
        )


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Turn Python's garbage collector off: for thousands of new modules it takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_model(model: nn.Module, inputs: torch.Tensor, **options):
    """Run a model of transformers and return its outputs.

    inputs: (batch, ...), the model's main input, such as token ids or pixels; for a language model, floating-point
        inputs are embeddings.
    options: further arguments of the model.
    Raises UsageError for an error in the model's code, because only this code refuses some values of a config, such as
    a dropout of -0.1.
    """
    name = model.main_input_name
    if name == "input_ids":
        options = {"use_cache": False} | options
        name = "inputs_embeds" if inputs.is_floating_point() else name  # embeddings in place of token ids
    with running(model):
        return model(**{name: inputs}, **options)


def running(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context that turns errors in a model's code into UsageError, for calls of a part of the model."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    return guarded(f"the {kind} model does not run with its config")


def find_family(model_type: str, model: nn.Module, experts: Sequence[str] = ()) -> Family:
    """Return the row for ``model_type``, or a generic family made from the model's longest list of like blocks.

    In a generic family all matrices inside the blocks are linears.
    experts: the paths of the ``Experts`` in the model.
    Raises UsageError if the model has neither a row nor such a list.
    """
    if model_type in families():
        return families()[model_type]
    candidates = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            kinds = {type(child) for child in module}
            # A hybrid model has blocks of several classes, some of them more than once.
            alike = len(kinds) == 1 or (len(kinds) < len(module) and all(BLOCK.search(kind.__name__) for kind in kinds))
            linears = sum(isinstance(inner, nn.Linear | nn.Conv2d) for inner in module.modules())
            if alike and linears:
                candidates.append((linears, name))
    if not candidates:
        raise UsageError(
            f"model_type {model_type!r} has no row in families.yaml ({', '.join(sorted(families()))}) "
            "and no list of like blocks with linear layers to read it by"
        )
    fused = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
    blocks = max([place for place in candidates if not OTHER_INPUTS.search(place[1])] or candidates)[1]
    inside = next((re.sub(r"^\d+\.", "", path.removeprefix(f"{blocks}.")) for path in experts), None)
    of_experts = {"at": inside, "gate": "", "stored": ""} if inside else None  # the checkpoint says how it stores them
    return Family("generic", blocks, {}, fused, of_experts, domain=kind_of(model.config))


def read_anatomy(model: nn.Module, family: Family, replaced: Collection[str] = ()) -> Anatomy:
    """Read the anatomy of a skeleton.

    replaced: paths of modules that stand in place of the model's own. Their matrices have the roles of the row, where
    it lists their paths, else ``conv``, ``depthwise`` or ``linear``.
    The order of the linears is embedding, blocks, head for a chain; blocks, then the rest for other models.
    """
    modules = dict(model.named_modules())
    paths = tuple(path for path in modules if family.block_pattern.fullmatch(path))
    paths = tuple(sorted(paths, key=family.place))  # a U-Net's modules are not in the order in which they are run
    linears = []
    for index, prefix in enumerate(paths):
        read = weights_read(modules[prefix]) if family.name == "generic" else set()
        for path, module in modules[prefix].named_modules():
            if not isinstance(module, MATRICES) or path in read:
                continue
            name = f"{prefix}.{path}" if path else prefix  # the block itself may be replaced by one matrix
            roles = family.roles(path)
            if roles is None and _within(name, replaced):
                roles = (_described_role(module),)
            if roles == ("linear",) and isinstance(module, nn.Conv2d):  # of a model without a row
                roles = (_usual_role(module, model.config),)
            if roles:
                linears.append(_linear(name, module, roles, index, family))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not family.chain:
        inside = tuple(f"{path}." for path in paths)
        outside = {name: module for name, module in modules.items() if isinstance(module, MATRICES)}
        outside = {name: module for name, module in outside.items() if not f"{name}.".startswith(inside)}
        for name, module in outside.items():
            number = getattr(model.config, "num_labels", None)  # the head has a row for every class
            inner = _within(name, replaced) and getattr(module, "out_features", None) != number
            role = _described_role(module) if inner else _usual_role(module, model.config)
            if family.ends:  # the row says which matrix is the last; the others come before the blocks
                role = "head" if name == family.ends[-1] else "stem"
            linears.append(_linear(name, module, (role,), None, family))
        return Anatomy(family, len(paths), tuple(linears), parameters, tied=False, paths=paths)
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in modules.items()}
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if embed is not None:
        rows, columns = embed.weight.shape
        name = names[id(embed)]
        linears.insert(0, make_embedding(name, rows, columns))
    if isinstance(head, nn.Linear):
        linears.append(_linear(names[id(head)], head, ("head",), None, family))
    if tied and head is not None:
        parameters -= 0 if head.weight is embed.weight else head.weight.numel()
    return Anatomy(family, len(paths), tuple(linears), parameters, tied)


def weights_read(block: nn.Module) -> set[str]:
    """Return the paths of matrices inside a block that must stay as they are: a packed module could not stand for them.

    These are matrices whose parent reads their weight itself (``self.dt_proj.weight``), and subclasses of ``nn.Linear``
    that compute something else (the router of Llama 4, which returns two tensors).
    """
    paths = set()
    for path, parent in block.named_modules():
        used = _weights_in_source(type(parent))
        for name, child in parent.named_children():
            if isinstance(child, MATRICES) and (name in used or not _computes_a_product(type(child))):
                paths.add(f"{path}.{name}" if path else name)
    return paths


@cache
def _weights_in_source(kind: type) -> frozenset[str]:
    """Return the names of submodules whose weight or bias the code of a module's class reads, but in ``__init__``."""
    names: set[str] = set()
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and name not in ("__init__", "reset_parameters"):
            with suppress(OSError, TypeError):  # no source at hand
                names.update(re.findall(r"self\.(\w+)\.(?:weight|bias)\b", inspect.getsource(method)))
    return frozenset(names)


@cache
def _computes_a_product(kind: type) -> bool:
    """Return whether a class of matrices maps x to x Wᵀ + b. A subclass of ``nn.Linear`` is tried."""
    if not issubclass(kind, nn.Linear) or kind.forward is nn.Linear.forward:
        return True
    small, x = nn.Linear(4, 3), torch.ones(2, 4)
    try:
        with torch.no_grad():
            return torch.allclose(kind.forward(small, x), small(x))
    except Exception:  # it needs attributes that a plain linear does not have
        return False


def _usual_role(module: nn.Module, config: PretrainedConfig) -> str:
    """Return the role of a matrix of an image classifier that no row lists."""
    if not isinstance(module, nn.Conv2d):
        return "head"
    if module.in_channels == getattr(config, "num_channels", 3):
        return "stem"
    return "depthwise" if module.groups == module.in_channels else "conv"


def _within(path: str, places: Collection[str]) -> bool:
    """Return whether a module is one of ``places`` or inside one."""
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _described_role(module: nn.Module) -> str:
    """Return the role of a matrix of a replaced module that no row lists."""
    if not isinstance(module, nn.Conv2d):
        return "linear"
    return "depthwise" if module.groups == module.in_channels > 1 else "conv"


def _linear(name: str, module: nn.Module, roles: tuple[str, ...], block: int | None, family: Family) -> Linear:
    """Make the ``Linear`` of a module, with its layout."""
    rows, columns = module.weight.flatten(1).shape  # a Conv1D has them the other way round
    if isinstance(module, nn.Conv2d):
        return make_linear(name, roles, rows, columns, block, family, "conv2d")
    if isinstance(module, Conv1D):
        return make_linear(name, roles, columns, rows, block, family, "conv1d")
    return make_linear(name, roles, rows, columns, block, family)
