"""Every option of every command with invalid values: a one-line error, exit code 2, and no work begins."""

import os
import re
from importlib import import_module

import pytest

from jettison.cli.app import COMMANDS, build
from jettison.core.numbers import LAST_SEED

ROW = {"bandwidth": 50e9, "memory": 4e9, "flops": {"fp32": 1e12}, "share": 1.0}
PLAN = "plan qwen3-4b --device strix-halo --memory 3GB"
FIT, CHOSEN = "fit scribe -o OUT --memory 8MB", "fit scribe -o OUT --recipe w4"
COMPRESS, SHAPE = "compress scribe -o OUT --recipe w4", "bench decode --shape qwen3-4b"
RUN, SWEEP, LIVE, TUNE = (f"xr {verb} vr-gaming" for verb in ("run", "sweep", "live", "tune"))
SPEEDUP = {
    "--speedup": [(value, "speedup = ") for value in ("1", "0.5", "nan", "1e9", "x")] + [("2", "language model")]
}
SEEDS = {"--seed": [("-1", "seed = -1: "), (str(2**64), f"from 0 to {LAST_SEED:,}"), ("1.5", "")]}
BUDGET = {
    "--tps": [(value, "tps = ") for value in ("0", "-1", "nan", "inf", "1e300")] + [("fast", "")],
    "--memory": [("3", "has no unit"), ("lots", "GB"), ("0GB", "from 1 KB"), ("-3GB", "GB"), ("1e30GB", "from 1 KB")],
    "--context": [("-1", "context = -1"), (str(10**30), "context = "), ("1.5", "")],
    "--runtime": [("vlm", "did you mean 'vllm'"), ("", "--runtime is empty")],
    "--losses": [("guess", "auto, prior, gradients, measured"), ("", "--losses is empty")],
    "--refine": [("-1", "refine = -1"), (str(10**9), "refine = ")],
    "--device": [("abacus", "unknown device 'abacus'"), ("", "--device is empty"), ("no.yaml", "no.yaml")],
}
CHANGES = {
    "--set": [("quantize.bits", "form verb.option=value"), ("quantize.bits=9", "bits = 9"), ("", "--set is empty"),
              ("quantize.bits=[", "not valid YAML"), ("quantize.group_size=0", "group_size = 0")],
}  # fmt: skip
QUALITY = {
    "--text": [("bookz", "no text 'bookz'"), ("", "--text is empty")],
    "--tasks": [("jettison_boooks", "unknown task"), ("", "--tasks is empty")],
    "--items": [("0", "items = 0"), ("1", "items = 1"), ("-3", "items = -3"), ("few", "")],
}
FILES = [("", "is empty"), ("/", "is not the name of a file"), ("FOLDER", "is not the name of a file"),
         ("FILE/x", "is a file; a folder is needed"), ("FILE/a/x", "lies under a file"), ("LONG", "too long"),
         ("DANGLING", "link to nothing"), ("DANGLING/x", "which does not exist"), ("/proc/x", "cannot be written to"),
         ("/dev/null", "a file is needed")]  # fmt: skip
FOLDERS = [("", "is empty"), ("FILE", "is a file; a folder is needed"), ("FILE/x", "lies under a file"),
           ("DANGLING", "which does not exist"), ("LONG", "File name too long"), ("/proc/x", "cannot make folder"),
           ("/proc", "cannot be written to"), ("/", "is not empty")]  # fmt: skip
WORKERS = {
    "--workers": [("0", "workers = 0"), ("-2", "workers = -2"), (str(10**9), "workers = "), ("two", "")],
    "--address": [("nowhere", "ray://HOST:PORT"), ("", "--address is empty")],
}
SIZES = {"--size": [("x", "unknown size 'x'.*tiny"), ("", "--size is empty")]}
TIMED = {
    "--scheduler": [("x", "unknown scheduler 'x'.*edf")],
    "--seconds": [(value, "horizon = ") for value in ("0", "-1", "nan", "inf", "1e9")],
    "--drop-penalty": [("x", "unknown drop penalty 'x'")],
    "--page": FILES,
}
COMPAT = {"--compat": [("v9", "unknown compat 'v9'"), ("", "--compat is empty")]}
PARTS = {"--units": [("0", "units = 0"), ("999", "units = 999")], "--threads": [("0", "threads = 0")]}
IMAGES = {"--images": [("none", "scribe is a language model"), ("", "--images is empty")],
          "--count": [("0", "scribe is a language model"), ("-1", "scribe is a language model")]}  # fmt: skip
