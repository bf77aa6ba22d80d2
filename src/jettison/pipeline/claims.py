"""Which step of a recipe is for which linear. Planning asks this too, so nothing here imports torch."""

from jettison.graph.anatomy import Linear
from jettison.recipe.recipe import Step


def claims(step: Step, linear: Linear) -> bool:
    """Without a role a prune step is for the blocks alone: nobody prunes a head without saying so."""
    outside = step.verb == "prune" and not step.where.role and linear.block is None
    return not outside and step.where.matches(linear.roles, linear.block)
