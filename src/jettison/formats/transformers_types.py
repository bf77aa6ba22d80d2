"""What transformers cannot load of a packed checkpoint, by model type, as it was tried."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

from jettison.encodings.grid import Grid
from jettison.formats.format import Format
from jettison.graph.described_files import NAME
from jettison.graph.folder import ModelFolder

# What other libraries do with a packed checkpoint: tried with diffusers 0.42 on all denoisers of families.yaml, in both
# formats. tests/domains/test_diffusion.py tries it again.
OTHERS = {"diffusers": "it stops at a quantization that it does not know"}


def not_in_transformers(format: Format, source: ModelFolder, grids: Mapping[str, Grid]) -> list[str]:
    """List the reasons why transformers cannot load a compressed checkpoint, as sentences.

    source: the original.
    grids: linear name -> grid, of the packed linears.
    """
    reasons = format.problems(source.anatomy, grids)
    if source.replaced:
        reasons = [*reasons, _replaced(source)]
    kind = source.config.get_text_config().model_type
    if source.library == "jettison":
        reasons = [f"{kind} is a model of Jettison's own: jettison.load does"]
    elif grids and source.library != "transformers":  # so no sentence about transformers is to the point
        library = source.library
        reasons = [f"{library} cannot load a packed {kind}: {OTHERS[library]}; jettison.load does"]
    elif grids and not reasons and (failure := _failures().get(kind)):
        reasons = [f"transformers cannot load a packed {kind}: {failure}; jettison.load does"]
    return reasons


def _replaced(source: ModelFolder) -> str:
    """Return what transformers 5.23 does, as tried: it reports missing and unexpected keys, and loads."""
    count = len(source.replaced)
    return (
        f"{NAME} replaces {f'{count} modules' if count > 1 else 'a module'}, such as {next(iter(source.replaced))}: "
        "transformers does not read it and gives the modules of config.json random weights; jettison.load does read it"
    )


@cache
def _failures() -> dict[str, str]:
    """Return model type -> what happens, for the types of transformers_types.yaml."""
    return yaml.safe_load((files("jettison.formats") / "transformers_types.yaml").read_text(encoding="utf-8"))
