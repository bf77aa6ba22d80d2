"""The eleven unit models as PyTorch modules: the workload ``native``.

- Architectures are the published ones, at the sizes of the official tables. Weights are random unless a file is named.
- Unlike in the official tables, depthwise convolutions are depthwise.
- Sizes: ``full`` is that of the tables; ``half`` has half of the resolution; ``small`` also half of the channels;
  ``tiny`` has a quarter of both, for tests.
"""

from pathlib import Path

import torch
from torch import nn

from jettison.core.errors import JettisonError, unknown
from jettison.core.files import check_regular
from jettison.domains.perception.xr.blocks import SIZES
from jettison.domains.perception.xr.catalog import find_model
from jettison.domains.perception.xr.depth import MidasSmall, SparseToDense
from jettison.domains.perception.xr.detect import FasterRCNN, PlaneRCNN
from jettison.domains.perception.xr.eyes import FBNetC, RITNet
from jettison.domains.perception.xr.hands import HandGraph
from jettison.domains.perception.xr.segment import HRViT
from jettison.domains.perception.xr.speech import EDTCN, Emformer, Res8

NATIVE: dict[str, type[nn.Module]] = {
    "HT": HandGraph,
    "ES": RITNet,
    "GE": FBNetC,
    "KD": Res8,
    "SR": Emformer,
    "SS": HRViT,
    "OD": FasterRCNN,
    "AS": EDTCN,
    "DE": MidasSmall,
    "DR": SparseToDense,
    "PD": PlaneRCNN,
}
MULTIPLE = {"DE": 32, "SS": 32, "PD": 32, "HT": 64, "AS": 4}  # the sides of a frame must be multiples of this


def native_model(name: str, size: str = "full", seed: int = 0, weights: str | Path | None = None) -> nn.Module:
    """Build a unit model in float32, for inference.

    weights: a safetensors file with its state dict; None means random weights from ``seed``, with the statistics of the
        normalizations fitted to them.
    Raises UsageError for an unknown name or size, JettisonError for weights that do not fit.
    """
    if name not in NATIVE:
        raise unknown("model", name, NATIVE, ", which is native")
    if size not in SIZES:
        raise unknown("size", size, SIZES, f" of model {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NATIVE[name](SIZES[size][0])
    model.requires_grad_(False)
    if weights is None:
        _fit_norms(model, native_input(name, size, seed, frames=4))
    else:
        from safetensors.torch import load_file

        check_regular(Path(weights))
        try:
            model.load_state_dict(load_file(weights))
        except (OSError, RuntimeError) as error:
            message = str(error).partition("\n")[0]
            raise JettisonError(f"weights {weights} do not fit model {name!r} of size {size!r}: {message}") from error
    return model.eval()


@torch.no_grad()
def _fit_norms(model: nn.Module, frames: torch.Tensor) -> None:
    """Set the statistics of the batch normalizations to those of ``frames``, in training mode.

    With their initial statistics, the signal fades on its way through random weights, and the outputs would consist
    only of biases.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # running statistics become those of one batch
    if norms:
        model.train()(frames)


def native_input(name: str, size: str = "full", seed: int = 0, frames: int = 1) -> torch.Tensor:
    """Return normally distributed frames (frames, channels, ...) in the input shape of a model at a size.

    Raises UsageError for an unknown name or size.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES, f" of model {name!r}")
    channels, *sides = find_model(name).input
    scale, multiple = SIZES[size][1], MULTIPLE.get(name, 1)
    sides = [max(multiple, round(side * scale / multiple) * multiple) for side in sides]
    return torch.randn(frames, channels, *sides, generator=torch.Generator().manual_seed(seed))
