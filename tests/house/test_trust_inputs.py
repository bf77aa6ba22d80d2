"""Model files that are damaged, of wrong types, absurd, or no files at all: a one-line error, and nothing hangs."""

import json
import os
import shutil
import signal
import sys

import pytest
import torch

from jettison.core.documents import parse_json, read_json
from jettison.core.errors import JettisonError, UsageError, guarded, stderr
from jettison.core.files import write_json
from jettison.domains.text.data import read_documents
from jettison.graph.checkpoint import INDEX
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder, open_shape

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def hurry():
    """Fail a test that hangs, for example on a pipe or on millions of layers.

    The limit of 60 seconds is generous, since others use the machine, too.
    """

    def late(*_):
        raise AssertionError("it hangs")

    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny("llama"), tmp_path / "m")


def change(file, **values):
    """Set fields of a JSON file."""
    write_json(file, json.loads(file.read_text()) | values)


def replace(path, kind):
    """Replace a file by something that is no readable file, or by a sparse file of 16 GB."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:  # sparse: it takes no space on the disk
        with open(path, "wb") as handle:
            handle.truncate(1 << 34)


KINDS = ("pipe", "endless", "folder", "loop", "huge")


class TestNoFiles:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["config.json", INDEX, "model.safetensors", "tokenizer.json", "jettison.json"])
    def test_what_is_no_file(self, folder, name, kind, jettison):
        replace(folder / name, kind)
        if name == "jettison.json":
            code, _, err = jettison("report", folder)
        else:
            code, _, err = jettison("evaluate", folder, "--text", "wikitext2", "--tokens", 128, "--window", 64)
        assert code in (1, 2) and err.count("error: ") == 1 and "Traceback" not in err, err
        assert name in err or (name == "config.json" and "has no config.json" in err)

    @pytest.mark.parametrize("kind", KINDS)
    def test_texts(self, tmp_path, kind):
        replace(tmp_path / "text.txt", kind)
        with pytest.raises(UsageError, match=r"no text .*text\.txt"):
            read_documents(tmp_path / "text.txt")

    def test_texts_of_other_encodings(self, tmp_path):
        (tmp_path / "wide.txt").write_bytes("It was the best of times.".encode("utf-16-le"))  # also valid UTF-8
        with pytest.raises(UsageError, match="has zero bytes"):
            read_documents(tmp_path / "wide.txt")

    @pytest.mark.parametrize("name", ["a\0b", "x" * 20_000, "x/" * 10_000, "x " * 10_000, "caf\udce9"])
    def test_names_that_are_none(self, name):
        for read in (read_documents, ModelFolder, open_shape):
            with pytest.raises(UsageError, match="^no (text|model|folder)") as caught:
                read(name)
            assert len(str(caught.value)) < 6000

    @pytest.mark.parametrize("kind", ["latin", *KINDS])
    def test_a_card_that_cannot_be_read_states_no_licence(self, folder, kind):
        if kind == "latin":
            (folder / "README.md").write_bytes(b"---\nlicense: mit\nauthor: Andr\xe9\n---\n")
        else:
            replace(folder / "README.md", kind)
        assert ModelFolder(folder).license == ("mit" if kind == "latin" else "")


class TestJson:
    @pytest.mark.parametrize("depth", [65, 1000, 5000, 200_000])
    def test_deep_nesting(self, folder, depth):
        text = '{"model_type": "llama", "x": ' + "[" * depth + "]" * depth + "}"
        (folder / "config.json").write_text(text)
        with pytest.raises(JettisonError, match=r"config\.json is not readable JSON: it is nested too deeply"):
            ModelFolder(folder)

    def test_nesting_that_occurs(self):
        assert parse_json(b"[" * 60 + b"]" * 60, "it")

    @pytest.mark.parametrize("digits", [101, 400, 5000])
    def test_numbers_of_too_many_digits(self, folder, digits):
        """Python makes no float of 309 digits or more, and no text of 4,301 digits or more."""
        (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": ' + "9" * digits + "}")
        with pytest.raises(
            JettisonError, match=f"not readable JSON: it has a number of {digits:,} digits; at most 100"
        ):
            ModelFolder(folder)
        assert parse_json(b"9" * 100, "it") == 10**100 - 1

    def test_halves_of_surrogate_pairs_are_written_and_read_back(self, tmp_path):
        value = {"caf\udce9": "\ud800", "é": "日本"}  # file names that are not UTF-8 look like this in Python
        write_json(tmp_path / "x.json", value)
        assert read_json(tmp_path / "x.json") == value
        assert "日本" in (tmp_path / "x.json").read_text()

    @pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "\xff", "{"])
    def test_other_values(self, folder, text):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(JettisonError, match=r"config\.json (holds|is not readable)"):
            ModelFolder(folder)


class TestIndex:
    @pytest.mark.parametrize("found", [[], None, "model.safetensors", 5])
    def test_maps_of_other_types(self, folder, found):
        write_json(folder / INDEX, {"weight_map": found})
        with pytest.raises(JettisonError, match="weight_map is .*; an object from tensors to files is needed"):
            _ = ModelFolder(folder).checkpoint

    @pytest.mark.parametrize("name", [None, 5, ["model.safetensors"], {"a": 1}, "", "a\0b", "x" * 5000])
    def test_names_of_other_types(self, folder, name):
        write_json(folder / INDEX, {"weight_map": {UP: name}})
        with pytest.raises(JettisonError, match=rf"weight_map says .* of '{UP}'; the name of a file is needed"):
            _ = ModelFolder(folder).checkpoint

    @pytest.mark.parametrize(
        ("name", "said"),
        [("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("\u202e", r"\u202e"), ("é :cat: [b]", "é :cat: [b]")],
    )
    def test_names_are_repeated_on_one_line(self, folder, name, said, jettison):
        write_json(folder / INDEX, {"weight_map": {UP: name}})
        code, _, err = jettison("evaluate", folder)
        assert code == 1 and err == f"error: {folder}: shard {said} is named by {INDEX} but missing\n"

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x"])
    def test_names_that_leave_the_folder(self, folder, name):
        write_json(folder / INDEX, {"weight_map": {UP: name}})
        with pytest.raises(JettisonError, match="outside the folder"):
            _ = ModelFolder(folder).checkpoint


class TestConfig:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"hidden_size": 10**12}, "parameters; at most 1e.13 are read"),
            ({"vocab_size": 10**12}, "parameters; at most 1e.13 are read"),
            ({"intermediate_size": 10**12}, "parameters; at most 1e.13 are read"),
            ({"head_dim": 10**12}, "parameters; at most 1e.13 are read"),
            ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10,000,000; at most 1,024 are read"),
            ({"num_hidden_layers": 1e300}, "num_hidden_layers = .* at most 1,024 are read"),
            ({"num_labels": 10**9}, "num_labels = 1,000,000,000; at most"),
            ({"text_config": {"num_hidden_layers": 10**12}}, "num_hidden_layers = .* at most 1,024 are read"),
            ({"text_config": 5}, "text model is int; an object is needed"),
            ({"text_config": {}}, "text model is dict; an object is needed"),
            ({"pad_token_id": 10**12}, "no causal language model can be built.*[Pp]adding_idx"),
            ({"quantization_config": "gptq"}, "quantization_config is str; an object is needed"),
            ({"quantization_config": [1]}, "quantization_config is list; an object is needed"),
            ({"dtype": "Tensor"}, "dtype = .*Tensor.*; a type of torch such as bfloat16 is needed"),
            ({"dtype": 5}, "dtype = 5; a type of torch"),
            ({"sliding_window": "x"}, "sliding_window = 'x'; a whole number is needed"),
            ({"hidden_act": 5}, "cannot be used"),
        ],
        ids=str,
    )
    def test_absurd_ones(self, folder, values, words):
        change(folder / "config.json", **values)
        with pytest.raises(UsageError, match=words):
            _ = ModelFolder(folder).anatomy

    def test_absurd_numbers_of_experts(self, tiny, tmp_path):
        folder = shutil.copytree(tiny("gpt_oss"), tmp_path / "m")
        change(folder / "config.json", num_local_experts=10**7)
        with pytest.raises(UsageError, match="num_local_experts = 10,000,000; at most 65,536 are read"):
            _ = ModelFolder(folder).anatomy

    def test_tables_larger_than_memory(self, tiny, tmp_path, monkeypatch):
        folder = shutil.copytree(tiny("llama"), tmp_path / "m")
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"available": 16}))
        with pytest.raises(UsageError, match="the tables of this config take .* GB of memory are free"):
            _ = ModelFolder(folder).skeleton

    def test_outputs_have_names_whatever_the_config_says(self, folder):
        change(folder / "config.json", return_dict=False)
        model = load_dense(ModelFolder(folder))
        assert model(torch.ones(1, 4, dtype=torch.int64)).logits.shape == (1, 4, 4096)

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
    def test_types_that_nothing_runs_in(self, folder, dtype):
        change(folder / "config.json", dtype=dtype)
        with pytest.raises(UsageError, match=f"dtype = '{dtype}'; valid: float16, bfloat16, float32, float64"):
            load_dense(ModelFolder(folder))

    def test_errors_of_others_are_one_line(self, capfd):
        class PanicException(BaseException):
            """Stands in for panics of Rust code, which do not derive from Exception."""

        for error in (ValueError("a\nb\n\nadvice"), PanicException("a\nb")):
            with pytest.raises(UsageError, match="^reading: a b$"), guarded("reading", rust=True):
                os.write(2, b"noise")
                raise error
        assert capfd.readouterr().err == "noise", "a panic's is the error itself"
        with guarded("outer", rust=True), guarded("inner", rust=True):
            os.write(stderr(), b"last words")
            os.write(2, b"from C")
            print("from Python", file=sys.stderr)
        assert capfd.readouterr().err in ("last wordsfrom Python\nfrom C", "last wordsfrom Cfrom Python\n")
        for error in (KeyboardInterrupt(), SystemExit(), JettisonError("mine")):
            with pytest.raises(type(error)) as caught, guarded("reading"):
                raise error
            assert caught.value is error


@pytest.mark.parametrize("verb", ["evaluate", "compress", "generate", "sensitivity", "measured", "importance"])
def test_what_a_model_refuses_only_while_it_runs_is_one_line(tiny, tmp_path, verb):
    """With a dropout of -0.1, a model can be built but fails in its first forward pass."""
    from jettison import compress, evaluate, load
    from jettison.domains.text.data import Text
    from jettison.encodings.uniform import UniformGrid
    from jettison.statistics.importance import measure_units
    from jettison.statistics.sensitivity import sensitivity

    folder = shutil.copytree(tiny("opt"), tmp_path / "m")
    change(folder / "config.json", dropout=-0.1)
    source = ModelFolder(folder)
    parts = {"up": [linear for linear in source.anatomy if "up" in linear.roles]}
    losses = lambda kind: sensitivity(source, parts, {"up": [UniformGrid(4, 32)]}, Text(), kind=kind)
    run = {
        "evaluate": lambda: evaluate(folder, texts=["books"], tokens=256),
        "compress": lambda: compress(folder, "w4", tmp_path / "out"),
        "generate": lambda: load(folder).generate("It was", tokens=2),
        "sensitivity": lambda: losses("gradients"),
        "measured": lambda: losses("measured"),
        "importance": lambda: measure_units(folder, Text(), samples=1),
    }
    with pytest.raises(UsageError, match="^the opt model does not run with its config: dropout probability.*-0.1$"):
        run[verb]()
