"""Choosing draft models for speculative decoding: importance, records, views, exported models, the command."""

import contextlib
import json
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from jettison.core.errors import JettisonError, UsageError
from jettison.core.kept import read_record, write_record
from jettison.core.sealed import write_sealed
from jettison.core.tensors import write_tensors
from jettison.domains.text.data import Text
from jettison.formats.packed import UnpackedFolder
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.graph.halves import run_bits, skipped_halves
from jettison.graph.surgery import drop_units
from jettison.kernels import native
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.runtime import views as view
from jettison.runtime.load import load
from jettison.runtime.speculative.choose import draft, export_draft
from jettison.runtime.speculative.draft import ROLES, Draft, View, read_corpus, read_draft, write_corpus, write_draft
from jettison.statistics import importance
from jettison.statistics.importance import choose, measure_units, rank

PACKED = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "clip": False}}]}
DEEP = {"num_hidden_layers": 4}


@pytest.fixture(scope="module")
def deep(tiny):
    return tiny("llama", **DEEP)


@pytest.fixture(scope="module")
def packed(deep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "out"
    compress(deep, load_recipe(PACKED), folder)
    return folder


class TestImportance:
    @pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen3_moe", "gemma3_text"])
    def test_block_by_block_as_in_one_piece(self, tiny, family):
        """A block's Fisher trace and influence are those of one backward pass through the whole model."""
        source = ModelFolder(tiny(family))
        measured = measure_units(source, Text(), samples=2, length=16)
        windows = Text().windows(source, 16, 2)
        model = load_dense(source, torch.float32).eval()
        linears = [linear for linear in source.anatomy.of_block(1) if "down" in linear.roles or "up" in linear.roles]
        linears += [linear for linear in source.anatomy.of_block(1) if "gate" in linear.roles]
        weights = [model.get_submodule(linear.name).weight for linear in dict.fromkeys(linears)]
        expected = taylor = 0.0
        for window in windows:
            logits = model(window[None]).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, window[1:])
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    expected += float(gradient.square().sum()) / 2
                    taylor += float((gradient * weight).square().sum()) / 2
        assert measured["1.mlp"]["trace"] == pytest.approx(expected, rel=1e-3)
        assert measured["1.mlp"]["taylor"] == pytest.approx(taylor, rel=1e-3)
        states = model(windows, output_hidden_states=True).hidden_states[:2]
        cosine = torch.nn.functional.cosine_similarity(*states, dim=-1).mean()
        assert measured["0"]["influence"] == pytest.approx(1 - float(cosine), rel=1e-3, abs=1e-5)

    def test_a_killed_run_continues(self, deep, monkeypatch):
        whole = measure_units(deep, Text(), samples=2, length=12)
        seen, backward = [], importance._backward

        def counted(*arguments):
            seen.append(arguments[2])
            if arguments[2] == 1 and seen.count(1) == 1:
                raise KeyboardInterrupt
            return backward(*arguments)

        monkeypatch.setattr(importance, "_backward", counted)
        monkeypatch.setattr(importance, "cache_folder", lambda folder=importance.cache_folder() / "again": folder)
        with pytest.raises(KeyboardInterrupt):
            measure_units(deep, Text(), samples=2, length=12)
        assert measure_units(deep, Text(), samples=2, length=12) == whole
        assert seen == [3, 2, 1, 1, 0]

    def test_all_readings_and_baselines(self, deep):
        measured = measure_units(deep, Text(), samples=2, length=12)
        for halves, count in ((False, 4), (True, 8)):
            for method in importance.METHODS:
                for perturbation in importance.PERTURBATIONS:
                    assert len(rank(measured, method, perturbation=perturbation, halves=halves)) == count
                chosen = choose(measured, 0.5, method, halves=halves)
                assert len(chosen) == count // 2 and not {unit[0] for unit in chosen} & {"0", "3"}
        assert choose(measured, 0.25, "last") == ("2",) and choose(measured, 0.25, "stride") == ("2",)
        assert len({choose(measured, 0.25, "random", seed=seed, halves=True) for seed in range(6)}) > 1
        removal, variance = (rank(measured, perturbation=kind) for kind in ("removal", "variance"))
        assert all(variance[unit] <= removal[unit] for unit in removal)

    @pytest.mark.parametrize(("ratio", "method"), [(0.75, "fisher"), (0.05, "last"), (1.0, "last"), (-1, "fisher")])
    def test_ratios_that_cannot_be(self, deep, ratio, method):
        with pytest.raises(UsageError, match=r"valid here: 0.25 to 0.5"):
            choose(measure_units(deep, Text(), samples=2, length=12), ratio, method)

    def test_names_that_are_none(self, deep):
        measured = measure_units(deep, Text(), samples=2, length=12)
        with pytest.raises(UsageError, match="unknown method 'fischer' .*did you mean 'fisher'"):
            rank(measured, "fischer")
        with pytest.raises(UsageError, match="unknown perturbation"):
            rank(measured, perturbation="noise")
        with pytest.raises(UsageError, match="at least 2"):
            measure_units(deep, Text(), length=1)


