"""Methods, one file each, under the verb that they serve. A method is found by being there.

Importing this package registers all of them (``jettison.recipe.registry``).
"""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
