"""JSON and YAML that people and other programs give: read with limits to size, nesting and aliases."""

import json
from pathlib import Path
from typing import Any

import yaml

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import read_bytes

JSON_LIMIT, YAML_LIMIT = 1 << 28, 1 << 20  # bytes
YAML_NODES, YAML_DEPTH = 100_000, 64  # of a document with its aliases written out
JSON_DEPTH = 64
DIGITS = 100  # of a whole number: it can then be turned to a float, and to a text


def read_json(path: Path) -> dict:
    """Raises JettisonError if the file is missing or is not a JSON object."""
    value = parse_json(read_bytes(path, JSON_LIMIT), str(path))
    if not isinstance(value, dict):
        raise JettisonError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """Raises JettisonError, which calls the text ``where``, if it is not JSON in UTF-8, or nested too deeply."""
    deep = f"{where} is not readable JSON: it is nested too deeply, at most {JSON_DEPTH} levels are read"
    try:
        found = json.loads(data.decode("utf-8"), parse_int=_whole)
    except ValueError as error:
        raise JettisonError(f"{where} is not readable JSON: {error}") from error
    except RecursionError as error:
        raise JettisonError(deep) from error
    level = [found]
    for _ in range(JSON_DEPTH):
        lists = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [inner for each in lists for inner in each]
        if not level:
            return found
    raise JettisonError(deep)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits; at most {DIGITS} are read")
    return int(text)


def read_yaml(path: Path, what: str) -> Any:
    """The YAML document of a file. what: how errors call it, such as ``recipe``. Raises UsageError."""
    try:
        text = read_bytes(path, YAML_LIMIT).decode("utf-8")
    except JettisonError as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not valid YAML: it is not UTF-8: {error}") from error
    return parse_yaml(text, f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Raises UsageError for what is not YAML, is nested too deeply, or is huge once its aliases are written out."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {}, 0, where)
        return loader.construct_document(node)
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply: at most {YAML_DEPTH} levels are read") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date such as 2000-13-01
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _count_nodes(node: yaml.Node, known: dict[int, int], depth: int, where: str) -> int:
    """How many nodes this one has, aliases written out. known: node id -> count, 0 while it is being counted."""
    if depth > YAML_DEPTH:
        raise UsageError(f"{where} is nested too deeply: at most {YAML_DEPTH} levels are read")
    if known.get(id(node)) == 0:
        raise UsageError(f"{where} refers to itself by an alias")
    if node.tag.endswith(":int") and len(node.value) > DIGITS:
        raise UsageError(
            f"{where} is not valid YAML: it has a number of {len(node.value):,} digits; at most {DIGITS} are read"
        )
    if id(node) not in known:
        known[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = pairs
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in pairs for part in pair]
            keys = [(key.tag, key.value) for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise UsageError(f"{where} has {max(keys, key=keys.count)[1][:60]!r} twice in one mapping")
        known[id(node)] = 1 + sum(_count_nodes(part, known, depth + 1, where) for part in inner)
    if known[id(node)] > YAML_NODES:
        raise UsageError(f"{where} has more than {YAML_NODES:,} entries once its aliases are written out")
    return known[id(node)]
