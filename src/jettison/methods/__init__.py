"""Methods, one file each, in a folder per verb. A new file needs no other entry to be found.

Importing this package registers all methods (``jettison.recipe.registry``), but imports none of them.
"""

from jettison.recipe.registry import register_files

register_files(__path__, __name__)
