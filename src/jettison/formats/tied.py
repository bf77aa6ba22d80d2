"""A head and an embedding that are one matrix (tied): where both stay one packed matrix, stored once.

Rows of it are looked up and all of it is multiplied, from the same codes. ``tied`` in runtimes.yaml says which runtimes
read it; other runtimes get a packed head beside an embedding in 16 bits. This file does not import torch.
"""

from jettison.formats.runtimes import Runtime
from jettison.graph.anatomy import Anatomy
from jettison.recipe.recipe import Recipe


def one_matrix(anatomy: Anatomy, recipe: Recipe, runtime: Runtime | None = None) -> bool:
    """Return whether a recipe packs the head and the embedding of a model once, as one matrix.

    It does if one quantize step claims both. With a runtime that reads such a matrix, a step that claims only the head
    is enough. A head that is pruned is never shared: rows of zeros would be looked up.
    """
    head, embedding = anatomy.head, anatomy.linears[0]
    if not anatomy.tied or head is None or head.layout != "linear" or "embed" not in embedding.roles:
        return False
    if runtime is not None and not runtime.format.tied:
        return False
    claiming = lambda linear, verb: [step for step in recipe.of(verb) if step.claims(linear.roles, None)]
    steps, others = claiming(head, "quantize"), claiming(embedding, "quantize")
    both = others == steps or (runtime is not None and not others)
    return len(steps) == 1 and both and not claiming(head, "prune")
