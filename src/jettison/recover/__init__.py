"""Win back the accuracy that was lost: distillation on the teacher's own text."""

from jettison.recover.run import recover, written_shards
from jettison.recover.synthesize import synthesize

__all__ = ["recover", "synthesize", "written_shards"]