OF_IMAGES = {"--latency": [(value, "latency = ") for value in ("1.5x", "0", "x")],
             "--fps": [("0", "fps = 0"), ("nan", "fps = nan"), ("30", "language model")]}  # fmt: skip
OPTIONS = {
    "plan scribe": SPEEDUP,
    PLAN: BUDGET | SEEDS | CHANGES | {
        "--batch": [("0", "batch = 0"), ("-1", "batch = -1")], "--cache-bits": [("5", "cache_bits = 5: 4, 8, 16")],
        "--out": FILES, "--report": FILES,
    },
    "fit scribe -o OUT": SPEEDUP,
    FIT: BUDGET | OF_IMAGES | QUALITY | SEEDS | IMAGES | {
        "--recipe": [("w5", "unknown recipe 'w5'"), ("", "--recipe is empty")]},
    CHOSEN: {name: BUDGET[name] for name in ("--tps", "--memory", "--losses", "--refine", "--runtime")} | CHANGES | {
        "--to": [("x", "unknown format 'x'"), ("onnx", "only an image classifier"), ("", "--to is empty")]},
    "fit scribe --memory 8MB": {"-o": FOLDERS},
    "fit": {"--memory=8MB --out OUT": [("nowhere", "nowhere"), ("", "an argument is empty")]},
    COMPRESS: CHANGES | SEEDS | WORKERS | {"--images": IMAGES["--images"], "--format": [("x", "unknown format 'x'")],
        "--runtime": BUDGET["--runtime"] + [("llama.cpp", "compress does not write")]},
    "compress scribe --out OUT": {"--recipe": [("w5", "unknown recipe 'w5'"), ("no.yaml", "no.yaml does not exist")]},
    "compress scribe --recipe w4": {"-o": FOLDERS},
    "recover FOLDER": {"--save-every": [("nan", ""), ("-1", ""), ("inf", "save_every = inf")],
                       "--set": [("quantize.bits=3", "no jettison.json")], "--teacher": [("", "is empty")]},
    "evaluate scribe": QUALITY | IMAGES | {"--teacher": [("", "--teacher is empty")]},
    "generate scribe": SEEDS | {"--draft": [("x", "unknown draft 'x'"), ("", "--draft is empty")], "-n": [("0", "")]},
    "draft FOLDER": SEEDS | {
        "--activation-bits": [("4", "activation_bits = 4")],
        "--method": [("x", "unknown method 'x'.*cosine")], "--perturbation": [("x", "unknown perturbation 'x'")],
        "--view": [("x", "unknown view 'x'")], "--text": [("bookz", "no text 'bookz'")],
        "--ratio": [(value, "ratio = ") for value in ("-1", "1", "nan", "2")],
        "--lookup": [("-1", "lookup = -1"), ("17", "lookup = 17")], "--corpus": [("none.txt", "no text 'none.txt'")],
        "--temperature": [("-1", ""), ("nan", "")], "--prompts": [("0", ""), ("99999", "prompts = ")],
        "--tokens": [("1", ""), ("999999", "tokens = ")], "--export": [("", "--export is empty")],
    },
    SHAPE: CHANGES | {
        "--rounds": [("0", "rounds = 0"), ("-1", "rounds = -1")], "--context": [("0", "context = 0"), ("-1", "-1")],
        "--recipe": [("w5", "unknown recipe 'w5'")], "--against": [("x", "it must be llama.cpp")],
    },
    "bench ops": {
        "--rounds": [("0", "rounds = 0")], "--bits": [("5", "bits = 5"), ("0", "bits = 0")],
        "--rows": [("0", "rows = 0"), ("-4", "rows = -4")], "--peer": [("x", "unknown peer 'x'.*onnxruntime")],
        "--group-size": [("0", "group_size = 0"), ("-5", "group_size = -5"), ("100", "does not divide")],
        "--matrix": [("axb", "such as 9728x2560"), ("0x5", "9728x2560"), (f"128x{10**12}", "a side of a matrix")],
        "--shape": [("nowhere", "nowhere"), ("", "--shape is empty")],
    },
    "bench draft FOLDER": {"--draft": [("x", "unknown draft 'x'")]},
    "bench decode": {"--shape": [("", "--shape is empty"), ("nowhere", "nowhere")]},
    "devices show": {"--": [("abacus", "unknown device 'abacus'"), ("", "an argument is empty")]},
    RUN: SIZES | TIMED | COMPAT | SEEDS | {
        "--accelerator": [("Z", "unknown accelerator 'Z'"), ("A/9K", "unknown size '9K'")], "--trace": FILES,
        "--device": [("abacus", "unknown device 'abacus'")], "--costs": [("none.yaml", "none.yaml"), ("", "is empty")],
        "--workload": [("x", "unknown workload 'x'")], "--recipe": [("x", "only native models on devices")],
        "--seeds": [("0", "seeds = 0"), ("-1", "seeds = -1")], "--csv": FILES,
        "--offload": [("x", "MODEL=VALUE is needed"), ("GE=none.json", "none.json does not exist")],
        "--device=strix-halo --recipe": [("x", "unknown part 'x'"), ("ZZ=w4", "unknown model 'ZZ'")],
    },
    SWEEP: SIZES | TIMED | COMPAT | WORKERS | {
        "--accelerator": [("Z", "unknown accelerator 'Z'")], "--device": [("abacus", "unknown device 'abacus'")],
        "--workload": [("x", "unknown workload 'x'")], "--recipe": [("x", "use --device")],
        "--seeds": [("0", "seeds = 0")],
        "--probability": [("x", "MODEL=P is needed"), ("GE=2", "probability = 2"), ("GE=nan", "probability = nan"),
                          ("ZZ=0.5", "unknown model 'ZZ'"), ("GE=", "MODEL=P is needed")],
    },
    f"{SWEEP} --exact": {"--seconds": [("1", "only the outcomes of the official runtime")]},
    LIVE: SIZES | TIMED | SEEDS | PARTS | {
        "--recipe": [("x", "unknown part 'x'")], "--model": [("x", "MODEL=VALUE is needed")], "--trace": FILES,
        "--rounds": [("0", "rounds = 0")], "--offload": [("HT=127.0.0.1:1", "needs the workers' token")],
    },
    TUNE: SIZES | TIMED | SEEDS | PARTS | {
        "--device": [("abacus", "unknown device 'abacus'")], "--recipe": [("x", "unknown part 'x'")],
        "--floor": [("2", "floor = 2"), ("nan", "floor = nan"), ("-1", "floor = -1")],
        "--quality": [("none.yaml", "none.yaml does not exist")], "--seeds": [("0", "seeds = 0")],
        "--rounds": [("0", "rounds = 0")], "--live": [("-1", "horizon = "), ("nan", "horizon = ")],
    },
    "xr run": {"--": [("moon-walk", "unknown scenario 'moon-walk'"), ("none.yaml", "none.yaml")]},
    "xr compare": {"--": [("none.json", "two runs at least")], "none.json --": [("other.json", "does not exist")]},
    "export scribe": {"--out": FILES},
    "export scribe --out OUT": {
        "--to": [("x", "unknown format 'x'; valid: auto-round, awq"), ("", "--to is empty"),
                 (",", "one or more formats"), ("gptq", "no quantized matrices")],
        "--adapter": [("x", "unknown adapter 'x'; valid: fold, keep, merge"), ("", "--adapter is empty")],
        "--size": [("0", "size = 0: "), ("9999", "from 1 to 4,096"), ("1x", "size = '1x': "), ("", "--size is empty")],
    },
    "export scribe --to transformers": {"--out": FOLDERS[:-1]},
    "export scribe --out OUT --to transformers --verify": {
        "--text": QUALITY["--text"], "--tokens": [("0", "tokens = 0"), ("-1", "tokens = -1")],
        "--prompts": [("0", "prompts = 0"), ("1001", "from 1 to 1,000")], "--size": [("32", "for onnx alone")],
    },
    f"{LIVE} --offload HT=127.0.0.1:1": {"--token-file": [("none", "none does not exist"), ("", "is empty")]},
    "offload serve FOLDER --token-file FILE": {
        "--port": [("-1", "port = -1"), ("99999", "port = 99999")], "--devices": [("0", "devices = 0")],
        "--host": [("nowhere.invalid", "--expose"), ("", "--host is empty")],
        "--tls-cert": [("none.pem", "both")], "--tls-key": [("none.pem", "both")], "--announce": FILES,
    },
    "offload serve FOLDER": {"--token-file": [("FILE", "has 4 bytes"), ("/", "is a folder"), ("", "is empty")]},
    "offload join 127.0.0.1:1 none.safetensors --token-file FILE --fallback FOLDER": {
        "--fps": [("0", "fps = 0"), ("nan", "fps = nan")], "--wait": [("-1", "wait = -1"), ("nan", "wait = nan")],
        "--deadline-ms": [("0", "deadline_ms = 0"), ("nan", "deadline_ms = nan")], "--local": [("", "is empty")],
        "--fallback": [("", "is empty")], "--tls-ca": [("", "is empty")],
    },
    "offload capacity": {
        "--radio": [("x", "unknown radio 'x'")], "--processor": [("x", "unknown processor 'x'")],
        "--constants": [("none.yaml", "none.yaml does not exist")],
    },
    "offload play FOLDER": {
        "--fps": [("0", "fps = 0")], "--wait": [("-1", "wait = -1")], "--worker": [("nowhere", "HOST:PORT")],
        "--deadline-ms": [("nan", "deadline_ms = nan")], "--limit": [("1", "it has no setup.json")],
    },
    "offload attack --out OUT": SEEDS | {
        "--limit": [("0", "limit = 0"), ("nan", "limit = nan")], "--draws": [("0", "draws = 0")],
        "--rule": [("x", "unknown rule 'x'")], "--data": [("none", "none has no KRT"), ("", "--data is empty")],
        "--texture": [("0", "texture = 0"), ("33", "a side that divides 33")], "--tries": [("0", "tries = 0")],
        "--expressions": [("0", "expressions = 0"), ("1", "expressions = 1")], "--frames": [("0", "frames = 0")],
        "--offloaded": [("0", "offloaded = 0"), ("99", "from 1 to 15")], "--choose": [("x", "unknown choose 'x'")],
        "--encoder": [("x", "unknown encoder 'x'")], "--steps": [("0", "steps = 0")],
    },
    "offload budget": {
        "--limit": [("0", "limit = 0"), ("nan", "limit = nan")], "--draws": [("0", "draws = 0")],
        "--secrets": [("1", "secrets = 1")], "--delta": [("-1", "delta = -1")], "--every": [("0", "every = 0")],
        "--frames": [("0", "frames = 0")],
    },
    "perceive world --out OUT": SEEDS | {
        "--scenes": [("0", "scenes = 0"), ("-1", "scenes = -1")], "--frames": [("0", "frames = 0")],
        "--interval": [("0", "interval = 0"), ("nan", "interval = nan")], "--processes": [("0", "processes = 0")],
        "--place": [("x", "unknown place 'x'")], "--weather": [("x", "unknown weather 'x'")],
        "--cameras": [("x", "unknown cameras 'x'")],
        "--size": [("x", "such as 160x400"), ("0x5", "from 16 to"), ("99999x99999", "from 16 to")],
    },
    "perceive show FOLDER": {"--split": [("x", "unknown split 'x'")], "--frames": [("0", "frames = 0")]},
    "perceive show FOLDER --data FOLDER": {"--split": [("x", "is not a model folder")]},
    "perceive score FOLDER FOLDER": {"--layout": [("x", "unknown layout 'x'"), ("", "--layout is empty")]},
    "perceive train lane_regressor --data FOLDER --out OUT": SEEDS | {
        "--steps": [("0", "steps = 0")], "--batch": [("0", "batch = 0")], "--rate": [("nan", "rate = nan")],
        "--set": [("x", "field=value is needed"), ("zz=1", "unknown field 'zz'")],
        "--layout": [("x", "unknown layout 'x'")], "--save-every": [("nan", "")],
        "--stages": [("x", "unknown stage 'x'")], "--cache": [("", "is empty")],
        "--start": [("FOLDER", ""), ("", "is empty")],
    },
    "perceive evaluate FOLDER": {"--data": [("", "is empty")], "--data FOLDER --predictions": [("", "is empty")]},
    "report FOLDER": {"--out": FILES}, "compare FOLDER FOLDER": {"--out": FILES},
}  # fmt: skip
CASES = [
    (command, option, value, words)
    for command, options in OPTIONS.items()
    for option, values in options.items()
    for value, words in values
]
JSON = ["plan qwen3-4b --memory 3GB", FIT, COMPRESS, "recover FOLDER", "evaluate scribe", "report FOLDER",
        "compare FOLDER FOLDER", "generate scribe", "inspect scribe", "draft FOLDER",
        "bench ops", "devices", "devices show this",
        "devices measure", "recipes", "export scribe -o OUT", RUN, SWEEP, LIVE, TUNE, "xr compare a b"]  # fmt: skip


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    """Fail a test if a command begins work: reads a tensor, measures a time, or builds a model of XRBench."""

    def work(*_, **__):
        raise AssertionError("work began")

    def stop(room, name, by=work):
        monkeypatch.setattr(import_module(f"jettison.{room}"), name, by)

    stop("devices.device", "measure", lambda *_, **__: ROW)
    monkeypatch.setattr(import_module("jettison.graph.checkpoint").Checkpoint, "read", work)
    monkeypatch.setattr(import_module("jettison.xr.units").Units, "__enter__", work)
    stop("bench.operators", "read_limit")
    stop("xr.sources", "open_variant")
    stop("xr.tune", "agreement")
    stop("planning.search", "_solve")


