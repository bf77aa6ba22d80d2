"""Write the small files of a model folder from the metadata of a GGUF file: tokenizer, chat template, settings.

The vocabulary and its merges are converted by transformers. What it leaves out is added here: how texts are split for
the vocabularies that it does not know (``SPLITS``), and the token that begins a text.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jettison.core.caches import cache_folder
from jettison.core.errors import UsageError, guarded, shown, unknown
from jettison.core.files import digest, write_json, write_text
from jettison.graph.gguf.container import GgufFile, Strings

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

VERSION = 1  # of the files that are written; must change whenever they do
SETTINGS, TOKENIZER, CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
ENDS = ("eos", "eot", "eom")  # tokens that end a text, a turn, a message
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# tokenizer.ggml.pre -> how byte-level vocabularies split a text, where transformers has no row for it.
SPLITS = {
    "gpt-2": "words", "gpt2": "words", "phi-2": "words", "olmo": "words", "mpt": "words",
    "smollm": "digits", "starcoder": "digits", "refact": "digits", "command-r": "digits", "codeshell": "digits",
}  # fmt: skip


def companions(file: GgufFile) -> Path:
    """Return a folder in the cache with the tokenizer and the settings of a model. It is filled once.

    file: the first file of the model, which has the metadata.
    Raises UsageError for a tokenizer that cannot be read.
    """
    header = {key: digest(list(value) if isinstance(value, Strings) else _plain(value))
              for key, value in file.metadata.items() if key.startswith("tokenizer.")}  # fmt: skip
    folder = cache_folder() / "gguf" / digest(VERSION, header, file.metadata.get("general.architecture"))
    if not (folder / SETTINGS).exists():  # written last
        if "tokenizer.ggml.tokens" in file.metadata:
            with guarded(f"{file.path} has no usable tokenizer", rust=True):
                _write_tokenizer(file, folder)
        write_json(folder / SETTINGS, _settings(file))
    return folder


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _token_id(file: GgufFile, name: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if type(value) is int else None


def _settings(file: GgufFile) -> dict[str, Any]:
    """Return generation_config.json: the tokens that begin and end a text."""
    ends = dict.fromkeys(token for name in ENDS if (token := _token_id(file, name)) is not None)
    values = {
        "bos_token_id": _token_id(file, "bos"),
        "eos_token_id": list(ends),
        "pad_token_id": _token_id(file, "padding"),
    }
    return {name: value for name, value in values.items() if value not in (None, [])}


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    tokenizer, tokens = read_tokenizer(file), file.metadata["tokenizer.ggml.tokens"]
    config = {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": False}
    length = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    config |= {"model_max_length": length} if type(length) is int else {}
    for name, key in SPECIAL.items():
        if (number := _token_id(file, key)) is not None:
            if not 0 <= number < len(tokens):
                raise UsageError(
                    f"{file.path}: tokenizer.ggml.{key}_token_id = {number}; there are {len(tokens)} tokens"
                )
            config[name] = tokens[number]
    if (template := file.metadata.get("tokenizer.chat_template")) is not None:
        if not isinstance(template, str):
            raise UsageError(f"{file.path}: tokenizer.chat_template = {shown(template)}; a text is needed")
        write_text(folder / "chat_template.jinja", template)
    write_json(folder / TOKENIZER, tokenizer)
    write_json(folder / CONFIG, config)


def read_tokenizer(file: GgufFile) -> dict[str, Any]:
    """Return the tokenizer.json of a file.

    Raises UsageError for a kind of vocabulary or of splitting that is not known: texts would be split differently,
    which shows only in worse results.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    values, metadata = {}, file.metadata
    for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items():
        if (value := metadata.get(f"tokenizer.{key}")) is not None:
            values[name] = list(value) if isinstance(value, Strings) else _plain(value)
    kind, split = values.get("tokenizer_type"), values.get("pre_tokenizer_type", "gpt-2")
    if kind == "gpt2" and split not in SPLITS and split not in GGUF_PRE_TOKENIZER_SPLITS:
        raise unknown("tokenizer.ggml.pre", split, [*SPLITS, *GGUF_PRE_TOKENIZER_SPLITS], f" of {file.path}")
    tokenizer, _ = convert_gguf_tokenizer(metadata.get("general.architecture"), values)
    if kind == "gpt2" and split in SPLITS:
        tokenizer.pre_tokenizer = splitter(SPLITS[split])
    return json.loads(tokenizer.to_str()) | {"post_processor": _frame(file, begins=kind == "llama")}


def splitter(how: str) -> "PreTokenizer":
    """Return what splits a text before the merges: ``words`` as GPT-2, or ``digits``, each digit alone besides."""
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if how == "words":
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def _frame(file: GgufFile, begins: bool) -> dict[str, Any]:
    """Return the post_processor of tokenizer.json, which adds the tokens that begin and end a text.

    begins: whether a text begins with a token if the file does not say it.
    """
    metadata, tokens = file.metadata, file.metadata["tokenizer.ggml.tokens"]
    wanted = {"bos": metadata.get("tokenizer.ggml.add_bos_token", begins),
              "eos": metadata.get("tokenizer.ggml.add_eos_token", False)}  # fmt: skip
    ids = {name: number for name, asked in wanted.items() if asked and (number := _token_id(file, name)) is not None}
    token = lambda name, kind: [{"SpecialToken": {"id": name, "type_id": kind}}] if name in ids else []
    text = lambda part, kind: [*token("bos", kind), {"Sequence": {"id": part, "type_id": kind}}, *token("eos", kind)]
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [tokens[ids[name]]]} for name in ids},
    }
