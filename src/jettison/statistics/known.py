"""The folder in which sensitivities are stored. It does not import torch, so that a plan can check quickly for any."""

from pathlib import Path

from jettison.core.caches import cache_folder


def sensitivity_folder() -> Path:
    """Return the folder in the cache that stores sensitivities."""
    return cache_folder() / "sensitivity"


def any_known() -> bool:
    """Return whether ``sensitivity`` has been computed for any model.

    If not, the fingerprint of a model, which reads the whole model, is not needed.
    """
    return sensitivity_folder().is_dir()