class TestUnits:
    def test_what_runs(self):
        assert run_bits(("1", "2.mlp", "0.attention"), 4) == bytes([2, 0, 1, 3])

    @pytest.mark.parametrize("unit", ["4", "-1", "1.norm", "x", ""])
    def test_units_that_are_none(self, unit):
        with pytest.raises(UsageError, match="a unit is a block, 0 to 3"):
            skipped_halves([unit], 4)

    def test_something_must_stay(self):
        with pytest.raises(UsageError, match="at least one half of one must stay"):
            skipped_halves(["0", "1.attention", "1.mlp"], 2)


class TestDraft:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"skip": ("1",), "length": 0}, "length = 0 of a draft: it must be 1 to 64"),
            ({}, "a draft of nothing"),
            ({"lookup": 99}, "lookup = 99"),
            ({"skip": ("1",), "corpus": True}, "needs lookup"),
            ({"view": {"bits": 2, "group_size": 64, "roles": ["nose"]}}, "nose"),
            ({"skip": ("1",), "speed": 2}, "a draft has no 'speed'"),
        ],
    )
    def test_drafts_that_cannot_be(self, values, said):
        with pytest.raises(UsageError, match=said):
            Draft.of(values)

    def test_it_is_read_as_it_was_written(self, packed):
        source = ModelFolder(packed)
        chosen = Draft(skip=("1", "2.mlp"), view=View(2, 32, ("up",)), lookup=3, length=5)
        write_draft(source, chosen, "fast", {})
        assert read_draft(source) == (chosen, "fast")

    def test_a_draft_of_another_checkpoint(self, packed, deep, tmp_path):
        other = tmp_path / "other"
        compress(deep, load_recipe(PACKED, ["quantize.bits=3"]), other)
        write_draft(ModelFolder(packed), Draft(lookup=2), "", {})
        (other / "draft.json").write_bytes((packed / "draft.json").read_bytes())
        with pytest.raises(UsageError, match="is of another checkpoint"):
            load(other).generate("It was", tokens=4, draft="auto")

    def test_a_damaged_record(self, packed):
        """Any flipped bit is an error, and so is an intact record that holds no valid draft."""
        source = ModelFolder(packed)
        write_draft(source, Draft(lookup=2, view=View()), "", {"rows": [1.5]})
        path = packed / "draft.json"
        good = path.read_bytes()
        random = Random(0)
        for at in [*random.sample(range(len(good)), 40), good.index(b"2,")]:
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << random.randrange(8)]) + good[at + 1 :])
            with contextlib.suppress(JettisonError):
                assert read_draft(source)[0] == Draft(lookup=2, view=View()) and json.loads(path.read_text())
        path.write_bytes(good)
        record = read_record(path)
        bad = [{"lookup": "all"}, {"skip": [1]}, {"skip": "1"}, {"view": "up"}, {"view": {"bits": 99}}, {"lookup": 2.5}]
        bad += [{"view": {"bit": 2}}, {"lookup": 1, "acceptance": 7}, {"lookup": 1, "costs": {"draft": -1}}, [], "x", 7]
        for value in bad:
            write_record(path, record | {"draft": value})
            with pytest.raises(JettisonError, match="is not a draft that can be read"):
                read_draft(source)
        for text in ("", "[]", "{}", "null", '{"draft": {}}'):
            path.write_text(text)
            with pytest.raises(JettisonError, match="draft.json"):
                read_draft(source)

    def test_a_damaged_corpus(self, packed):
        source = ModelFolder(packed)
        write_corpus(source, torch.arange(64))
        path = packed / "draft.safetensors"
        good = path.read_bytes()
        for at in (0, 9, len(good) // 3, len(good) // 2, len(good) - 250, len(good) - 4):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(JettisonError, match="is damaged: run `jettison draft .* --corpus TEXT` again"):
                read_corpus(source)
        for tensors in (
            {"tokens": torch.zeros(2, 2, dtype=torch.int32)},
            {"tokens": torch.zeros(2)},
            {"a": torch.ones(1)},
        ):
            write_sealed(path, tensors)
            with pytest.raises(JettisonError, match="is damaged"):
                read_corpus(source)
        path.unlink()
        path.mkdir()
        with pytest.raises(JettisonError, match="is damaged"):
            read_corpus(source)
        path.rmdir()

    def test_none_recorded(self, tiny):
        with pytest.raises(UsageError, match="`jettison draft .*` chooses a draft"):
            load(tiny("llama")).generate("It was", tokens=4, draft="auto")

    def test_a_corpus_with_tokens_that_the_model_has_not(self, packed):
        loaded, chosen = load(packed), Draft(lookup=2, corpus=True)
        write_corpus(loaded.source, torch.tensor([1, 2, 4096]))
        with pytest.raises(UsageError, match="has token 4096: .* has tokens 0 to 4095"):
            loaded.generate("It was", tokens=4, draft=chosen)
        write_corpus(loaded.source, torch.tensor([1, 2, 3, 1, 2, 3]))
        assert loaded.generate("It was", tokens=8, draft=chosen).text == loaded.generate("It was", tokens=8).text

    def test_several_prompts(self, packed):
        with pytest.raises(UsageError, match="one prompt at a time"):
            load(packed).generate(["It was", "He"], tokens=4, draft=Draft(lookup=2))

    @pytest.mark.skipif(native.library() is None, reason="built without a compiler")
    def test_a_view_of_as_many_bits(self, packed):
        with pytest.raises(UsageError, match="no linear of .* has more bits"):
            load(packed).generate("It was", tokens=4, draft=Draft(view=View(4)))

    @pytest.mark.skipif(native.library() is None, reason="built without a compiler")
    def test_views_are_kept_and_made_again_when_damaged(self, packed, monkeypatch, tmp_path):
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
        chosen, texts, calls = Draft(view=View(2, 32, ("up",)), adaptive=False), [], []
        monkeypatch.setattr(view, "rounded", lambda *args, make=view.rounded: calls.append(args) or make(*args))
        flip = lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        for damage, expected_calls in ((None, 4), (None, 0), (lambda data: data[:200], 4), (flip, 4), (None, 0)):
            files = list(tmp_path.glob("views/*.safetensors"))
            if damage:
                files[0].write_bytes(damage(files[0].read_bytes()))
            loaded = load(packed)
            texts.append(loaded.generate("It was", tokens=12, draft=chosen).speculation.rounds)
            assert len(calls) == expected_calls
            calls.clear()
        assert all(text == texts[0] for text in texts)

    @pytest.mark.skipif(native.library() is None, reason="built without a compiler")
    def test_views_that_differ_are_kept_apart(self, packed, monkeypatch, tmp_path):
        """Views with and without the head have the same name."""
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
        body = tuple(role for role in ROLES if role != "head")
        for roles in (body, ROLES):
            assert load(packed).generate("It was", tokens=4, draft=Draft(view=View(2, 32, roles))).text
        assert len(list(tmp_path.glob("views/*.safetensors"))) == 2


class TestModels:
    @pytest.mark.parametrize("skip", [("1",), ("1", "2.mlp"), ("2.attention",)])
    def test_an_assistant_shares_weights(self, deep, skip):
        """Assisted generation of transformers with the assistant writes the same text as plain generation."""
        source = ModelFolder(deep)
        model = load_dense(source, torch.float32).eval()
        helper = drop_units(model, source.anatomy.family, skip)
        blocks = 4 - sum("." not in unit for unit in skip)
        assert helper.config.num_hidden_layers == len(helper.model.layers) == blocks
        assert helper.lm_head.weight is model.lm_head.weight
        assert helper.model.layers[0].mlp is model.model.layers[0].mlp
        ids = torch.tensor([[5, 6, 7, 8]])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        plain = model.generate(ids, **options)
        assert model.generate(ids, assistant_model=helper, **options).tolist() == plain.tolist()
        assert len(model.model.layers) == 4 and model.config.num_hidden_layers == 4

    @pytest.mark.parametrize("view", [None, View(2, 32, ("gate", "up"))])
    def test_an_exported_draft_is_the_draft(self, packed, tmp_path, view):
        """transformers and Jettison load the export; its logits are those of the model without the skipped blocks."""
        export_draft(packed, Draft(skip=("1",), view=view), tmp_path / "draft")
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        exported = load(tmp_path / "draft", exact=True, dtype=torch.float32)
        target = load(packed, exact=True, dtype=torch.float32)
        helper = drop_units(target.model, target.source.anatomy.family, ("1",))
        if view is None:
            with torch.no_grad():
                assert torch.allclose(exported.logits(ids), helper(ids).logits, atol=1e-4)
        else:
            bits = [module.grid.bits for name, module in exported.model.named_modules() if name.endswith("up_proj")]
            assert bits == [2, 2, 2]
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32)
        with torch.no_grad():
            assert torch.allclose(reference(ids).logits, exported.logits(ids), atol=1e-3)

    def test_exports_that_cannot_be(self, packed, tmp_path):
        with pytest.raises(UsageError, match="only whole blocks"):
            export_draft(packed, Draft(skip=("1.mlp",)), tmp_path / "a")
        with pytest.raises(UsageError, match="has no draft model"):
            export_draft(packed, Draft(lookup=2), tmp_path / "b")
        with pytest.raises(UsageError, match="is not empty"):
            export_draft(packed, Draft(skip=("1",)), packed)

    def test_packed_folders_read_as_dense(self, packed):
        source = UnpackedFolder(packed)
        linear = next(linear for linear in source.anatomy if "up" in linear.roles)
        expected = load(packed, exact=True).model.get_submodule(linear.name).weight
        assert torch.equal(source.read_weight(linear.name, linear.layout), expected)


