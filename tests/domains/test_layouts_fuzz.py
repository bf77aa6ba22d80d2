"""Changed dataset folders and predictions are refused by a UsageError, or scored."""

import json
import random
import shutil

import fuzz_mutations as mutate
import numpy as np
import pytest
from driving import MAKERS, SIZE, results, tusimple_lines, write

from jettison.core.errors import UsageError
from jettison.domains.perception.scoring import Scores, score


def predictions(layout, folder, path):
    """Write perfect predictions, and return their file or folder."""
    if layout == "culane":
        for label in folder.rglob("*.lines.txt"):
            write(path / label.relative_to(folder), label.read_text())
        return path
    if layout == "tusimple":
        return write(path / "p.json", "".join(json.dumps(line) + "\n" for line in tusimple_lines(2)))
    if layout == "openlanev2":
        return write(path / "r.json", results())
    name = "000150/{:06d}/CAMERA_01" if layout == "ddad" else "scene-0001/sample{}/CAM_FRONT"
    path.mkdir()
    np.savez(path / "d.npz", **{name.format(number): np.full(SIZE[::-1], 9.0, np.float32) for number in range(2)})
    return path / "d.npz"


def change(rng, file):
    """Change one file: its bytes, or one value of its JSON. Returns a note."""
    if file.suffix == ".json" and rng.random() < 0.6:
        lines = file.read_text().splitlines()  # TuSimple has an object a line, the others have one line
        place = rng.randrange(len(lines))
        value = json.loads(lines[place])
        note = mutate_value(rng, value)
        lines[place] = json.dumps(value)
        file.write_text("\n".join(lines))
        return f"{file.name}: {note}"
    data, note = mutate.change_bytes(rng, file.read_bytes())
    file.write_bytes(data)
    return f"{file.name}: {note}"


STRANGE = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", "../x", "\x00", [], {}, [[]], [None], [[1]])


def mutate_value(rng, value):
    """Replace or remove one entry somewhere below a JSON value that is not empty."""
    path = []
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append(str(key))
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.2:
            break
        value = inner
    if rng.random() < 0.2:
        del value[key]
        return f"without {'.'.join(path)}"
    value[key] = rng.choice(STRANGE)
    return f"{'.'.join(path)} = {value[key]!r}"


def try_seed(seed, base):
    """Change a folder or predictions; returns what happened, and a note."""
    rng = random.Random(seed)
    layout = rng.choice(list(MAKERS))
    folder = MAKERS[layout](base / "data")
    made = predictions(layout, folder, base / "made")
    pool = folder if rng.random() < 0.7 else base / "made"
    file = rng.choice(sorted(path for path in pool.rglob("*") if path.is_file()))
    note = f"{layout}, seed {seed}, {change(rng, file)}"
    try:
        done = score(made, folder, incomplete=rng.random() < 0.3)
    except Exception as error:
        assert isinstance(error, UsageError), f"{note}: {type(error).__name__}: {error}"
        assert len(str(error).splitlines()) == 1, note
        return "refused", note
    assert isinstance(done, Scores), note
    values = [value for row in done.rows.values() for value in row]
    assert np.isfinite(values).all(), note
    return "scored", note


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_changed_folders(tmp_path, first):
    outcomes = []
    for seed in range(first, first + 50):
        outcomes.append(try_seed(seed, tmp_path / str(seed))[0])
        shutil.rmtree(tmp_path / str(seed))
    assert {"refused", "scored"} <= set(outcomes)
