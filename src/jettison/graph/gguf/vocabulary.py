"""The tokenizer of a model folder as metadata of a GGUF file, and a check that a reader gets the same tokens from it.

- Byte-level vocabularies (``gpt2``) state by a name how texts are split. The name is found by trying: that whose rule,
  as the reader has it, splits a text full of special cases as the model's tokenizer does.
- Vocabularies of SentencePiece (``llama``) have no merges in the file but scores: here the negative rank of the first
  merge that makes a token, so that the merges can be recovered from them.
- No name says that a text is normalized (NFC of Qwen): texts in other forms get other tokens, in llama.cpp too.
- Tokens that the embedding has and the tokenizer lacks become unused ones.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, guarded, shown
from jettison.graph.gguf import tokenizer as reader
from jettison.graph.gguf.container import Strings
from jettison.graph.gguf.outline import Outline

if TYPE_CHECKING:
    from jettison.graph.folder import ModelFolder

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens
PROBE = (
    "It's 1999: the year of 2 whales, 12345678 waves...\n\n  \tIshmaël didn't say WE'RE\r\nlost?   naïve Σοφία 鲸鱼 "
    "кит's #!/x == y_z()  \u00a0tail\n"
)
# Names that are tried first where several have the same rule; others follow in the reader's order.
PREFERRED = ("qwen2", "gpt-2", "smollm", "gpt-4o", "tekken")


def describe_tokenizer(source: "ModelFolder", draft: Outline) -> str:
    """Add the tokenizer and the chat template of a model to the metadata of its file.

    Returns '' or a note, as a sentence: that there is no tokenizer, or what a reader would do differently.
    Raises UsageError for a tokenizer that GGUF has no name for.
    """
    if source.in_file:
        own = source.checkpoint.metadata
        draft.metadata |= {key: _listed(value) for key, value in own.items() if key.startswith("tokenizer.")}
        return ""
    file = source.companions / reader.TOKENIZER
    if not file.exists():
        return f"{source.name} has no {reader.TOKENIZER}, so the file has no tokenizer"
    values, tokenizer = read_json(file), source.tokenizer
    with guarded(f"{file} cannot be written as GGUF"):
        draft.metadata |= {f"tokenizer.ggml.{key}": value for key, value in _vocabulary(values, source, file)}
        draft.metadata |= dict(_special(source, tokenizer))
        if isinstance(template := tokenizer.chat_template, dict):
            template = template.get("default")
        if template:
            draft.metadata["tokenizer.chat_template"] = template
        return _difference(tokenizer, draft, source.name)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Strings) else value.tolist() if hasattr(value, "tolist") else value


def _vocabulary(values: Mapping[str, Any], source: "ModelFolder", file: Path) -> Iterator[tuple[str, Any]]:
    """Yield kind, tokens, their types, and merges or scores."""
    model, size = values["model"], source.vocabulary
    if model.get("type", "BPE") != "BPE":
        raise UsageError(f"{file}: a tokenizer of kind {shown(model['type'])}; only BPE can be written as GGUF")
    tokens, types = {number: token for token, number in model["vocab"].items()}, {}
    for token in values.get("added_tokens", ()):
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else ADDED
    if max(tokens) >= size:
        raise UsageError(f"{file} has token {max(tokens)}; the model has {size}")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    whole = [tokens.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [types.get(number, NORMAL) if number in tokens else UNUSED for number in range(size)]
    if not model.get("byte_fallback"):
        yield "model", "gpt2"
        yield "pre", _split_name(source, bool(model.get("ignore_merges")))
        yield "merges", [" ".join(pair) for pair in merges]
    else:
        yield "model", "llama"
        yield "pre", "default"
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), rank)
        yield "scores", [-float(ranks.get(token, len(merges))) for token in whole]
        yield "add_space_prefix", "Prepend" in json.dumps([values.get("normalizer"), values.get("pre_tokenizer")])
        byte = {f"<0x{number:02X}>" for number in range(256)}
        kinds = [BYTE if token in byte else kind for token, kind in zip(whole, kinds, strict=True)]
        if model.get("unk_token") in model["vocab"]:
            kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    yield "tokens", whole
    yield "token_type", kinds


def _split_name(source: "ModelFolder", ignores_merges: bool) -> str:
    """Return the name of the rule by which a byte-level tokenizer splits texts. Raises UsageError if it has none."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pieces = lambda splitter: [text for text, _ in splitter.pre_tokenize_str(PROBE)]
    own = source.tokenizer.backend_tokenizer.pre_tokenizer
    expected = None if own is None else pieces(own)
    llama = "llama-bpe" if ignores_merges else "dbrx"  # the same rule, but llama.cpp ignores merges for the first
    for name in dict.fromkeys([*PREFERRED, llama, *reader.SPLITS, *GGUF_PRE_TOKENIZER_SPLITS]):
        if name in reader.SPLITS:
            splitter = reader.splitter(reader.SPLITS[name])
        else:
            parts = [pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")]
            splitter = pre_tokenizers.Sequence(
                [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        if pieces(splitter) == expected:
            return name
    raise UsageError(f"{source.name} splits texts by a rule that GGUF has no name for, so its tokens would change")


def _special(source: "ModelFolder", tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tokens that begin, end and pad texts, and whether a tokenizer adds them."""
    stated = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    config = source.config.get_text_config()
    ends = config.eos_token_id
    if (settings := source.companions / reader.SETTINGS).exists():
        ends = read_json(settings).get("eos_token_id", ends)
    ends = dict.fromkeys(
        end for end in (stated["eos"], *(ends if isinstance(ends, list) else [ends])) if end is not None
    )
    ids = {"bos": stated["bos"] if stated["bos"] is not None else config.bos_token_id}
    ids |= dict(zip(reader.ENDS, ends, strict=False))
    ids |= {"unknown": stated["unk"], "padding": stated["pad"] if stated["pad"] is not None else config.pad_token_id}
    for name, number in ids.items():
        if type(number) is int and 0 <= number < source.vocabulary:
            yield f"tokenizer.ggml.{name}_token_id", number
    bare, framed = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    first = framed.index(bare[0])
    for name, added in (("bos", framed[:first]), ("eos", framed[first + len(bare) :])):
        yield f"tokenizer.ggml.add_{name}_token", ids.get(name) is not None and ids[name] in added


def _difference(tokenizer: Any, draft: Outline, name: str) -> str:
    """Return a note if a reader of the metadata gets other tokens; raise UsageError for a byte-level vocabulary.

    The readers of SentencePiece vocabularies differ about spaces at the start of a text, so for them it is only a note.
    """
    from tokenizers import Tokenizer

    read = Tokenizer.from_str(json.dumps(reader.read_tokenizer(draft)))
    for text in (PROBE, "a whale", " a whale"):
        ours, theirs = tokenizer(text).input_ids, read.encode(text).ids
        if ours != theirs:
            if draft.metadata["tokenizer.ggml.model"] == "gpt2":
                raise UsageError(
                    f"read back from GGUF, the tokenizer of {name} would give other tokens for {shown(text)}"
                )
            return f"a reader in Python would give other tokens than {name} for {shown(text)}"
    return ""