@pytest.mark.skipif(native.library() is None, reason="built without a compiler")
class TestCommand:
    def test_from_choice_to_text(self, packed, jettison, tmp_path):
        arguments = ("--ratio", 0.25, "--view", "gateup2", "--prompts", 1, "--tokens", 16, "--quiet")
        code, printed, _ = jettison("draft", packed, *arguments, "--json", tmp_path / "draft.json")
        assert code == 0 and "times as fast" in printed
        record = json.loads((tmp_path / "draft.json").read_text())
        assert {"draft", "reason", "rows", "tried"} <= set(record) and len(record["rows"]) == 5
        assert all(0 <= row["acceptance"] <= 1 and row["step"] >= 0 for row in record["rows"])
        recorded, reason = read_draft(ModelFolder(packed))
        assert (recorded is None) == (record["draft"] is None) and reason == record["reason"]
        options = ("--prompt", "It was", "--tokens", 12, "--temperature", 0, "--quiet")
        texts = [jettison("generate", packed, *options, "--draft", name)[1] for name in ("none", "auto", "lookup")]
        assert texts[0] == texts[1] == texts[2]

    def test_what_drafts_did_is_printed(self, packed, jettison):
        code, printed, _ = jettison("generate", packed, "--tokens", 24, "--temperature", 0, "--draft", "lookup")
        assert code == 0 and "tokens per step" in " ".join(printed.split())

    def test_bad_usage(self, packed, jettison):
        for arguments, words in (
            (("--ratio", 0.9), "ratio = 0.9"),
            (("--view", "all9"), "unknown view 'all9'"),
            (("--method", "fischer"), "unknown method"),
            (("--ratio", 0, "--view", "none", "--lookup", 0), "no draft to choose from"),
            (("--corpus", "nowhere.txt"), "nowhere.txt"),
        ):
            code, _, error = jettison("draft", packed, *arguments, "--tokens", 16, "--quiet")
            assert code == 2 and words in error, (arguments, error)
        code, _, error = jettison("draft", "scribe", "--quiet")
        assert code == 2 and "part of the package" in error

    def test_nothing_to_export(self, packed, jettison, tmp_path):
        write_draft(ModelFolder(packed), None, "slow", {})
        code, _, error = jettison("draft", packed, "--export", tmp_path / "out")
        assert code == 2 and "slow" in error


def test_tensors_of_a_killed_importance_run_are_hidden(tmp_path):
    """A folder with only a kept gradient still counts as empty, so the run can continue in it."""
    write_tensors(tmp_path / ".gradient.safetensors", {"0": torch.zeros(1)})
    from jettison.core.journal import Journal

    Journal(tmp_path / "units.jsonl", {"run": 1})


def test_draft_needs_something_to_say(deep):
    with pytest.raises(UsageError, match="no draft to choose from"):
        draft(deep, ratios=(), views=(), lookup=0, tokens=16)
