"""Residual blocks of a user's own model, rebuilt from their parts: to check them, and to write them.

A block and its parts, run in order, must give the same. Then the parts can also stand in the place of the block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.blocks import ResidualBlock, pad_same
from jettison.graph.described import describe
from jettison.graph.residual import Residual

TOLERANCE = 1e-3  # of the largest output of a block


def run_parts(residual: Residual, x: torch.Tensor) -> torch.Tensor:
    """Return what the parts of a block compute: after(shortcut(x) + branch(x)).

    x: (batch, channels, height, width), or (..., channels) for tokens.
    """
    y = x
    for layer in residual.branch:
        if residual.same_padding and isinstance(layer, nn.Conv2d):
            y = layer(pad_same(y, layer))
        elif residual.tokens or not isinstance(layer, nn.Linear | nn.LayerNorm | nn.Parameter):
            y = y * layer if isinstance(layer, nn.Parameter) else layer(y)
        else:  # they have the channels last
            y = y.permute(0, 2, 3, 1)
            y = (y * layer if isinstance(layer, nn.Parameter) else layer(y)).permute(0, 3, 1, 2)
    if residual.shortcut is not None:
        for layer in residual.shortcut:
            x = layer(x)
        y = x + y
    return y if residual.after is None else residual.after(y)


@torch.no_grad()
def check_parts(model: nn.Module, residuals: Sequence[Residual], run: Callable[[], object]) -> None:
    """Run a model once, and raise UsageError for a block that is not what its ``Residual`` says.

    model: in eval mode.
    run: runs it.
    The error names the block: its path is not in the model or is named twice, a part is not in the model, the block
    does not run once or returns no tensor, or its parts compute something else.
    """
    paths, modules, parameters = set(), set(model.modules()), {id(value) for value in model.parameters()}
    inputs: dict[str, list] = {}
    handles = []
    for residual in residuals:
        path = residual.path
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise UsageError(f"block {path}: the model has no module of this path") from None
        if twice := next((other for other in paths if f"{path}.".startswith(f"{other}.")), None):
            raise UsageError(f"block {path}: it is named twice, or lies in the block {twice}")
        paths.add(path)
        for part in (*residual.branch, *(residual.shortcut or ())):
            if part not in modules if isinstance(part, nn.Module) else id(part) not in parameters:
                raise UsageError(f"block {path}: a {type(part).__name__} of it is not in the model")
        source = model.get_submodule(residual.absorbs) if residual.absorbs else module
        note = lambda _, args, kwargs, path=path: inputs.setdefault(path, []).append((args, kwargs))
        handles.append(source.register_forward_pre_hook(note, with_kwargs=True))
        keep = lambda _, args, output, path=path: inputs.setdefault(f"{path} output", []).append(output)
        handles.append(module.register_forward_hook(keep))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for residual in residuals:
        _compare(residual, inputs.get(residual.path, []), inputs.get(f"{residual.path} output", []))


def _compare(residual: Residual, calls: list, outputs: list) -> None:
    """Compare the output of a block with that of its parts. calls: the arguments of every call of it."""
    path = residual.path
    if len(calls) != 1 or len(outputs) != 1:
        raise UsageError(f"block {path} ran {len(outputs)} times for one batch; valid: once")
    args, output = calls[0][0], outputs[0]
    if not args or not torch.is_tensor(args[0]) or not torch.is_tensor(output):
        raise UsageError(f"block {path} does not map a tensor, its first argument, to a tensor")
    try:
        rebuilt = run_parts(residual, args[0])
    except RuntimeError as error:
        raise UsageError(f"block {path}: its parts do not fit together: {error}") from error
    if rebuilt.shape != output.shape:
        raise UsageError(
            f"block {path}: its parts return {tuple(rebuilt.shape)}, the block itself {tuple(output.shape)}"
        )
    apart = float((rebuilt - output).abs().max() / output.abs().max().clamp(min=1e-12))
    if not apart <= TOLERANCE:
        raise UsageError(
            f"block {path}: its parts, run in order, differ from the block by {apart:.1e} of its largest output; "
            "valid: branch, shortcut and after as the block runs them"
        )


@contextmanager
def described_blocks(model: nn.Module, residuals: Sequence[Residual]) -> Iterator[None]:
    """Let blocks without a description be ``blocks.ResidualBlock`` of their parts, in a block of code.

    residuals: of blocks that pass ``check_parts``. Those that were replaced since stay as they are, and so do those
        whose parts have their channels last.
    """
    originals = {}
    for residual in residuals:
        module = model.get_submodule(residual.path)
        own = set(module.modules())
        last = residual.tokens or any(
            isinstance(part, nn.Linear | nn.LayerNorm | nn.Parameter) for part in residual.branch
        )
        if last or residual.same_padding or any(part not in own for part in residual.branch):
            continue
        try:
            describe(module)
        except UsageError:
            shortcut = nn.Sequential(*residual.shortcut) if residual.shortcut else nn.Identity()
            parts = ResidualBlock(
                nn.Sequential(*residual.branch), None if residual.shortcut is None else shortcut, residual.after
            )
            originals[residual.path] = module
            model.set_submodule(residual.path, parts.train(module.training))
    try:
        yield
    finally:
        for path, module in originals.items():
            model.set_submodule(path, module)
