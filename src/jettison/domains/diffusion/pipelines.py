"""The pipeline of diffusers around a denoiser, and what it reads for prompts.

Only classes of diffusers itself are opened, with weights in safetensors, from the folder, and without code from it.
"""

from contextlib import suppress
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, guarded, shown
from jettison.core.files import file_digest
from jettison.domains.diffusion.denoisers import denoiser_of
from jettison.domains.diffusion.identity import Identity, difference, identify
from jettison.domains.diffusion.program import NAME as PROGRAM
from jettison.domains.diffusion.program import attach_program, read_program
from jettison.domains.diffusion.running import Handle
from jettison.formats.manifest import NAME, read_manifest
from jettison.graph.denoisers import inputs_of, quiet, require_diffusers
from jettison.graph.dense import load_dense, stored_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.layout import PIPELINE, read_parts
from jettison.graph.walk import Stop

# For measurements: a few things, places and styles.
PROMPTS = (
    "a photo of a red fox in the snow", "an old lighthouse on a cliff at dusk", "a bowl of ripe peaches, oil painting",
    "a narrow street in the rain at night", "a portrait of an elderly fisherman", "a green steam engine on a bridge",
    "a hot-air balloon over a desert", "a pencil drawing of a sleeping cat",
)  # fmt: skip


def pipeline_class(source: ModelFolder) -> type:
    """Return the pipeline's class. Raises UsageError if diffusers has no pipeline of this name."""
    diffusers, name = require_diffusers(), read_json(source.folder / PIPELINE).get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise UsageError(f"{source.folder / PIPELINE}: _class_name = {shown(name)}: diffusers has no such pipeline")
    return kind


def open_pipeline(source: ModelFolder, denoiser: nn.Module, kind: type | None = None) -> Any:
    """Return the pipeline of a folder with this denoiser; parts that the folder leaves out are None.

    kind: the class, in place of the folder's own.
    Raises UsageError if diffusers cannot load the other parts.
    """
    parts, listed = read_parts(source.folder), read_json(source.folder / PIPELINE)
    kind = kind or pipeline_class(source)
    passed = {name: None for name, value in listed.items() if value == [None, None]}
    passed |= {
        name: None for name, part in signature(kind.__init__).parameters.items()
        if name not in listed and name != "self" and part.default is part.empty
    }  # fmt: skip
    with guarded(f"{source.folder} cannot be opened as a {kind.__name__}"), quiet():
        return kind.from_pretrained(
            source.folder, **passed, **{source.layout.part: denoiser}, use_safetensors=True, local_files_only=True,
            **({} if len(parts) < 3 else {"dtype": denoiser.dtype}),
        )  # fmt: skip


def own_program(source: ModelFolder) -> Path | None:
    """Return the file of the program that a folder of Jettison runs by default; None if it has none."""
    path = source.folder / PROGRAM
    written = (source.folder / NAME).exists() and read_manifest(source.folder).get("program")
    return path if written else None


def attach_to_folder(pipe: Any, source: ModelFolder, path: str | Path) -> Handle:
    """Run a program in the pipeline of a folder; see ``program.attach_program``.

    The folder's own program was found on the original, before weights were packed: jettison.json, with its hash, is
    what says that they belong together. Another program that was found on the original of a compressed model is for
    that one, too, if the original is where it was, and unchanged.
    Raises UsageError for a program of another model or sampler, and if the original is needed and not there.
    """
    program, original = read_program(path), None
    if (source.folder / NAME).exists() and difference(denoiser_of(pipe), program.model) == "weights":
        manifest = read_manifest(source.folder)
        if file_digest(Path(path)) == manifest["hashes"].get(PROGRAM):
            original = program.model
        else:
            original = _identity_of_original(source, manifest["teacher"], path)
    return attach_program(pipe, program, original=original)


def _identity_of_original(source: ModelFolder, recorded: dict[str, str], path: str | Path) -> Identity | None:
    """Return the identity of a folder's original; None if it has changed. Raises UsageError if it is not there."""
    if not Path(recorded["folder"]).is_dir():
        raise UsageError(
            f"program {path}: {source.name} has other weights, and its original, which it may be for, is not at "
            f"{recorded['folder']} any more"
        )
    folder = ModelFolder(recorded["folder"])
    if folder.fingerprint() != recorded["fingerprint"]:
        return None
    return identify(load_dense(folder, stored_dtype(folder)))


def prompt_conditions(
    source: ModelFolder, count: int, prompts: tuple[str, ...] = PROMPTS
) -> dict[str, torch.Tensor] | None:
    """Return what the denoiser reads for ``count`` prompts, beside the state and the time; None without text encoders.

    prompts: taken in turn; each is encoded once.
    """
    encoded = _encoded(source, prompts[:count])
    order = torch.arange(count) % len(prompts)
    return None if encoded is None else {name: value[order] for name, value in encoded.items()}


@lru_cache(2)
def _encoded(source: ModelFolder, prompts: tuple[str, ...]) -> dict[str, torch.Tensor] | None:
    """Return the conditions of prompts; None without text encoders.

    The pipeline runs until it calls the denoiser, which is a model without weights here. Guidance is off.
    """
    if not any(name.startswith("text_encoder") for name in read_parts(source.folder)):
        return None
    stub, calls = source.new_skeleton(), []
    reads = list(signature(stub.forward).parameters)

    def stop(*args, **kwargs):
        calls.append(dict(zip(reads, args, strict=False)) | kwargs)
        raise Stop

    stub.forward = stop
    own = pipeline_class(source)
    on_cpu = property(lambda _: torch.device("cpu"))  # the stub is on the meta device
    kind = type(own.__name__, (own,), {"device": on_cpu, "_execution_device": on_cpu, "__module__": own.__module__})
    pipe = open_pipeline(source, stub, kind)
    pipe.set_progress_bar_config(disable=True)
    with guarded(f"{own.__name__} of {source.name} does not run"), quiet(), suppress(Stop), torch.no_grad():
        pipe(prompt=list(prompts), num_inference_steps=2, guidance_scale=1.0)
    if not calls:
        raise UsageError(f"{own.__name__} of {source.name} does not call its denoiser")
    conditions = {}
    for name in list(inputs_of(source.config, source.config.model_type))[1:]:
        outer, _, inner = name.partition(".")
        value = calls[0].get(outer)
        value = value.get(inner) if inner and value else value
        if isinstance(value, torch.Tensor) and name not in ("timestep", "guidance"):
            conditions[name] = value[-len(prompts) :].float()
    return conditions
