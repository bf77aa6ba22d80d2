"""A variational autoencoder of face avatars with two branches: one for the components that stay, one for the others.

- Each branch codes its components of the block DCT. Mesh and colours of the cameras come from the local branch; the
  direction of view stays on the device, too. The inverse DCT joins the components to a texture.
- Source: arXiv:2604.17476 on top of the Deep Appearance Model (arXiv:1808.00362), as its code and that of multiface
  show it: convolutions with normalized weights, leaky ReLU 0.2, 4 × 4 kernels of stride 2, a bias per texel,
  mean · 0.1, logarithm of the deviation · 0.01, an affine colour correction per camera with camera 0 fixed.
- Differences. The offloaded branch returns its own components instead of learned maps, so that the local part alone is
  the picture without them; components are scaled to one variance; the mesh goes into the local encoder only
  (``mesh_to="both"`` is the released behaviour), and the view into the local decoder only; sizes are options.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import write_json
from jettison.core.sealed import read_sealed, write_sealed
from jettison.core.validation import Fields, read_fields
from jettison.domains.perception.avatars.frames import AvatarFrames, Normalization
from jettison.graph.blocks import TexelBias
from jettison.numerics.block_dct import block_dct, inverse_block_dct
from jettison.offload.partition import Partition
from jettison.offload.service.half import Half
from jettison.offload.split import plain_half, save_half

CONFIG, WEIGHTS, HALF = "avatar.json", "avatar.safetensors", "half"
FIRST = 4  # side of the smallest maps
SLOPE = 0.2
LARGEST = 1 << 20
Size = Annotated[int, Field(ge=1, le=LARGEST, description=f"a whole number from 1 to {LARGEST:,} is needed")]


class AvatarConfig(Fields):
    """The sizes of an avatar's network.

    texture: side of the texture: block · 4 · a power of 2. vertices: of the mesh.
    offloaded: the components that leave. latents, offloaded_latents: of the branches.
    width, offloaded_width: of the branches' decoders, see ``partition.widths``; 16 in total in the paper.
    cameras: how many there are. mesh_to: ``local``, or ``both`` encoders, as released.
    """

    texture: Size = 1024
    vertices: Size = 7306
    block: Annotated[int, Field(ge=2, le=32, description="a whole number from 2 to 32 is needed")] = 4
    offloaded: list[int] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]  # noqa: RUF012 (pydantic copies it)
    latents: Size = 256
    offloaded_latents: Size = 256
    width: Size = 7
    offloaded_width: Size = 9
    encoder_width: Size = 48
    cameras: Size = 1
    mesh_to: Literal["local", "both"] = "local"

    @property
    def partition(self) -> Partition:
        """The partition of the components."""
        return Partition(self.block**2, tuple(self.offloaded))

    @property
    def levels(self) -> int:
        """How often maps of components are halved in the encoder. Raises UsageError for a texture of another side."""
        levels = max(self.texture // (self.block * FIRST), 1).bit_length() - 1
        if levels < 1 or self.block * FIRST << levels != self.texture:
            sides = ", ".join(str(self.block * FIRST << level) for level in range(1, 7))
            raise UsageError(f"texture = {self.texture}: with blocks of {self.block}, one of {sides}, ... is needed")
        return levels


def read_config(data: Mapping[str, Any], where: str = "the avatar's configuration") -> AvatarConfig:
    """Validate a configuration. Raises UsageError, also for sizes that do not fit together."""
    message = lambda name, value, needed: f"{where}: {name} = {value}: {needed}"
    config = read_fields(AvatarConfig, data, message, "field", f" of {where}")
    _ = config.partition, config.levels  # raise
    return config


class Outputs(NamedTuple):
    """What an avatar's network returns: texture (batch, 3, side, side), 0 to 1 about, and mesh (batch, vertices, 3)."""

    texture: torch.Tensor
    mesh: torch.Tensor


class Kept(NamedTuple):
    """What stays on the device: latents (batch, latents), view (batch, 3), camera (batch,)."""

    latents: torch.Tensor
    view: torch.Tensor
    camera: torch.Tensor


class Local(NamedTuple):
    """What the local branch decodes: its components, normalized, the mesh, and the cameras."""

    components: torch.Tensor
    mesh: torch.Tensor
    camera: torch.Tensor


