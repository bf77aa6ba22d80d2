"""Methods, one file each, under the verb that they serve. A method is found by being there.

Importing this package registers all of them (``jettison.recipe.registry``), but imports none.
"""

from jettison.recipe.registry import register_files

register_files(__path__, __name__)
