"""Mean squares of inputs, as hooks on the whole model see them."""

import torch

from jettison import load
from jettison.graph.folder import ModelFolder
from jettison.statistics.inputs import mean_squares

IDS = torch.randint(0, 4096, (3, 16), generator=torch.Generator().manual_seed(0))


def test_mean_squares_are_those_of_the_inputs(tiny):
    source = ModelFolder(tiny("llama"))
    squares = mean_squares(source, IDS)
    loaded = load(source.folder, dtype=torch.float32, exact=True)
    for linear in source.anatomy:
        if linear.block is None:
            assert linear.inputs not in squares
            continue
        inputs = []
        module = loaded.model.get_submodule(linear.name)
        hook = module.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        loaded.logits(IDS)
        hook.remove()
        expected = torch.cat(inputs).flatten(0, 1).square().mean(0)
        assert torch.allclose(squares[linear.inputs], expected, rtol=0.05, atol=1e-4)
        assert squares[linear.inputs].shape == (linear.columns,)
