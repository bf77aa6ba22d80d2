"""Residual blocks as data: what depth pruning must know of a block, y = after(shortcut(x) + branch(x)).

The row of a family in families.yaml says where the parts lie (``residual``). A user's own model says it in Python: a
``Residual`` for each of its blocks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from jettison.core.errors import UsageError, unknown
from jettison.graph.anatomy import Anatomy

# What may stand in a branch without parameters; anything else, such as a pooling, cannot become the identity.
ELEMENTWISE = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "transformers.activations")
NOT_ELEMENTWISE = (nn.GLU, nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)
MATRICES = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Residual:
    """A block whose branch is a list of layers, so that it can become one layer.

    path: of the module in the model that is replaced.
    block: of the whole block, of which that module is a part; by default the same.
    branch: the layers in the order in which they run: ``Conv2d``, ``Linear``, norms, activations (modules without
        parameters), and ``nn.Parameter`` for a scale of the channels.
    shortcut: the layers of the shortcut; () for the input itself; None if there is none, or if the code around the
        module adds it.
    after: the activation after the sum; None if there is none.
    pruned_after: the activation after the sum in the pruned twin, by default the same.
    absorbs: the path of a norm that runs just before the module and is the first layer of ``branch``; "" for none.
    tokens: whether the channels are the last dimension, as in transformers; otherwise inputs are
        (batch, channels, height, width).
    same_padding: whether convolutions pad as TensorFlow's SAME, which their ``padding`` does not say. At most one of
        them may then have a kernel or a stride above 1.
    Raises UsageError for parts that cannot be merged.
    """

    path: str
    branch: tuple[nn.Module | nn.Parameter, ...]
    shortcut: tuple[nn.Module, ...] | None = None
    after: nn.Module | None = None
    absorbs: str = ""
    tokens: bool = False
    same_padding: bool = False
    pruned_after: nn.Module | None = None
    block: str = ""

    def branch_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the branch."""
        for layer in self.branch:
            yield from [layer] if isinstance(layer, nn.Parameter) else layer.parameters()

    @property
    def droppable(self) -> bool:
        """Whether the model still fits together without the whole block: its shortcut is the input."""
        return self.shortcut == () or (self.shortcut is None and self.tokens)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", self.block or self.path)
        matrices = [layer for layer in self.branch if isinstance(layer, MATRICES)]
        if not matrices:
            raise UsageError(f"block {self.path}: its branch has no convolution or linear layer, so nothing can merge")
        if self.same_padding and sum(map(is_spatial, matrices)) > 1:
            raise UsageError(
                f"block {self.path}: several of its convolutions pad as TensorFlow's SAME, so they cannot pad once; "
                "valid: one with a kernel or a stride above 1"
            )
        for layer in self.branch:
            if not isinstance(layer, (*MATRICES, *NORMS, nn.Parameter)) and not is_elementwise(layer):
                raise UsageError(
                    f"block {self.path}: {type(layer).__name__} in its branch cannot be merged; valid: Conv2d, Linear, "
                    "BatchNorm, LayerNorm, GroupNorm, activations, and a parameter that scales channels"
                )
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                raise UsageError(
                    f"block {self.path}: padding_mode {layer.padding_mode!r} cannot be merged; valid: zeros"
                )
            if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
                raise UsageError(f"block {self.path}: a LayerNorm over {layer.normalized_shape}; valid: over channels")
            if isinstance(layer, nn.Conv2d) and self.tokens:
                raise UsageError(f"block {self.path}: a convolution in a block of tokens cannot be merged")
        for number, layer in enumerate(self.shortcut or ()):
            plain = isinstance(layer, nn.Conv2d) and layer.padding in ((0, 0), "valid")
            if not (plain if number == 0 else isinstance(layer, NORMS)):
                raise UsageError(
                    f"block {self.path}: a shortcut that cannot fold, with {type(layer).__name__}; valid: the input "
                    "itself, or one convolution without padding and norms behind it"
                )


def is_elementwise(layer: Any) -> bool:
    """Return whether a layer is an activation, a dropout, or drops paths: what pruning removes."""
    named = type(layer).__module__ in ELEMENTWISE or type(layer).__name__.endswith("DropPath")
    return named and not isinstance(layer, NOT_ELEMENTWISE) and next(layer.parameters(), None) is None


def is_spatial(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with a kernel or a stride above 1."""
    return isinstance(layer, nn.Conv2d) and max(*layer.kernel_size, *layer.stride) > 1


def find_residuals(model: nn.Module, anatomy: Anatomy) -> list[Residual]:
    """Return the residual blocks of a model of transformers, in order. Raises UsageError if its family has none."""
    row = anatomy.family.residual
    if not row:
        from jettison.graph.families import families

        known = sorted(name for name, family in families().items() if family.residual)
        raise UsageError(
            f"depth pruning: the row of {model.config.model_type} in families.yaml does not say what its residual "
            f"blocks are; it is known for {', '.join(known)}"
        )
    return [_read(model, anatomy.path(block), row) for block in range(anatomy.blocks)]


def _read(model: nn.Module, block: str, row: Mapping[str, Any]) -> Residual:
    """Apply the field ``residual`` of a family to a block."""
    root = model.get_submodule(block)
    shortcut = None
    if name := row.get("shortcut"):
        added = () if name == "input" else getattr(root, name)
        if isinstance(added, nn.Module):
            shortcut = tuple(_leaves([added]))
        elif added is not False:  # a flag says whether the input is added
            shortcut = ()
    at = row.get("at", "")
    return Residual(
        path=f"{block}.{at}" if at else block,
        block=block,
        branch=tuple(_leaves(_part(root, name) for name in row["branch"])),
        shortcut=shortcut,
        after=getattr(root, row["after"]) if row.get("after") else None,
        absorbs=f"{block}.{row['absorbs']}" if row.get("absorbs") else "",
        tokens=bool(row.get("tokens")),
        same_padding=bool(getattr(model.config, row["same_padding"])) if row.get("same_padding") else False,
        pruned_after=_part(root, row["pruned_after"]) if row.get("pruned_after") else None,
    )


def _part(root: nn.Module, name: str) -> nn.Module | nn.Parameter | None:
    *path, last = name.split(".")
    owner = root.get_submodule(".".join(path))
    if not hasattr(owner, last):
        raise unknown("part", name, [path for path, _ in root.named_modules() if path], f" of {type(root).__name__}")
    return getattr(owner, last)


def _leaves(parts: Iterable[Any]) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the layers inside the parts, in order, without those that do nothing."""
    for part in parts:
        if isinstance(part, nn.Module) and next(part.children(), None) is not None:
            yield from _leaves(part.children())
        elif part is not None and not isinstance(part, nn.Identity):
            yield part