@pytest.fixture
def refused(jettison, tmp_path):
    """Return refused(words of a command), which checks that the command refuses and returns its stderr.

    OUT, FOLDER, FILE, DANGLING and LONG in the words stand for paths.
    """
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("dear")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    paths = {"OUT": "out", "FOLDER": "folder", "FILE": "file", "DANGLING": "dangling", "LONG": 300 * "x"}

    def path_of(word):
        first, slash, rest = word.partition("/")
        return str(tmp_path / paths[first]) + slash + rest if first in paths else word

    def run(*words):
        code, _, err = jettison(*map(path_of, words))
        assert code == 2, err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 or "Usage:" in err, err
        assert "Traceback" not in err and len(err) < 1500
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "folder"]
        assert not list((tmp_path / "folder").iterdir()) and (tmp_path / "file").read_text() == "dear"
        return err

    return run


@pytest.mark.parametrize(
    ("command", "option", "value", "words"), CASES, ids=[" ".join(case[:3])[:90].replace("/", "|") for case in CASES]
)
def test_bad_values(refused, command, option, value, words):
    options = [] if option == "--" else option.removesuffix(" --").split()
    assert re.search(words, refused(*command.split(), *options, value))


@pytest.mark.parametrize("command", JSON)
def test_a_json_file_that_cannot_be_written(refused, command):
    for place, words in FILES:
        assert words in refused(*command.split(), "--json", place)


