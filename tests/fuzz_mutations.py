"""Mutations of user input: of trees (JSON, YAML), texts and bytes, and of the file that stands at a path.

All take an ``rng`` (``random.Random``) and return a note of the change, so that a finding can be understood.
"""

import copy
import json
import os
import random
import socket
from pathlib import Path
from typing import Any

DEEP = "a list in a list, 100,000 deep"  # a marker; ``dump`` writes the nested lists
MARKUP = "</script><img src=x onerror=fuzz>"  # must never appear unescaped in a page
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, -(2**31), 2**31, 2**63, 10**12, 10**30, 1.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "0", "-1", "nan", "1e999", "null", "true", "../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "\0",
    "\n", "a\nb", "é😀", "\ud800", "\u202e", "x" * 5000, "%s%n", "{0}", "{{ 7 * 7 }}", "[bold]", "[/]", MARKUP, DEEP,
    [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": [1]}}, [1, 2, 3], ["x", "x"], [1] * 300, {"x": float("nan")},
    [0, -1], ["a", 1, None], [[1, 2], [3]],
)  # fmt: skip


def tree(rng: random.Random, value: Any) -> tuple[Any, str]:
    """Return a copy of a tree of dicts, lists and leaves with one change, sometimes two or three, and a note."""
    value, notes = copy.deepcopy(value), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spot = _spot(rng, value)
        if spot is None:
            value = copy.deepcopy(rng.choice(HOSTILE))
            notes.append(f"all -> {short(value)}")
            continue
        holder, key, path = spot
        notes.append(f"{path}: {_change(rng, value, holder, key)}")
    return value, "; ".join(notes)


def _spot(rng: random.Random, value: Any) -> tuple[Any, Any, str] | None:
    """Return a random place in the tree as (container, key, path), or None for the root itself."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.01:
        return None
    path = ""
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path += f"/{short(key, 30)}"
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            return value, key, path
        value = inner


def _change(rng: random.Random, root: Any, holder: Any, key: Any) -> str:
    """Change ``holder[key]`` and return a note. root: the whole tree, from which other values are copied."""
    old = holder[key]
    kind = rng.choice(("hostile", "hostile", "hostile", "delete", "rename", "near", "near", "other", "wrap", "more"))
    if kind == "delete":
        del holder[key]
        return "deleted"
    if kind == "rename" and isinstance(holder, dict):
        new = rng.choice((f"{key}x", str(key)[:-1], "", str(key).upper(), "__class__", "é", f" {key}", f"{key}.{key}"))
        holder[new] = holder.pop(key)
        return f"renamed to {new!r}"
    if kind == "more":
        if isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(old)] * rng.choice((1, 2, 500))
            return "repeated"
        holder[rng.choice(("x", "name", "type", "0", "__init__"))] = copy.deepcopy(rng.choice(HOSTILE))
        return "a field more beside it"
    if kind == "wrap":
        holder[key] = rng.choice(([old], {"x": old}, {str(key): old}, [old, old], str(old)))
    elif kind == "other":
        spot = _spot(rng, root)
        holder[key] = copy.deepcopy(spot[0][spot[1]]) if spot else None
    else:
        holder[key] = _near(rng, old) if kind == "near" else copy.deepcopy(rng.choice(HOSTILE))
    return f"{short(old)} -> {short(holder[key])}"


def _near(rng: random.Random, old: Any) -> Any:
    """Return a value derived from ``old``, close to it or far from it; mostly of the same type."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, 2 * old, -old, old // 2, old * 10**6, float(old), old + 0.5, str(old)))
    if isinstance(old, float):
        return rng.choice((-old, old * 1e6, old / 1e6, 1 / old if old else 1.0, int(old) if abs(old) < 1e300 else 0))
    if isinstance(old, str):
        new = (old[:-1], old + "x", old.upper(), f"../{old}", f"{old}/", old * 300, old + "\0", old[::-1], [old])
        return rng.choice(new)
    if isinstance(old, list):
        return rng.choice((old[::-1], old[:-1], old + old, old[:1], {str(at): value for at, value in enumerate(old)}))
    if isinstance(old, dict):
        return rng.choice((list(old), list(old.values()), dict(list(old.items())[:1]), [old]))
    return rng.choice(HOSTILE)


