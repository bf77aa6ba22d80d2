"""Run a checkpoint: load it, packed, and let it write."""

from jettison.decode.load import Loaded, load

__all__ = ["Loaded", "load"]
