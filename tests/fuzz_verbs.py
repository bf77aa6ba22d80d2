"""The verbs that are tried on a fuzzed input, and the checks of what a verb did if it reported no error."""

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
# Files that a run keeps for itself; they are no part of its result.
LOGS = (
    "journal.jsonl",
    "progress.log",
    "state.safetensors",
    "originals.safetensors",
)
SECRET = "the secret of a file that lies outside"


class Refused(Exception):
    """The command refused the input: it ended with exit code 1 or 2."""


class Complaint(Exception):
    """A verb reported no error but did something wrong.

    args: words that are the same for all complaints of one kind, then optionally details.
    """


@dataclass
class Room:
    """A folder for one input.

    given: the changed input.
    out: the output of the verbs.
    outside, here (the working folder): folders that no verb may touch.
    skipped: names of verbs that do not exist.
    """

    folder: Path
    base: Path
    skipped: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.given, self.out, self.outside, self.here = (
            self.folder / name for name in ("given", "out", "outside", "here")
        )
        self.secret = self.outside / "secret.txt"
        for folder in (self.folder, self.outside, self.here, self.folder / "home"):
            folder.mkdir()
        self.secret.write_text(SECRET)

    def take(self, base: str) -> Path:
        """Copy a healthy input into the room."""
        return Path(shutil.copytree(self.base / base, self.given, symlinks=True))

    def recipe(self, recipe: dict) -> Path:
        """Write a healthy recipe and return its file."""
        file = self.folder / "recipe.json"
        file.write_text(json.dumps(bases.placed(recipe, self.base)))
        return file

    def cli(self, *arguments: object) -> None:
        """Run the command line. Raises Refused at exit codes 1 and 2, Complaint at others but 0."""
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
    """note: what was changed. verbs: what to try. wrong: names of the verbs that must refuse the input, and why."""

    note: str
    verbs: tuple[Verb, ...]
    wrong: frozenset[str] = frozenset()
    why: str = ""


def chosen(rng: random.Random, *verbs: Verb, most: int = 2) -> tuple[Verb, ...]:
    """Return one to ``most`` of the verbs, chosen at random."""
    return tuple(rng.sample(verbs, rng.randint(1, min(most, len(verbs)))))


