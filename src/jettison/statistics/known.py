"""Where sensitivities are kept. Without torch, so that a plan may ask in no time whether there are any."""

from pathlib import Path

from jettison.core.caches import cache_folder


def sensitivity_folder() -> Path:
    return cache_folder() / "sensitivity"


def any_known() -> bool:
    """Whether ``sensitivity`` has been found for any model. If not, no model's fingerprint is needed, which reads it
    whole."""
    return sensitivity_folder().is_dir()
