"""One file per method: a pure function under ``@pruner``."""

from jettison.prune.methods.alps import alps
from jettison.prune.methods.magnitude import magnitude
from jettison.prune.methods.sds import sds
from jettison.prune.methods.sparsegpt import sparsegpt
from jettison.prune.methods.wanda import wanda

__all__ = ["alps", "magnitude", "sds", "sparsegpt", "wanda"]
