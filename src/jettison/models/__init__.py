"""Models on disk: find, open, read their anatomy, walk them block by block. Known shapes: the same without weights."""

from jettison.models.activations import Activations
from jettison.models.anatomy import Anatomy, Linear, families
from jettison.models.folder import ModelFolder, empty, find_folder, open_shape
from jettison.models.shape import ModelShape, shape_names
from jettison.models.walk import Walk

__all__ = [
    "Activations",
    "Anatomy",
    "Linear",
    "ModelFolder",
    "ModelShape",
    "Walk",
    "empty",
    "families",
    "find_folder",
    "open_shape",
    "shape_names",
]
