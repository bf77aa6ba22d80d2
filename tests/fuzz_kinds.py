"""The kinds of fuzzed input that belong to models and runs: how each is changed, and which verbs are tried on it.

A kind is a function ``(room, rng) -> Case`` that puts a changed input into the room.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_bases as bases
import fuzz_mutations as mutate
import fuzz_verbs as do
import torch
from fuzz_verbs import Case, Complaint, Room, chosen
from safetensors.torch import load_file, save_file

NONE: frozenset[str] = frozenset()
SOURCE = frozenset(("compress", "compress_same", "calibrate"))
WEIGHTS = SOURCE | {"load", "generate", "evaluate", "verify"}  # the verbs that read weights
POISONS = {"NaN": float("nan"), "infinite": float("inf"), "minus infinite": float("-inf")}


def changed(rng: random.Random, room: Room, file: Path, change: Callable, place: float = 0.04) -> str:
    """Replace a file's bytes by ``change(rng, bytes)``, or the file by something else. Returns a note of the change.

    place: the probability that something else (a folder, a pipe, ...) replaces the file.
    """
    if rng.random() < place:
        return mutate.change_place(rng, file, room.secret)
    data, note = change(rng, file.read_bytes())
    file.write_bytes(data)
    return f"{file.name}: {note}"


def safetensors(room: Room, rng: random.Random) -> Case:
    """Change a weight file of a model or of a run."""
    run, wrong, why = rng.random() < 0.3, NONE, ""
    room.take("run" if run else "model")
    file = rng.choice(sorted(room.given.glob("*.safetensors")))
    kind = rng.choice(("tensor",) * 8 + ("header",) * 5 + ("bytes",) * 7)
    if kind == "tensor":
        note, wrong, why = change_tensor(rng, file)
    else:
        note = changed(rng, room, file, change_header if kind == "header" else mutate.change_bytes, 0.1)
    if run:  # compress refuses a run as its source in any case
        return Case(note, chosen(rng, do.load, do.generate, do.evaluate, do.verify, do.report), wrong, why)
    verbs = (do.load, do.generate, do.evaluate, do.plan, do.compress, do.calibrate, do.plan_gradients)
    return Case(note, chosen(rng, *verbs), wrong, why)


def change_tensor(rng: random.Random, file: Path) -> tuple[str, frozenset[str], str]:
    """Change value, shape, type or name of one tensor. Returns a note, the verbs that must refuse, and why."""
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    flat, real = value.reshape(-1), value.is_floating_point()
    shapes: dict[str, Callable[[], torch.Tensor]] = {
        "a row less": lambda: value[1:] if value.dim() and len(value) > 1 else flat[:0],
        "a row more": lambda: torch.cat([value, value[:1]]),
        "flat": lambda: flat if value.dim() != 1 else flat[: len(flat) // 2],
        "a dimension more": lambda: value.unsqueeze(0),
        "one number": lambda: flat[0],
        "empty": lambda: flat[:0],
        "transposed": lambda: value.T if value.dim() == 2 and len(set(value.shape)) == 2 else flat[:0],
        "complex": lambda: value.float().to(torch.complex64),
        "whole numbers": lambda: value.to(torch.int16) if real else value.float(),
    }
    others: dict[str, Callable[[], torch.Tensor]] = {"zero": lambda: value * 0, "large": lambda: value, "same": None}
    kind = rng.choice((*shapes, *POISONS, *POISONS, "missing", "renamed", "more", *others))
    wrong, why = (WEIGHTS, f"a tensor is {kind}") if kind in (*shapes, "missing", "renamed") else (NONE, "")
    if kind in shapes:
        tensors[name] = shapes[kind]()
    elif kind in POISONS and real:
        flat[rng.randrange(len(flat))] = POISONS[kind]
        wrong, why = SOURCE | {"verify"}, "a value is not finite"
    elif kind in ("missing", "renamed"):
        moved = tensors.pop(name)
        tensors |= {f"{name}x": moved} if kind == "renamed" else {}
    elif kind == "more":
        tensors["model.layers.7.extra.weight"] = value.clone()
    elif kind == "large" and real:
        flat[0] = torch.finfo(value.dtype).max
    elif kind == "zero":
        tensors[name] = value * 0
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, {"format": "pt"})
    return f"{file.name}: {name} {tuple(value.shape)} {kind}", wrong, why


def change_header(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change the header of a safetensors file, or the length that it states."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1:
        length = rng.choice((0, 1, 8, 2**31, 2**63, 2**64 - 1, len(data), 100_000_001, rng.randrange(9999)))
        return length.to_bytes(8, "little") + data[8:], f"length of the header {length}"
    header, note = mutate.change_json(rng, data[8 : 8 + size])
    length = len(header) if rng.random() < 0.9 else size
    return length.to_bytes(8, "little") + header + data[8 + size :], f"header: {note}"


def index(room: Room, rng: random.Random) -> Case:
    """Change the index of a model in shards, or a shard."""
    room.take("sharded")
    shutil.copy(room.base / "outside" / "model.safetensors", room.outside)
    file, wrong, why = room.given / "model.safetensors.index.json", NONE, ""
    kind = rng.choice(("index",) * 8 + ("outside", "shard"))
    if kind == "outside":
        content, first = json.loads(file.read_text()), "model-00001-of-00003.safetensors"
        name = rng.choice(("../outside/model.safetensors", str(room.outside / "model.safetensors")))
        content["weight_map"] = {key: name if at == first else at for key, at in content["weight_map"].items()}
        file.write_bytes(mutate.dump(content))
        note, wrong, why = f"a shard at {name}", WEIGHTS, "a shard lies outside the folder"
    elif kind == "shard":
        note = mutate.change_place(rng, rng.choice(sorted(room.given.glob("*.safetensors"))), room.secret)
        wrong, why = WEIGHTS, "a shard is no file"
    else:
        note = changed(rng, room, file, mutate.change_json)
    return Case(note, chosen(rng, do.compress_same, do.load, do.generate, do.evaluate, do.plan), wrong, why)


SIZES = (
    "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip


def config(room: Room, rng: random.Random) -> Case:
    """Change config.json or generation_config.json of a model or of a run."""
    base = rng.choice(("model",) * 5 + ("run",) * 3 + bases.FAMILIES)
    room.take(base)
    file = room.given / "config.json"
    before = json.loads(file.read_text())
    if base == "run" and rng.random() < 0.5:
        after = dict(before)
        after["quantization_config"], note = mutate.tree(rng, before["quantization_config"])
        file.write_bytes(mutate.dump(after))
        note = f"quantization_config{note}"
    else:
        beside = rng.random() < 0.08
        note = changed(rng, room, room.given / "generation_config.json" if beside else file, mutate.change_json)
    wrong = sizes_differ(before, file) if base in ("model", "run") else NONE
    verbs = [do.load, do.generate, do.evaluate, do.plan, do.plan, do.plan, do.plan_config]
    verbs += [do.verify, do.report, do.compress, do.forecast] if base == "run" else [do.compress, do.compress]
    return Case(f"{base}: {note}", chosen(rng, *verbs), wrong, "the config's sizes are not those of the weights")


def sizes_differ(before: dict, file: Path) -> frozenset[str]:
    """Return the verbs that must refuse the config in ``file`` if its sizes are not those of the weights."""
    try:
        after = json.loads(mutate.left(file))
        sizes = {name: after[name] for name in SIZES}
    except (ValueError, KeyError, TypeError, RecursionError):
        return NONE
    whole = all(type(value) is int and value > 0 for value in sizes.values())
    return WEIGHTS if whole and any(value != before[name] for name, value in sizes.items()) else NONE


TEMPLATES = (
    "{{ messages[9].x }}", "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "{{",
    "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{% include 'x' %}", "", "{{ 1 / 0 }}", "x" * 10**5,
    "{{ 'x' * 10**10 }}", "{{ messages | tojson }}", "{{ strftime_now('%Y') }}", "{{ \"<|end|>\" * 200 }}", "\ud800",
)  # fmt: skip


def tokenizer(room: Room, rng: random.Random) -> Case:
    """Change a file of the tokenizer, or the chat template."""
    room.take("model")
    names = ("tokenizer.json",) * 6 + ("tokenizer_config.json",) * 4 + ("special_tokens_map.json",)
    file = room.given / rng.choice((*names, "chat_template.jinja", "chat_template.jinja"))
    if file.suffix == ".jinja":
        change = lambda rng, data: (
            template := rng.choice(TEMPLATES).encode("utf-8", "replace"),
            mutate.short(template),
        )
        note = changed(rng, room, file, mutate.change_bytes if rng.random() < 0.3 else change)
        return Case(note, (do.chat,))
    note = changed(rng, room, file, mutate.change_json)
    return Case(note, chosen(rng, do.calibrate, do.generate, do.sample, do.evaluate, do.chat))


def journal(room: Room, rng: random.Random) -> Case:
    """Change the journal of a run, or a shard that it refers to."""
    base = rng.choice(("part", "part", "run", "recovering", "recovered"))
    room.take(base)
    recovery = base.startswith("recover")
    file = room.given / ("recover/journal.jsonl" if recovery else "journal.jsonl")
    kind = rng.choice(("line",) * 6 + ("bytes",) * 4 + ("lines",) * 3 + ("shard", "shard"))
    if kind == "shard":
        file = rng.choice(sorted(room.given.glob("recover/*.safetensors" if recovery else "model-*.safetensors")))
    changes = {"line": change_line, "lines": change_lines, "bytes": mutate.change_bytes, "shard": mutate.change_bytes}
    note = changed(rng, room, file, changes[kind], 0.3 if kind == "shard" else 0.04)
    return Case(f"{base}: {note}", (do.continue_recover if recovery else do.continue_compress,))


def change_line(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change the JSON value of one line."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at], note = mutate.change_json(rng, lines[at])
    return b"\n".join(lines) + b"\n", f"line {at}: {note}"


def change_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Remove, repeat, swap, cut or add lines."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.choice(
        ("less", "twice", "swapped", "torn", "zero tail", "garbage", "first less", "empty", "other first")
    )
    if kind == "less":
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    elif kind == "swapped":
        lines[at], lines[-1] = lines[-1], lines[at]
    elif kind == "torn":
        lines[-1] = lines[-1][: rng.randrange(len(lines[-1]))]
    elif kind == "zero tail":
        lines.append(b"\0" * rng.choice((1, 100, 4096)))
    elif kind == "garbage":
        lines.insert(at, rng.choice((b"\n", b"{}\n", b"[]\n", b"null\n", b"0\n", b"\xff\xfe\n", b'{"unit": 0}\n')))
    elif kind == "other first":
        lines[0] = b'{"run": {}}\n'
    else:
        lines = lines[1:] if kind == "first less" else []
    return b"".join(lines), f"lines: {kind} at {at}"


def manifest(room: Room, rng: random.Random) -> Case:
    """Change jettison.json, speed.json or draft.json of a measured run."""
    room.take("measured")
    file = room.given / rng.choice(("jettison.json",) * 6 + ("speed.json", "speed.json", "draft.json", "draft.json"))
    note = changed(rng, room, file, mutate.change_json)
    if file.name == "speed.json":
        return Case(note, chosen(rng, do.report, do.compare))
    if file.name == "draft.json":
        return Case(note, chosen(rng, do.report, do.drafted))
    verbs = (do.report, do.report, do.compare, do.evaluate, do.forecast, do.verify, do.compress)
    return Case(note, chosen(rng, *verbs))


def program(room: Room, rng: random.Random) -> Case:
    """Change program.json of a pipeline, that of its program step, or the step's journal."""
    room.take("programmed")
    file = room.given / rng.choice(("program.json",) * 8 + ("program/program.json", "program/journal.jsonl"))
    before = file.read_bytes()
    note = changed(rng, room, file, change_line if file.suffix == ".jsonl" else mutate.change_json)
    if file.parent.name == "program" or rng.random() < 0.2:
        return Case(f"{file.parent.name}: {note}", (do.continue_program,))  # alone, as it writes the file again
    wrong = frozenset(("verify",)) if mutate.left(file) != before else NONE
    verbs = (do.verify, do.report, do.evaluate_program, do.evaluate_program, do.run_program)
    return Case(note, chosen(rng, *verbs), wrong, "the file is not the one that was written")


