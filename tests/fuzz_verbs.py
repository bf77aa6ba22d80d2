"""What is done with a fuzzed input, each in a room of its own, and what must be true where no error is reported."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_bases as bases
import fuzz_mutations as mutate
import torch
from safetensors.torch import load_file

QUIET = ("-q",)
LOGS = (
    "journal.jsonl",
    "progress.log",
    "state.safetensors",
    "originals.safetensors",
)  # what a run needs, not what it made
SECRET = "the secret of a file that lies outside"


class Refused(Exception):
    """The command ended with one of the two exit codes that say so."""


class Complaint(Exception):
    """What was done without an error is wrong: the same words for the same kind, then perhaps what is special."""


@dataclass
class Room:
    """A folder for one input: what is given, what comes out, and what nobody may touch."""

    folder: Path
    base: Path
    skipped: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.given, self.out, self.outside, self.here = (
            self.folder / name for name in ("given", "out", "outside", "here")
        )
        self.secret = self.outside / "secret.txt"
        for each in (self.folder, self.outside, self.here, self.folder / "home"):
            each.mkdir()
        self.secret.write_text(SECRET)

    def take(self, base: str) -> Path:
        return Path(shutil.copytree(self.base / base, self.given, symlinks=True))

    def recipe(self, recipe: dict) -> Path:
        file = self.folder / "recipe.json"
        file.write_text(json.dumps(bases.placed(recipe, self.base)))
        return file

    def cli(self, *arguments: object) -> None:
        from jettison.cli.app import main

        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            if end.code in (1, 2):
                raise Refused from None
            if end.code not in (0, None):
                raise Complaint(f"exit code {end.code}") from None


Verb = Callable[[Room], None]


@dataclass
class Case:
    """note: what was changed. verbs: what to do. wrong: those that must refuse, because of ``why``."""

    note: str
    verbs: tuple[Verb, ...]
    wrong: frozenset[str] = frozenset()
    why: str = ""


def chosen(rng: random.Random, *verbs: Verb, most: int = 2) -> tuple[Verb, ...]:
    return tuple(rng.sample(verbs, rng.randint(1, min(most, len(verbs)))))


def check_made(folder: Path) -> None:
    """All shards that the index names are there, and every value is finite."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in sorted(set(index["weight_map"].values())):
        for tensor, value in load_file(folder / name).items():
            if value.is_floating_point() and not torch.isfinite(value.float()).all():
                raise Complaint("compress wrote values that are not finite", tensor)


def check_finite(file: Path, what: str) -> None:
    if re.search(r"\b(NaN|Infinity)\b", file.read_text()):
        raise Complaint(f"{what} gave figures that are not finite")


def check_page(page: Path) -> None:
    if mutate.MARKUP in page.read_text(encoding="utf-8"):
        raise Complaint(f"{page.name} holds foreign markup as it was given")


def nameless(text: object) -> str:
    """Without numbers, so that findings of the same kind have the same words."""
    return re.sub("[0-9]+", "N", str(text))


# Models and runs


def compress(room: Room) -> None:
    room.cli("compress", room.given, "--recipe", room.recipe(bases.ROUND), "-o", room.out / "made", *QUIET)
    check_made(room.out / "made")


def calibrate(room: Room) -> None:
    room.cli("compress", room.given, "--recipe", room.recipe(bases.CALIBRATED), "-o", room.out / "made", *QUIET)
    check_made(room.out / "made")


def compress_same(room: Room) -> None:
    """Whatever a changed index says, the weights are those of the healthy one, or it is refused."""
    compress(room)
    for path in sorted((room.base / "sharded-out").glob("*.safetensors")):
        if path.read_bytes() != (room.out / "made" / path.name).read_bytes():
            raise Complaint("compress by a changed index wrote other weights")


def load(room: Room) -> None:
    import jettison

    logits = jettison.load(room.given).logits(bases.ids())
    if logits.shape[:2] != (1, 12):
        raise Complaint(f"logits of shape {tuple(logits.shape)}")


def generate(room: Room) -> None:
    room.cli("generate", room.given, "-n", 3, "-t", 0, *QUIET)


def sample(room: Room) -> None:
    room.cli("generate", room.given, "-n", 3, "-t", 0.7, "--top-k", 5, "--top-p", 0.9, "--seed", 3, *QUIET)


def chat(room: Room) -> None:
    room.cli("generate", room.given, "--chat", "-p", "Hello", "-n", 3, "-t", 0, *QUIET)


def drafted(room: Room) -> None:
    room.cli("generate", room.given, "--draft", "auto", "-n", 3, "-t", 0, *QUIET)


def evaluate(room: Room) -> None:
    file = room.out / "measured.json"
    options = ("--tokens", 64, "--window", 32, "--json", file)
    room.cli("evaluate", room.given, "--text", room.base / "text.txt", *options, *QUIET)
    check_finite(file, "evaluate")


def plan(room: Room) -> None:
    options = ("--device", "raspberry-pi-5", "--memory", "110KB", "--context", 0, "--losses", "prior")
    room.cli("plan", room.given, *options, *QUIET)


def plan_config(room: Room) -> None:
    """The one that is written in full: the page and the figures take most of the time."""
    file, page = room.out / "plan.json", room.out / "plan.html"
    budget = ("--device", "raspberry-pi-5", "--memory", "150KB", "--context", 16)
    files = ("-o", room.out / "recipe.yaml", "--json", file, "--report", page)
    room.cli("plan", room.given / "config.json", *budget, *files, *QUIET)
    check_finite(file, "plan")
    check_page(page)