def left(path: Path, most: int = 1 << 24) -> bytes:
    """Return the bytes of the file at ``path``; empty if it is larger than ``most`` bytes or no regular file.

    Reading a pipe or a device might never end.
    """
    return path.read_bytes() if path.is_file() and path.stat().st_size <= most else b""


def short(value: Any, most: int = 60) -> str:
    """Return ``value`` as ASCII text of at most ``most`` characters, with its full length if it is cut."""
    try:
        text = repr(value) if isinstance(value, str | float | int | None) else json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}... ({len(text)})"


def dump(value: Any) -> bytes:
    """Return JSON, with NaN and Infinity as Python writes them, and DEEP replaced by the nested lists."""
    return json.dumps(value, default=str).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def change_json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change the tree, the text or the bytes of a file that holds one JSON value."""
    if rng.random() < 0.75:
        value, note = tree(rng, json.loads(data))
        return dump(value), note
    if rng.random() < 0.3:
        return json_text(rng, data)
    return change_bytes(rng, data)


def json_text(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change JSON text in ways that no tree expresses: duplicate field, comment, byte order mark, invalid number."""
    text = data.decode()
    kind = rng.choice(("twice", "bom", "comment", "trailing", "utf-16", "number", "single", "huge", "lines"))
    if kind == "twice" and (at := text.find('"')) >= 0:
        end = text.find(",", at) + 1
        return (text[:at] + text[at:end] + text[at:]).encode(), "a field twice"
    texts = {
        "bom": b"\xef\xbb\xbf" + data,
        "comment": b"// a comment\n" + data,
        "trailing": data.rstrip() + b",\n",
        "utf-16": text.encode("utf-16"),
        "number": text.replace(": ", ": 0", 1).encode(),
        "single": text.replace('"', "'").encode(),
        "huge": b'{"x": ' + b"9" * 5000 + b"}",
        "lines": data + b"\n" + data,
    }
    return texts.get(kind, b""), kind


def change_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Flip, cut, zero or splice bytes, as faulty disks, networks and editors do."""
    size = len(data)
    at, length = rng.randrange(size + 1), rng.choice((1, 2, 8, 64, 4096))
    kind = rng.choice(
        ("flip", "flip", "flips", "cut", "cut", "zeros", "ones", "splice", "insert", "drop", "end", "all")
    )
    changed = bytearray(data)
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else rng.choice((4, 64))):
            if size:
                place = rng.choice((rng.randrange(size), rng.randrange(min(size, 600))))
                changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind in ("zeros", "ones"):
        span = min(length, size - at)
        changed[at : at + span] = (b"\0" if kind == "zeros" else b"\xff") * span
    elif kind == "splice":
        start = rng.randrange(size + 1)
        part = data[start : start + length]
        changed[at : at + len(part)] = part
    elif kind == "insert":
        changed[at:at] = rng.randbytes(length)
    elif kind == "drop":
        del changed[at : at + length]
    elif kind == "end":
        changed += rng.choice((b"\0", b"\n", b"\0" * 4096, rng.randbytes(length), data))
    else:
        changed = bytearray(rng.choice((b"", b"\0" * size, b"\n", rng.randbytes(min(size, 5000)), b"\xff" * 8)))
    return bytes(changed), f"bytes: {kind} at {at} of {size}"


def change_place(rng: random.Random, path: Path, secret: Path) -> str:
    """Put something else in the place of a file. secret: a file outside of the room, which no verb may copy."""
    kind = rng.choice(("missing", "folder", "pipe", "socket", "zero", "random", "dangling", "loop", "secret", "sparse"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        working_folder = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(working_folder)
    elif kind == "sparse":
        with open(path, "wb") as handle:
            handle.truncate(1 << (31 if path.suffix == ".safetensors" else 35))  # a memory map may be no larger
    elif kind != "missing":
        targets = {"zero": "/dev/zero", "random": "/dev/urandom", "dangling": "nowhere", "loop": path.name}
        path.symlink_to(targets.get(kind) or secret)
    return f"{path.name} is {kind}"
