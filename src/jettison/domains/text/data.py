"""Reads texts and turns them into token windows.

The bundled texts are public-domain prose and, for evaluation, a part of WikiText-2.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.files import digest, read_bytes
from jettison.graph.folder import ModelFolder

BUNDLED = {
    "books": "books-calibration.txt",
    "books-evaluation": "books-evaluation.txt",
    "wikitext2": "wikitext2-evaluation.txt",
}
END_OF_DOCUMENT = "\f\n"
LIMIT = 1 << 31  # bytes that a text may have


def read_documents(source: str | Path) -> list[str]:
    """Return the documents of a bundled text or of a UTF-8 file. A form feed at the end of a line ends a document.

    Raises UsageError if the text does not exist, is empty, or is not text.
    """
    path = _find_text(source)
    try:
        text = read_bytes(path, LIMIT).decode("utf-8")  # bytes, so that line ends stay as they are
    except JettisonError as error:
        valid = f"give a UTF-8 file or one of {', '.join(sorted(BUNDLED))}"
        raise UsageError(f"no text {str(source)!r}: {valid} ({error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"text {path} is not UTF-8: {error}") from error
    if "\0" in text:
        raise UsageError(f"text {path} has zero bytes: it is not text, or not in UTF-8")
    documents = [document for document in text.split(END_OF_DOCUMENT) if document.strip()]
    if not documents:
        raise UsageError(f"text {path} is empty")
    return documents


def _find_text(source: str | Path) -> Path:
    if str(source) in BUNDLED:
        return Path(str(files("jettison.domains.text") / "texts" / BUNDLED[str(source)]))
    return Path(source)


def text_digest(source: str | Path) -> str:
    """Return a hash of a text's content, 16 hex digits. Raises UsageError as ``read_documents`` does."""
    return digest(*read_documents(source))


@dataclass(frozen=True)
class Text:
    """Calibration data (``statistics.data``): windows of a bundled text or of a UTF-8 file."""

    name: str | Path = "books"

    @property
    def digest(self) -> str:
        """Hash of the text's content, 16 hex digits."""
        return text_digest(self.name)

    def windows(self, model: ModelFolder, length: int, count: int | None = None) -> torch.Tensor:
        """Return token ids (windows, length), see ``token_windows``."""
        return token_windows(model, self.name, length, count)


def encode(tokenizer, text: str, special: bool = True) -> list[int]:
    """Return the token ids of a text.

    special: whether to add the special tokens that the tokenizer puts around a text.
    Raises UsageError if the tokenizer fails, as a damaged one does.
    """
    with guarded(f"the tokenizer of {tokenizer.name_or_path} fails", rust=True):
        return tokenizer(text, verbose=False, add_special_tokens=special).input_ids


def token_windows(model: ModelFolder, source: str | Path, length: int, count: int | None = None) -> torch.Tensor:
    """Cut a text into windows of token ids.

    The documents are joined. Each starts with the tokenizer's begin-of-sequence token if it has one.

    length: tokens of a window.
    count: how many windows at most, spread evenly over the text; None for all.
    Returns ids (windows, length).
    Raises UsageError if the text is shorter than a window, or has a token that the model does not know.
    """
    tokenizer = model.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    stream: list[int] = []
    for document in read_documents(source):
        ids = encode(tokenizer, document)
        stream += ids if ids[:1] == start else start + ids
    windows = len(stream) // length
    if windows == 0:
        raise UsageError(f"text {str(source)!r} has {len(stream)} tokens; one window of {length} is needed")
    ids = torch.tensor(stream[: windows * length]).view(windows, length)  # (windows, length)
    if count is not None and count < windows:
        ids = ids[torch.arange(count) * windows // count]  # (count, length)
    model.check_tokens(ids, f"text {str(source)!r}")
    return ids