def test_one_file_is_not_written_twice(refused):
    assert "would be written twice" in refused(*PLAN.split(), "-o", "FOLDER/../out", "--json", "OUT")


def test_every_option_is_tried():
    """A new option needs a row in OPTIONS, or an entry in FREE."""
    tried = " ".join([*OPTIONS, *(option for options in OPTIONS.values() for option in options)])
    for name, options in every_option().items():
        assert not [option for option in options if option not in tried and option not in FREE], name


FREE = {  # switches, and options that the tests of other rooms cover
    "--help", "--json", "--quiet", "--recovery", "--pareto", "--dry-run", "--spill", "--restart", "--adapter", "--chat",
    "--halves", "--preempt", "--jitter", "--prompt", "--stop", "--exact", "--window", "--top-k", "--top-p", "--min-p",
    "--system", "--repetition-penalty", "--live", "--original", "--expose", "--hold", "--drift", "--follow",
    "--count-timing", "--subset", "--incomplete", "--latent", "--all", "--verify",
    "--version", "--install-completion", "--show-completion",
}  # fmt: skip


def every_option():
    """Return the long options of every command, by the words of the command."""
    import typer

    def walk(command, path):
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}")
        yield path, [opts for param in command.params for opts in param.opts[:1] if opts.startswith("--")]

    return dict(walk(typer.main.get_command(build()), "jettison"))


def test_there_are_options_of_every_command():
    assert {name.split()[1] for name in every_option() if " " in name} == set(COMMANDS)


def test_a_folder_that_its_owner_may_not_write(jettison, tmp_path, monkeypatch):
    """Root may write everywhere, so os.access is replaced by one that refuses."""
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: (str(path) != str(tmp_path) or not mode & os.W_OK) and real(path, mode)
    )
    for arguments in (
        ["recipes", "--json", tmp_path / "r.json"],
        ["compress", "scribe", "--recipe", "w4", "-o", tmp_path],
    ):
        code, _, err = jettison(*arguments)
        assert code == 2 and "cannot be written to: choose another one" in err
