"""``modules.json``: modules in place of a model's own, or a whole model that transformers does not have.

- Beside a config.json: ``{"replaced": {PATH: DESCRIPTION}}``. The model is that of the config, with other modules at
  these paths. Their parameters lie in the checkpoint under the names that they have in the model.
- Without a config.json: ``{"model": DESCRIPTION}``, a model of its own, with its parameters in model.safetensors.

``graph.described`` says what a description is. This file imports torch only where modules are built.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, shown, unknown
from jettison.core.files import writable_folder, write_json

if TYPE_CHECKING:
    from torch import nn

NAME, WEIGHTS = "modules.json", "model.safetensors"


def is_described(folder: Path) -> bool:
    """Return whether a folder holds a model of its own, which has no config.json."""
    return os.path.lexists(folder / NAME) and not os.path.lexists(folder / "config.json")


def read_replaced(folder: Path) -> dict[str, Any]:
    """Read the replaced modules of a model folder: path -> description; {} if it has no modules.json.

    The descriptions are not checked yet. Raises JettisonError if the file cannot be read or holds anything else.
    """
    return _read(folder / NAME, "replaced") if os.path.lexists(folder / NAME) else {}


def _read(path: Path, field: str) -> dict[str, Any]:
    """Read the only field of a modules.json, an object."""
    values = read_json(path)
    if other := next((name for name in values if name != field), None):
        raise JettisonError(str(unknown("field", other, [field], f" of {path}")))
    if not isinstance(values.get(field), dict):
        raise JettisonError(f"{path}: {field} = {shown(values.get(field))}; an object is needed")
    return values[field]


def write_replaced(folder: Path, replaced: Mapping[str, "nn.Module | dict[str, Any]"]) -> None:
    """Write the modules.json of a model folder.

    replaced: path in the model -> the module in its place, or a description of it.
    Raises UsageError for a module that has no description.
    """
    from jettison.graph.described import describe

    specs = {path: spec if isinstance(spec, dict) else describe(spec, path) for path, spec in replaced.items()}
    write_json(folder / NAME, {"replaced": specs})


def replace_modules(model: "nn.Module", replaced: Mapping[str, Any], where: str) -> None:
    """Replace modules of a skeleton, in place, by modules on the meta device.

    replaced: path -> description.
    where: the name of the file in errors.
    Raises JettisonError for a path that the model does not have, one inside another, and as ``described.build``.
    """
    if not replaced:
        return
    import torch

    from jettison.graph.described import build, first_only

    paths = dict(model.named_modules(remove_duplicate=False))
    for path, spec in replaced.items():
        if path not in paths or not path:
            close = get_close_matches(path[:200], list(paths), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else "; valid: paths of modules, as in config.json's model"
            raise JettisonError(f"{where}: the model has no module {shown(path)}{hint}")
        if outer := next((other for other in replaced if path.startswith(f"{other}.")), None):
            raise JettisonError(f"{where}: {path} lies in {outer}, which is replaced itself")
        with torch.device("meta"):
            module = build(spec, f"{where}: {path}")
        module.register_forward_pre_hook(first_only, with_kwargs=True)
        model.set_submodule(path, module)
    model.eval()


def save_described(model: "nn.Module", folder: str | Path) -> None:
    """Write a model of your own that consists of described modules: modules.json, and model.safetensors.

    modules.json is written last, so a killed call leaves a folder without a model.
    Raises UsageError for a module that has no description (see ``described.describe``), and for a folder that holds a
    model of transformers; JettisonError if a file cannot be written.
    """
    from jettison.core.tensors import write_tensors
    from jettison.graph.described import describe

    spec, folder = describe(model), writable_folder(Path(folder))
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model of transformers (config.json): choose another folder")
    tensors = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    (folder / NAME).unlink(missing_ok=True)  # a description of another model must not stand beside these weights
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / NAME, {"model": spec})


def load_described(folder: str | Path) -> "nn.Module":
    """Load a model that ``save_described`` wrote, in eval mode. Its values have the types that they are stored in.

    Raises UsageError if the folder holds no such model; JettisonError if its description is damaged, a tensor is
    missing, has a wrong shape or type, or belongs to no module, or if the model is larger than the free memory.
    """
    import torch

    from jettison.graph.checkpoint import Checkpoint
    from jettison.graph.dense import require_memory
    from jettison.graph.described import build
    from jettison.graph.folder import FULL_PRECISION

    folder = Path(folder)
    if not is_described(folder):
        raise UsageError(f"{folder} holds no model of described modules: it needs {NAME}, and no config.json")
    with torch.device("meta"):
        model = build(_read(folder / NAME, "model"), f"{folder / NAME}: model")
    checkpoint, expected = Checkpoint(folder, [folder / WEIGHTS]), model.state_dict()
    if missing := [name for name in expected if name not in checkpoint]:
        raise JettisonError(f"{folder / WEIGHTS} has no tensor {missing[0]}, which {NAME} asks for")
    if extra := [name for name in checkpoint if name not in expected]:
        raise JettisonError(f"{folder / WEIGHTS} has a tensor {extra[0]}, which no module of {NAME} has")
    for name, value in expected.items():
        if checkpoint.shape(name) != tuple(value.shape):
            raise JettisonError(
                f"{folder / WEIGHTS}: {name} has shape {checkpoint.shape(name)}, {NAME} asks for {tuple(value.shape)}"
            )
    require_memory(checkpoint.tensor_bytes, str(folder))
    tensors = {name: checkpoint.read(name) for name in expected}
    for name, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        valid = FULL_PRECISION if expected[name].is_floating_point() else ("int64",)
        if kind not in valid:
            raise JettisonError(f"{folder / WEIGHTS}: {name} is stored as {kind}; valid: {', '.join(valid)}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()