def plan_gradients(room: Room) -> None:
    options = ("--device", "raspberry-pi-5", "--memory", "90KB", "--context", 0, "--losses", "gradients")
    room.cli("plan", room.given, *options, *QUIET)


def report(room: Room) -> None:
    page = room.out / "page.html"
    room.cli("report", room.given, "-o", page, *QUIET)
    check_page(page)


def compare(room: Room) -> None:
    room.cli("compare", room.given, room.base / "measured", "-o", room.out / "compare.html", *QUIET)
    check_page(room.out / "compare.html")


def verify(room: Room) -> None:
    from jettison.cli.app import COMMANDS

    if "verify" in COMMANDS:
        room.cli("verify", room.given, *QUIET)
    else:
        room.skipped.add("verify")


def forecast(room: Room) -> None:
    room.cli("recover", room.given, "--dry-run", *QUIET)


def continue_compress(room: Room) -> None:
    """A run that continues ends with the bytes of the run that nothing disturbed; so does one that is called again."""
    for time in ("again", "once more"):
        arguments = ("--recipe", room.recipe(bases.WHOLE), "-o", room.given)
        room.cli("compress", room.base / "model", *arguments, *QUIET)
        check_same(room.given, room.base / "run", time)


def continue_recover(room: Room) -> None:
    for time in ("again", "once more"):
        room.cli("recover", room.given, "--save-every", 0, *QUIET)
        check_same(room.given, room.base / "recovered", time)


def check_same(folder: Path, whole: Path, time: str) -> None:
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole)
        if name.name in LOGS or name.parts[0].startswith("."):
            continue
        if not (folder / name).is_file() or _content(folder / name) != _content(path):
            raise Complaint(f"a run that was called {time} has another {nameless(name)}")


def _content(path: Path) -> object:
    """Its bytes; of a manifest all but the command, which here names other files."""
    if path.name != "jettison.json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name != "command"}


# Recipes, devices, scenarios: the given files have these names


def read_recipe(room: Room) -> None:
    """What is read can be written and read again, and is the same."""
    import jettison

    found = jettison.load_recipe(room.given / "recipe.yaml")
    file = room.out / "recipe.yaml"
    file.write_text(found.to_yaml(), encoding="utf-8")
    first, second = (json.dumps(each.to_dict(), default=str) for each in (found, jettison.load_recipe(file)))
    if first != second:  # as texts: NaN differs from itself
        raise Complaint("a recipe that was written reads differently")


def compress_by(room: Room) -> None:
    made = room.out / "made"
    room.cli("compress", room.base / "model", "--recipe", room.given / "recipe.yaml", "-o", made, *QUIET)
    check_made(made)


def compress_dry(room: Room) -> None:
    arguments = ("--recipe", room.given / "recipe.yaml", "-o", room.out / "made")
    room.cli("compress", room.base / "model", *arguments, "--dry-run", *QUIET)


def fit_dry(room: Room) -> None:
    arguments = ("--recipe", room.given / "recipe.yaml", "-o", room.out / "made", "--device", "raspberry-pi-5")
    room.cli("fit", room.base / "model", *arguments, "--dry-run", *QUIET)


def show_device(room: Room) -> None:
    room.cli("devices", "show", room.given / "device.yaml", *QUIET)


def plan_device(room: Room) -> None:
    options = ("--memory", "110KB", "--context", 0, "--losses", "prior", "-o", room.out / "recipe.yaml")
    room.cli("plan", room.base / "model", "--device", room.given / "device.yaml", *options, *QUIET)


def run_device(room: Room) -> None:
    device = ("--device", room.given / "device.yaml", "--workload", "xrbench-v0.1")
    room.cli("xr", "run", "vr-gaming", *device, *QUIET)


def run_scenario(room: Room) -> None:
    file, page = room.out / "score.json", room.out / "page.html"
    costs = ("--costs", room.given / "costs.yaml")
    room.cli("xr", "run", room.given / "scenario.yaml", *costs, "--page", page, "--json", file, *QUIET)
    check_finite(file, "xr run")
    check_page(page)


def run_named(room: Room) -> None:
    costs = ("--costs", room.given / "costs.yaml", "--scheduler", "edf")
    room.cli("xr", "run", f"{room.given / 'scenario.yaml'}:mine", *costs, *QUIET)


def sweep(room: Room) -> None:
    room.cli("xr", "sweep", room.given / "scenario.yaml", "--accelerator", "A", "--seeds", 2, *QUIET)


# Every verb on inputs that are as they should be: what is to be warm, and must be accepted.
HEALTHY: dict[str, tuple[Verb, ...]] = {
    "model": (
        compress, calibrate, load, generate, sample, chat, evaluate, plan, plan_config, plan_gradients,
    ),
    "sharded": (compress_same, load, generate),
    "run": (load, generate, report, evaluate, verify, continue_compress),
    "part": (continue_compress,),
    "recovered": (load, generate, evaluate, verify, forecast, continue_recover),
    "recovering": (continue_recover,),
    "measured": (report, compare, evaluate, verify, forecast, drafted),
    "files": (
        read_recipe, compress_by, compress_dry, fit_dry, show_device, plan_device, run_device, run_scenario, run_named,
    ),
} | dict.fromkeys(bases.FAMILIES, (plan_config, compress, generate))  # fmt: skip