def tiles(room: Room, rng: random.Random) -> Case:
    """Change a file of the tile cache. The logits must not change."""
    import jettison

    room.take("run")
    expected = jettison.load(room.given).logits(bases.ids())
    cache_files = [*room.given.glob(".tiles/*"), *(room.folder / "cache" / "tiles").rglob("*.*")]
    if not cache_files:
        return Case("nothing changed", (no_tiles,))
    file = rng.choice([path for path in sorted(cache_files) for _ in range(4 if path.suffix == ".safetensors" else 1)])
    kind = rng.choice((mutate.change_bytes, change_header, change_data))
    kind = kind if file.suffix == ".safetensors" else mutate.change_json
    note = changed(rng, room, file, kind, 0.08)

    def load_same(room: Room) -> None:
        logits = jettison.load(room.given).logits(bases.ids())
        if logits.shape != expected.shape or not torch.equal(logits, expected):
            raise Complaint("a changed cache gave other logits")

    return Case(note, (load_same, do.generate) if rng.random() < 0.3 else (load_same,))


def no_tiles(room: Room) -> None:
    """Complain, since loading made no tile cache that could be changed."""
    raise Complaint("no cache was made")


def change_data(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change the bytes behind the header of a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    after, note = mutate.change_bytes(rng, data[start:])
    return data[:start] + after, note


def adapter(room: Room, rng: random.Random) -> Case:
    """Change config or weights of a LoRA adapter."""
    room.take("recovered")
    file = room.given / "adapter" / rng.choice(("adapter_config.json",) * 3 + ("adapter_model.safetensors",) * 2)
    wrong, why = NONE, ""
    if file.suffix == ".json":
        before = json.loads(file.read_bytes())
        note = changed(rng, room, file, mutate.change_json)
        wrong, why = rank_differs(before, file), "the adapter's r is not that of its tensors"
    elif rng.random() < 0.5:
        note, wrong, why = change_tensor(rng, file)
        why = f"of an adapter, {why}"
    else:
        note = changed(rng, room, file, change_header if rng.random() < 0.5 else mutate.change_bytes, 0.1)
    return Case(note, chosen(rng, do.load, do.generate, do.evaluate, do.verify), wrong, why)


def rank_differs(before: dict[str, Any], file: Path) -> frozenset[str]:
    """Return the verbs that must refuse the adapter config in ``file`` if its ``r`` is not that of its tensors."""
    try:
        after = json.loads(mutate.left(file))
        changed = type(after["r"]) is int and after["r"] != before["r"] and not after.get("rank_pattern")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return NONE
    return WEIGHTS if changed else NONE
