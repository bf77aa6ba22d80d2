"""Reads JSON and YAML of unknown origin, with limits to size, nesting and aliases."""

import json
from pathlib import Path
from typing import Any

import yaml

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import read_bytes

JSON_LIMIT, YAML_LIMIT = 1 << 28, 1 << 20  # bytes
YAML_NODES, YAML_DEPTH = 100_000, 64  # limits for a document with its aliases expanded
JSON_DEPTH = 64
DIGITS = 100  # of a whole number; up to here it can be converted to a float and to a string


def read_json(path: Path) -> dict:
    """Read a JSON object from a file. Raises JettisonError if the file is missing or does not hold one."""
    value = parse_json(read_bytes(path, JSON_LIMIT), str(path))
    if not isinstance(value, dict):
        raise JettisonError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8. Raises JettisonError if it is not valid or nested too deeply.

    where: name of the text in errors.
    """
    deep = f"{where} is not readable JSON: it is nested too deeply, at most {JSON_DEPTH} levels are read"
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_whole)
    except ValueError as error:
        raise JettisonError(f"{where} is not readable JSON: {error}") from error
    except RecursionError as error:
        raise JettisonError(deep) from error
    level = [value]  # all values of one level of nesting
    for _ in range(JSON_DEPTH):
        lists = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [inner for items in lists for inner in items]
        if not level:
            return value
    raise JettisonError(deep)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits; at most {DIGITS} are read")
    return int(text)


def read_yaml(path: Path, what: str) -> Any:
    """Read the YAML document of a file. Raises UsageError.

    what: kind of file in errors, such as ``recipe``.
    """
    try:
        text = read_bytes(path, YAML_LIMIT).decode("utf-8")
    except JettisonError as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not valid YAML: it is not UTF-8: {error}") from error
    return parse_yaml(text, f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document. Raises UsageError if it is invalid, nested too deeply, or huge with aliases expanded.

    where: name of the text in errors.
    """
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
    """The number of nodes below and including this one, with aliases expanded.

    known: node id -> count; 0 while the node is being counted, which detects cycles.
    """
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