def check_made(folder: Path) -> None:
    """Check that all shards of the index exist and that every value is finite."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in sorted(set(index["weight_map"].values())):
        for tensor, value in load_file(folder / name).items():
            if value.is_floating_point() and not torch.isfinite(value.float()).all():
                raise Complaint("compress wrote values that are not finite", tensor)


def check_finite(file: Path, what: str) -> None:
    """Check that a JSON file holds no NaN or Infinity."""
    if re.search(r"\b(NaN|Infinity)\b", file.read_text()):
        raise Complaint(f"{what} gave figures that are not finite")


def check_page(page: Path) -> None:
    """Check that a page escapes the markup of its input."""
    if mutate.MARKUP in page.read_text(encoding="utf-8"):
        raise Complaint(f"{page.name} holds foreign markup as it was given")


def nameless(text: object) -> str:
    """Replace all numbers by N, so that findings of the same kind have the same text."""
    return re.sub("[0-9]+", "N", str(text))


# Models and runs


def compress(room: Room) -> None:
    """Compress by the recipe that needs no calibration."""
    room.cli("compress", room.given, "--recipe", room.recipe(bases.ROUND), "-o", room.out / "made", *QUIET)
    check_made(room.out / "made")


def calibrate(room: Room) -> None:
    """Compress by the recipe that needs calibration."""
    room.cli("compress", room.given, "--recipe", room.recipe(bases.CALIBRATED), "-o", room.out / "made", *QUIET)
    check_made(room.out / "made")


def compress_same(room: Room) -> None:
    """Compress; if the changed index is not refused, the weights must be the same as with the healthy index."""
    compress(room)
    for path in sorted((room.base / "sharded-out").glob("*.safetensors")):
        if path.read_bytes() != (room.out / "made" / path.name).read_bytes():
            raise Complaint("compress by a changed index wrote other weights")


def load(room: Room) -> None:
    """Load the model in Python and compute logits."""
    import jettison

    logits = jettison.load(room.given).logits(bases.ids())
    if logits.shape[:2] != (1, 12):
        raise Complaint(f"logits of shape {tuple(logits.shape)}")


def generate(room: Room) -> None:
    """Generate greedily."""
    room.cli("generate", room.given, "-n", 3, "-t", 0, *QUIET)


def sample(room: Room) -> None:
    """Generate with sampling."""
    room.cli("generate", room.given, "-n", 3, "-t", 0.7, "--top-k", 5, "--top-p", 0.9, "--seed", 3, *QUIET)


def chat(room: Room) -> None:
    """Generate with the chat template."""
    room.cli("generate", room.given, "--chat", "-p", "Hello", "-n", 3, "-t", 0, *QUIET)


def drafted(room: Room) -> None:
    """Generate with the draft model of the run (speculative decoding)."""
    room.cli("generate", room.given, "--draft", "auto", "-n", 3, "-t", 0, *QUIET)


def evaluate(room: Room) -> None:
    """Evaluate on a text. Figures must be finite."""
    file = room.out / "measured.json"
    options = ("--tokens", 64, "--window", 32, "--json", file)
    room.cli("evaluate", room.given, "--text", room.base / "text.txt", *options, *QUIET)
    check_finite(file, "evaluate")


def plan(room: Room) -> None:
    """Plan with the prior losses."""
    options = ("--device", "raspberry-pi-5", "--memory", "110KB", "--context", 0, "--losses", "prior")
    room.cli("plan", room.given, *options, *QUIET)


def plan_config(room: Room) -> None:
    """Plan from the config alone and write all outputs: page and figures take most of the time."""
    file, page = room.out / "plan.json", room.out / "plan.html"
    budget = ("--device", "raspberry-pi-5", "--memory", "150KB", "--context", 16)
    files = ("-o", room.out / "recipe.yaml", "--json", file, "--report", page)
    room.cli("plan", room.given / "config.json", *budget, *files, *QUIET)
    check_finite(file, "plan")
    check_page(page)


def plan_gradients(room: Room) -> None:
    """Plan with the losses by gradients."""
    options = ("--device", "raspberry-pi-5", "--memory", "90KB", "--context", 0, "--losses", "gradients")
    room.cli("plan", room.given, *options, *QUIET)


def report(room: Room) -> None:
    """Write the report of a run."""
    page = room.out / "page.html"
    room.cli("report", room.given, "-o", page, *QUIET)
    check_page(page)


def compare(room: Room) -> None:
    """Compare a run with the healthy one."""
    room.cli("compare", room.given, room.base / "measured", "-o", room.out / "compare.html", *QUIET)
    check_page(room.out / "compare.html")


def verify(room: Room) -> None:
    """Verify a run, where that command exists."""
    from jettison.cli.app import COMMANDS

    if "verify" in COMMANDS:
        room.cli("verify", room.given, *QUIET)
    else:
        room.skipped.add("verify")


def forecast(room: Room) -> None:
    """Forecast the cost of a recovery."""
    room.cli("recover", room.given, "--dry-run", *QUIET)


def evaluate_program(room: Room) -> None:
    """Evaluate a pipeline with a program from one seed. Figures must be finite."""
    file = room.out / "measured.json"
    room.cli("evaluate", room.given, "--count", 1, "--json", file, *QUIET)
    check_finite(file, "evaluate")


def run_program(room: Room) -> None:
    """Load the pipeline in Python and let its program run."""
    import jettison

    pipe = jettison.load(room.given).pipeline()
    pipe.set_progress_bar_config(disable=True)
    sample = pipe(class_labels=[1], num_inference_steps=4, guidance_scale=1.0, output_type="np").images
    if sample.shape[0] != 1:
        raise Complaint(f"images of shape {sample.shape}")


def continue_program(room: Room) -> None:
    """Continue a run with a program. The files must be those of the run that nothing disturbed."""
    room.cli("compress", room.base / "pipeline", "--recipe", room.recipe(bases.SKIPPING), "-o", room.given, *QUIET)
    check_same(room.given, room.base / "programmed", "again")


def continue_compress(room: Room) -> None:
    """Continue a run twice. Both times the files must be those of the run that nothing disturbed."""
    for time in ("again", "once more"):
        arguments = ("--recipe", room.recipe(bases.WHOLE), "-o", room.given)
        room.cli("compress", room.base / "model", *arguments, *QUIET)
        check_same(room.given, room.base / "run", time)


def continue_recover(room: Room) -> None:
    """Continue a recovery twice. Both times the files must be those of the undisturbed recovery."""
    for time in ("again", "once more"):
        room.cli("recover", room.given, "--save-every", 0, *QUIET)
        check_same(room.given, room.base / "recovered", time)


def check_same(folder: Path, whole: Path, time: str) -> None:
    """Check that ``folder`` has the files of ``whole``, except logs. time: which call it was."""
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole)
        if name.name in LOGS or name.parts[0].startswith("."):
            continue
        if not (folder / name).is_file() or _content(folder / name) != _content(path):
            raise Complaint(f"a run that was called {time} has another {nameless(name)}")


def _content(path: Path) -> object:
    """Return the bytes of a file; of a manifest all fields but the command, which names other files in a room."""
    if path.name != "jettison.json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name != "command"}


# Recipes, devices, scenarios: files in room.given with fixed names


def read_recipe(room: Room) -> None:
    """Read a recipe, write it and read it again. Both must be equal."""
    import jettison

    recipe = jettison.load_recipe(room.given / "recipe.yaml")
    file = room.out / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    first, second = (json.dumps(item.to_dict(), default=str) for item in (recipe, jettison.load_recipe(file)))
    if first != second:  # compared as texts, since NaN differs from itself
        raise Complaint("a recipe that was written reads differently")


def compress_by(room: Room) -> None:
    """Compress the healthy model by the changed recipe."""
    made = room.out / "made"
    room.cli("compress", room.base / "model", "--recipe", room.given / "recipe.yaml", "-o", made, *QUIET)
    check_made(made)


def compress_dry(room: Room) -> None:
    """Dry-run compress with the changed recipe."""
    arguments = ("--recipe", room.given / "recipe.yaml", "-o", room.out / "made")
    room.cli("compress", room.base / "model", *arguments, "--dry-run", *QUIET)


def fit_dry(room: Room) -> None:
    """Dry-run fit with the changed recipe."""
    arguments = ("--recipe", room.given / "recipe.yaml", "-o", room.out / "made", "--device", "raspberry-pi-5")
    room.cli("fit", room.base / "model", *arguments, "--dry-run", *QUIET)


def show_device(room: Room) -> None:
    """Show the changed device."""
    room.cli("devices", "show", room.given / "device.yaml", *QUIET)


def plan_device(room: Room) -> None:
    """Plan for the changed device."""
    options = ("--memory", "110KB", "--context", 0, "--losses", "prior", "-o", room.out / "recipe.yaml")
    room.cli("plan", room.base / "model", "--device", room.given / "device.yaml", *options, *QUIET)


def run_device(room: Room) -> None:
    """Run an XR scenario on the changed device."""
    device = ("--device", room.given / "device.yaml", "--workload", "xrbench-v0.1")
    room.cli("xr", "run", "vr-gaming", *device, *QUIET)


def run_scenario(room: Room) -> None:
    """Run the scenario with its costs, and write page and figures."""
    file, page = room.out / "score.json", room.out / "page.html"
    costs = ("--costs", room.given / "costs.yaml")
    room.cli("xr", "run", room.given / "scenario.yaml", *costs, "--page", page, "--json", file, *QUIET)
    check_finite(file, "xr run")
    check_page(page)


def run_named(room: Room) -> None:
    """Run the scenario by its name in the file, with another scheduler."""
    costs = ("--costs", room.given / "costs.yaml", "--scheduler", "edf")
    room.cli("xr", "run", f"{room.given / 'scenario.yaml'}:mine", *costs, *QUIET)


def sweep(room: Room) -> None:
    """Sweep the scenario over seeds."""
    room.cli("xr", "sweep", room.given / "scenario.yaml", "--accelerator", "A", "--seeds", 2, *QUIET)


# The verbs that must accept the healthy inputs. The fuzz server runs them all once, to load modules and caches.
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
    "programmed": (verify, report, evaluate_program, continue_program),  # run_program leaves a thread of diffusers
    "files": (
        read_recipe, compress_by, compress_dry, fit_dry, show_device, plan_device, run_device, run_scenario, run_named,
    ),
} | dict.fromkeys(bases.FAMILIES, (plan_config, compress, generate))  # fmt: skip
