"""Models on disk: find, open, read their anatomy, walk them block by block."""

from jettison.models.activations import Activations
from jettison.models.anatomy import Anatomy, Linear, families
from jettison.models.folder import ModelFolder, empty, find_folder
from jettison.models.walk import Walk

__all__ = ["Activations", "Anatomy", "Linear", "ModelFolder", "Walk", "empty", "families", "find_folder"]