def _conv(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(weight_norm(nn.Conv2d(inside, outside, 4, 2, 1)), nn.LeakyReLU(SLOPE))


class BranchEncoder(nn.Module):
    """Codes maps of components, and a mesh if ``vertices`` is not 0.

    maps (batch, channels, side, side), mesh (batch, vertices, 3) -> mean and logarithm of the deviation, (batch, d).
    """

    def __init__(self, channels: int, levels: int, latents: int, width: int, vertices: int):
        super().__init__()
        growth = (1.0, 4 / 3, 8 / 3)  # 48, 64, 128 in the paper
        sizes = [channels, *(round(width * growth[level * 3 // levels]) for level in range(levels))]
        self.convs = nn.Sequential(*(_conv(*pair) for pair in pairwise(sizes)))
        hidden = max(16, width * 16 // 3)  # 256 in the paper
        linear = lambda inside: nn.Sequential(weight_norm(nn.Linear(inside, hidden)), nn.LeakyReLU(SLOPE))
        self.maps = linear(sizes[-1] * FIRST**2)
        self.mesh = linear(3 * vertices) if vertices else None
        self.mean, self.log_std = (nn.Linear(hidden * (2 if vertices else 1), latents) for _ in range(2))

    def forward(self, maps: torch.Tensor, mesh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.maps(self.convs(maps).flatten(1))
        if self.mesh is not None:
            hidden = torch.cat([hidden, self.mesh(mesh.flatten(1))], 1)
        return 0.1 * self.mean(hidden), 0.01 * self.log_std(hidden)


def branch_decoder(latents: int, components: int, levels: int, width: int) -> nn.Sequential:
    """Make the decoder of a branch: latents (batch, d) -> maps of components (batch, components, 3, side, side).

    Its modules are of described kinds, so ``split.save_half`` can write it.
    """
    inner = [8 * width, *(width * (4 if level < 2 else 3) for level in range(levels - 1))]
    steps = [weight_norm(nn.Linear(latents, inner[0] * FIRST**2)), nn.LeakyReLU(SLOPE)]
    steps.append(nn.Unflatten(1, (inner[0], FIRST, FIRST)))
    for level, (inside, outside) in enumerate(pairwise([*inner, 3 * components])):
        side = FIRST << (level + 1)
        steps.append(weight_norm(nn.ConvTranspose2d(inside, outside, 4, 2, 1, bias=False)))
        steps += [TexelBias(outside, side, side), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*steps[:-1], nn.Unflatten(1, (components, 3)))  # no activation at the end


class AvatarVAE(nn.Module):
    """The network of an avatar; it follows ``split.SplitModel``. Inputs are ``AvatarFrames``.

    known: mean and deviation of the frames. scales: deviation of every component of normalized textures,
        (components,). Both may be left out if weights are loaded.
    """

    def __init__(self, config: AvatarConfig, known: Normalization | None = None, scales: torch.Tensor | None = None):
        super().__init__()
        self.config, levels, channels = config, config.levels, lambda members: 3 * len(members)
        self.partition = partition = config.partition
        self.latents = config.offloaded_latents
        both = config.mesh_to == "both"
        encoder = lambda members, latents, vertices: BranchEncoder(
            channels(members), levels, latents, config.encoder_width, vertices
        )
        self.encoder = encoder(partition.local, config.latents, config.vertices)
        self.encoder_offloaded = encoder(partition.offloaded, config.offloaded_latents, config.vertices * both)
        self.view = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(SLOPE))
        self.decoder = branch_decoder(config.latents + 8, len(partition.local), levels, config.width)
        self.mesh = nn.Linear(config.latents, 3 * config.vertices)
        self.offloaded = branch_decoder(
            config.offloaded_latents, len(partition.offloaded), levels, config.offloaded_width
        )
        self.gain = nn.Parameter(torch.ones(config.cameras, 3))
        self.offset = nn.Parameter(torch.zeros(config.cameras, 3))
        side = config.texture
        self.register_buffer("texture_mean", torch.zeros(3, side, side) if known is None else known.texture_mean)
        self.register_buffer("texture_std", torch.tensor(1.0 if known is None else known.texture_std))
        self.register_buffer("mesh_mean", torch.zeros(config.vertices, 3) if known is None else known.mesh_mean)
        self.register_buffer("mesh_std", torch.tensor(1.0 if known is None else known.mesh_std))
        self.register_buffer("scales", torch.ones(partition.count) if scales is None else scales.float())

    def components(self, texture: torch.Tensor) -> torch.Tensor:
        """Return the components of textures, normalized, (batch, components, 3, rows, columns)."""
        normalized = (texture - self.texture_mean) / self.texture_std
        return block_dct(normalized, self.config.block) / self.scales[:, None, None, None]

    def encode_both(self, average: torch.Tensor, mesh: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return mean and logarithm of the deviation of the local and of the offloaded latents."""
        components, shape = self.components(average), (mesh - self.mesh_mean) / self.mesh_std
        return [
            encoder(components[:, list(members)].flatten(1, 2), shape)
            for encoder, members in (
                (self.encoder, self.partition.local), (self.encoder_offloaded, self.partition.offloaded),
            )
        ]  # fmt: skip

    def encode(self, inputs: AvatarFrames) -> tuple[Kept, torch.Tensor]:
        """Return what stays, and the offloaded latents (batch, d): means of the posterior, without its deviation."""
        (local, _), (offloaded, _) = self.encode_both(inputs.average, inputs.mesh)
        return Kept(local, inputs.view, inputs.camera), offloaded

    def decode_local(self, kept: Kept) -> Local:
        """Decode the local components and the mesh."""
        maps = self.decoder(torch.cat([kept.latents, self.view(kept.view)], 1))
        mesh = self.mesh(kept.latents).unflatten(1, (-1, 3))
        return Local(maps, mesh * self.mesh_std + self.mesh_mean, kept.camera)

    def combine(self, local: Local, offloaded: torch.Tensor | None) -> Outputs:
        """Join the components to a texture. Without the offloaded ones, their means are taken.

        offloaded: what ``offloaded`` returns, (batch, offloaded, 3, rows, columns).
        """
        shape = list(local.components.shape)
        components = local.components.new_zeros(shape[0], self.partition.count, *shape[2:])
        components[:, list(self.partition.local)] = local.components
        if offloaded is not None:
            components[:, list(self.partition.offloaded)] = offloaded
        scaled = components * self.scales[:, None, None, None]
        texture = inverse_block_dct(scaled, self.config.block) * self.texture_std + self.texture_mean
        fixed = (local.camera == 0)[:, None]
        gain = torch.where(fixed, 1.0, self.gain[local.camera])[:, :, None, None]
        offset = torch.where(fixed, 0.0, self.offset[local.camera])[:, :, None, None]
        return Outputs(texture * gain + offset, local.mesh)


def save_avatar(folder: Path, model: AvatarVAE) -> None:
    """Write a network to a folder: ``avatar.json``, ``avatar.safetensors``, and ``half`` for the worker."""
    save_half(model, folder / HALF)
    write_sealed(folder / WEIGHTS, model.state_dict())
    write_json(folder / CONFIG, model.config.model_dump())


def load_avatar(folder: str | Path) -> AvatarVAE:
    """Load a network that ``save_avatar`` wrote. Raises JettisonError if files are missing, damaged or do not fit."""
    folder = Path(folder)
    config = read_config(read_json(folder / CONFIG), str(folder / CONFIG))
    stored = read_sealed(folder / WEIGHTS)
    if stored is None:
        raise JettisonError(f"{folder / WEIGHTS} is missing or damaged: train the avatar again")
    with torch.random.fork_rng():
        model = AvatarVAE(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if {name: tuple(value.shape) for name, value in stored[0].items()} != shapes:
        raise JettisonError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: they are of two networks")
    model.load_state_dict(stored[0])
    return model.eval()


def load_half(folder: str | Path, model: AvatarVAE) -> Half:
    """Load the half that ``save_avatar`` wrote for the worker, the same file that a worker gets a copy of.

    A half that is made of the model again on another processor may differ in the last bit, and then in its digest.
    Raises JettisonError if it is missing, or of another avatar.
    """
    path = Path(folder) / HALF
    half, own = Half.load(path, model.latents), plain_half(model)
    mine, stored = own.module.state_dict(), half.module.state_dict()
    same = [name for name in mine.keys() & stored.keys() if mine[name].shape == stored[name].shape]
    if len(same) != len(mine) or not all(torch.allclose(mine[name], stored[name].cpu(), atol=1e-5) for name in same):
        raise JettisonError(
            f"{path} is the half of another avatar: write it again with jettison.offload.split.save_half"
        )
    return half
