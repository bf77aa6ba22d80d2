"""Find the folder of a model by its name."""

import os
from difflib import get_close_matches
from pathlib import Path

from jettison.core.errors import UsageError
from jettison.graph.gguf.container import SUFFIX
from jettison.graph.shape import shape_names, shapes

BUNDLED = {"scribe": Path(__file__).parent / "scribe"}
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]


def find_folder(name: str | Path) -> Path:
    """Return the folder of a model, or its GGUF file. A model of the Hugging Face hub is downloaded once.

    name: ``scribe`` (bundled), a local folder, a GGUF file, or a hub id.
    Raises UsageError if there is no such model, or only its shape is known.
    """
    if str(name) in BUNDLED:
        return BUNDLED[str(name)]
    folder = Path(name)
    if os.path.isdir(folder):  # unlike Path.is_dir, this does not raise for a name that is too long
        try:
            str(folder.resolve()).encode()
        except UnicodeEncodeError:
            raise UsageError(f"folder {str(name)!r}: safetensors needs a name in UTF-8") from None
        return folder.resolve()
    if folder.suffix.lower() == SUFFIX:
        if not os.path.isfile(folder):
            raise UsageError(f"there is no file {folder}: give the path of a GGUF file")
        return folder.resolve()
    if str(name) in shapes():
        hub = shapes()[str(name)]["hub"]
        raise UsageError(f"{name} is a shape without weights, for `jettison plan`; give its folder or hub id {hub}")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        shape = next(iter(get_close_matches(str(name).lower(), shape_names(), n=1)), "qwen3-4b")
        raise UsageError(
            f"no model {str(name)!r}: give 'scribe', an existing folder, a GGUF file, a hub id such as Qwen/Qwen3-4B, "
            f"or, for `jettison plan`, a known shape such as {shape}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"there is no folder {str(name)!r}, and the hub could not serve it: {error}") from error
