"""The kinds of fuzzed input that people write by hand: recipes, devices, scenarios and their costs."""

import random
import re
from typing import Any

import fuzz_bases as bases
import fuzz_mutations as mutate
import fuzz_verbs as do
import yaml
from fuzz_verbs import Case, Room, chosen

LEVELS = 12
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, LEVELS)]
)
SNIPPETS = (
    "!!python/object/apply:os.system ['touch x']", "!!binary x", "!!set {a, b}", "!!timestamp 2000-13-01",
    "2000-13-01", "2001-01-01", "&x [*x]", "*nothing", "{<<: {a: 1}}", "0x" + "f" * 5000, "1:59", "0o17", ".nan",
    "-.inf", "1e3", "1_000", "~", "|\n  text", "? a", "[", "}", "\t", "'", "%TAG", "@", "`x`", "0-99999999999", "3-1",
    "'0-3'", "[" * 3000 + "]" * 3000, "!!omap [a: 1]", "!<tag:x> y", "NO", "\x07", "é", "[3-1]", "[]",
    "[0-99999999999]",
)  # fmt: skip
# Fields in which a large number asks for much work, which is no fault.
MUCH = re.compile(rb"(samples|iterations|epochs|length|steps|rounds|grid_points|rank|batch|trials)\W{1,4}[\d.e+_]{4,}")


def change_yaml(rng: random.Random, value: Any) -> tuple[bytes, str]:
    """Return YAML of ``value`` with changed tree, text or bytes, and a note of the change."""
    kind = rng.random()
    if kind < 0.6:
        tree, note = mutate.tree(rng, value)
        try:
            data = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode()
        except (yaml.YAMLError, UnicodeEncodeError):
            return mutate.dump(tree), note
        return data.replace(mutate.DEEP.encode(), b"[" * 5000 + b"]" * 5000), note
    text = yaml.safe_dump(value, sort_keys=False)
    if kind < 0.82:
        at = rng.choice([match.end() for match in re.finditer(r"(: |- )", text)])
        end, snippet = text.find("\n", at), rng.choice(SNIPPETS)
        note = mutate.short(text[max(0, at - 20) : at] + snippet)
        return (text[:at] + snippet + text[end:]).encode(), note
    if kind < 0.86:
        whole = {"bomb": BOMB, "bomb before": f"{BOMB}\n{text}", "documents": f"{text}---\n{text}", "twice": text * 2}
        name = rng.choice(list(whole))
        return whole[name].encode(), name
    return mutate.change_bytes(rng, text.encode())


def give(room: Room, rng: random.Random, name: str, value: Any) -> str:
    """Put the changed file into the room and return a note of the change."""
    room.given.mkdir(exist_ok=True)
    file = room.given / name
    if rng.random() < 0.03:
        file.touch()
        return mutate.change_place(rng, file, room.secret)
    data, note = change_yaml(rng, value)
    file.write_bytes(data)
    return f"{name}: {note}"


def recipe(room: Room, rng: random.Random) -> Case:
    """Change a recipe."""
    note = give(room, rng, "recipe.yaml", bases.placed(rng.choice(bases.RECIPES), room.base))
    file = room.given / "recipe.yaml"
    verbs = (do.read_recipe,) if MUCH.search(mutate.left(file)) else (do.read_recipe, do.compress_by)
    if rng.random() < 0.06:  # rarely, since a dry run tries the recipe on a small scale, which takes seconds
        verbs = (do.compress_dry, do.fit_dry)
    return Case(note, chosen(rng, *verbs))


def device(room: Room, rng: random.Random) -> Case:
    """Change a device."""
    note = give(room, rng, "device.yaml", rng.choice((bases.DEVICE, bases.PLAIN_DEVICE)))
    return Case(note, chosen(rng, do.show_device, do.plan_device, do.run_device))


def scenario(room: Room, rng: random.Random) -> Case:
    """Change an XR scenario or its costs."""
    files = {"scenario.yaml": bases.SCENARIO, "costs.yaml": bases.COSTS}
    name = rng.choice(("scenario.yaml", "scenario.yaml", "costs.yaml"))
    note = give(room, rng, name, files.pop(name))
    for other, value in files.items():
        (room.given / other).write_text(yaml.safe_dump(value))
    return Case(note, chosen(rng, do.run_scenario, do.run_named, *([do.sweep] if name == "scenario.yaml" else [])))
