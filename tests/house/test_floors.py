"""The layering rule: imports run downward only, and rooms of one floor do not import each other."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "jettison"

# From top to bottom. A room is a folder or a single file of the package; rooms of one line do not import each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"fitting"},
    {"xr"},
    {"offload"},
    {"planning", "reports", "bench"},
    {"pipeline"},
    {"runtime"},
    {"methods"},
    {"domains"},
    {"training"},
    {"metrics", "formats", "policies"},
    {"statistics"},
    {"graph", "recipe", "devices"},
    {"kernels"},
    {"numerics"},
    {"encodings"},
    {"core"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    """Return the room that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms in all import statements of a file, also inside functions and under TYPE_CHECKING."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("jettison.")}
    return rooms


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downward(path):
    own = room_of(path)
    for room in imported_rooms(path) - {own}:
        assert room in FLOOR_OF, f"{path.name} imports jettison.{room}, which is no room"
        assert FLOOR_OF[room] > FLOOR_OF[own], f"{own} imports {room}, which is not on a lower floor"


# Limits on the number of rooms that a room imports. A frame is a room that combines many others.
MOST, MOST_OF_A_FRAME = 8, 14
FRAMES = {"cli", "fitting", "offload", "pipeline", "xr"}


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_knows_few_others(room):
    imported = set().union(*(imported_rooms(path) for path in FILES if room_of(path) == room)) - {room}
    assert len(imported) <= (MOST_OF_A_FRAME if room in FRAMES else MOST), f"{room} imports {sorted(imported)}"


def test_files_stay_readable():
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350, f"{path.name} has {lines} lines: it wants to be two rooms"
