"""What identifies a denoiser: its class, its config and its weights, in whichever precision they are loaded."""

import hashlib
from typing import Any

import torch
from torch import nn

from jettison.core.files import digest
from jettison.core.validation import Fields

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Identity(Fields):
    """The identity of a denoiser.

    class_name, config: its class, and the digest of its config.
    weights: precision -> digest of the weights as they are loaded in that precision. Weights in float32 have all three,
        others one.
    """

    class_name: str
    config: str
    weights: dict[str, str]

    def same_weights(self, other: "Identity") -> bool:
        """Whether both are of the same weights: of those in at least one precision."""
        return bool(self.weights.items() & other.weights.items())


def identify(denoiser: nn.Module) -> Identity:
    """Return the identity of a denoiser. All its weights are read."""
    types = {value.dtype for value in denoiser.state_dict().values() if value.is_floating_point()}
    widest = torch.float32 if torch.float32 in types or torch.float64 in types else next(iter(types), torch.float32)
    names = [name for name, dtype in TYPES.items() if widest in (torch.float32, dtype)]
    return Identity(
        class_name=type(denoiser).__name__,
        config=config_digest(denoiser),
        weights={name: weights_digest(denoiser, TYPES[name]) for name in names},
    )


def difference(denoiser: nn.Module, identity: Identity) -> str:
    """Return in which respect a denoiser differs from an identity: class, config or weights; "" if it is the same."""
    if type(denoiser).__name__ != identity.class_name:
        return "class"
    if config_digest(denoiser) != identity.config:
        return "config"
    same = any(weights_digest(denoiser, TYPES[name]) == own for name, own in identity.weights.items() if name in TYPES)
    return "" if same else "weights"


def config_digest(denoiser: nn.Module) -> str:
    """Return the digest of a config, without the fields on its origin."""
    config: dict[str, Any] = dict(getattr(denoiser, "config", {}))
    return digest({name: value for name, value in config.items() if not name.startswith("_")})


def weights_digest(denoiser: nn.Module, dtype: torch.dtype) -> str:
    """Return BLAKE2b of the names, shapes and values of all weights, converted to ``dtype``; 64 hex digits."""
    hasher = hashlib.blake2b(digest_size=32)
    for name, value in sorted(denoiser.state_dict().items()):
        value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
