"""Pruning in the block loop.

- Recipes, and those that are refused.
- Sparsity of the result; masks stay through quantization and recovery.
- A run killed at any write gives the same bytes.
"""

import json
import shutil

import pytest
import torch
from killing import check_kills, some_writes
from transformers import AutoModelForCausalLM

from jettison.core.errors import UsageError
from jettison.domains.text.data import Text, token_windows
from jettison.encodings.pattern import Allocation, Pattern
from jettison.formats import compressed_tensors
from jettison.formats.manifest import read_manifest
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.recovery import recover
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load
from jettison.statistics.allocation import allocate

CALIBRATION = {"text": "books", "samples": 8, "length": 32}
FAST = {"dense_steps": 4, "second_steps": 4}


def recipe(prune, *steps, where=None, **calibration):
    """Return a recipe that prunes, then does ``steps``."""
    first = {"prune": prune} | ({"where": where} if where else {})
    return {"calibration": CALIBRATION | calibration, "steps": [first, *steps]}


def quantize(method="gptq", bits=4, **options):
    """Return a quantize step for all linears of the blocks."""
    roles = ["q", "k", "v", "o", "gate", "up", "down"]
    return {"quantize": {"method": method, "bits": bits, "group_size": 32} | options, "where": {"role": roles}}


def dense_weights(folder):
    """Yield every linear of the blocks with its dense weight, (out, in) float32, as stored."""
    source = ModelFolder(folder)
    grids = read_grids(source)
    for linear in source.anatomy:
        if linear.block is None:
            continue
        if linear.name in grids:
            yield linear, compressed_tensors.read_weight(source.read, linear.name, grids[linear.name]).dequantize()
        else:
            yield linear, source.read_weight(linear.name, linear.layout)


def read_entries(cache) -> dict[tuple[str, str], float]:
    """Return the losses that sensitivity has cached: (part, pattern) -> loss."""
    lines = [json.loads(line) for file in cache.rglob("losses.jsonl") for line in file.read_text().splitlines()]
    return {(line["part"], line["grid"]): line["loss"] for line in lines if "part" in line}


def zeros_of(folder) -> dict[str, torch.Tensor]:
    """Return the sparsity mask of every linear of the blocks: True where the weight is zero."""
    return {linear.name: weight == 0 for linear, weight in dense_weights(folder)}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "opt", "gpt2", "phi3"])
@pytest.mark.parametrize("method", ["magnitude", "sds"])
def test_a_pruned_checkpoint_is_dense_with_zeros_and_transformers_loads_it(tiny, tmp_path, family, method):
    options = FAST if method == "sds" else {}
    manifest = compress(tiny(family), recipe({"method": method, "pattern": "2:4"} | options), tmp_path / "out")
    weights = dict(dense_weights(tmp_path / "out"))
    assert weights and all((weight.unflatten(1, (-1, 4)) != 0).sum(-1).max() <= 2 for weight in weights.values())
    records = [record for block in manifest["blocks"] for record in block["linears"].values()]
    assert len(records) == len(weights)
    assert all(record["pattern"] == "2:4" and record["zeros"] >= 0.5 for record in records)
    assert not ModelFolder(tmp_path / "out").quantization
    ids = torch.randint(1, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
    ours = load(tmp_path / "out", dtype=torch.float32).logits(ids)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours, atol=2e-5)


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq", "gptaq", "caldera"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantization_keeps_zeros_zero(tiny, tmp_path, method, symmetric):
    if method == "hqq" and symmetric:
        pytest.skip("hqq is asymmetric")
    prune, few = {"method": "wanda", "sparsity": 0.6}, {"iterations": 2} if method == "caldera" else {}
    compress(tiny("llama"), recipe(prune), tmp_path / "sparse")
    compress(tiny("llama"), recipe(prune, quantize(method, symmetric=symmetric, **few)), tmp_path / "both")
    sparse, both = zeros_of(tmp_path / "sparse"), zeros_of(tmp_path / "both")
    # Only the first block: later blocks see other inputs in the two runs, so their masks differ.
    first = [name for name in sparse if ".0." in name]
    assert first and all((both[name] | ~sparse[name]).all() for name in first)
    assert all(float(zero.float().mean()) > 0.59 for zero in both.values())  # 38 of the 64 weights of a row


@pytest.mark.parametrize("kind", ["owl", "sensitivity"])
def test_adaptive_sparsity_keeps_the_mean(tiny, tmp_path, kind):
    prune = {"method": "magnitude", "sparsity": 0.7, "allocation": kind, "spread": 0.1}
    manifest = compress(tiny("llama", num_hidden_layers=6), recipe(prune, samples=4), tmp_path / "out")
    records = [record for block in manifest["blocks"] for record in block["linears"].values()]
    shares = {record["zeros"] for record in records}
    assert len(shares) > 4 and min(shares) > 0.5 and max(shares) < 0.9
    zero, total = 0, 0
    for mask in zeros_of(tmp_path / "out").values():
        zero, total = zero + int(mask.sum()), total + mask.numel()
    assert zero / total == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("kind", ["owl", "sensitivity"])
@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.97, 0.995])
def test_adaptive_sparsity_keeps_the_mean_at_its_limits(tiny, kind, sparsity):
    """A spread around the mean would give sparsities below 0 or above 0.99: they are clipped."""
    source = ModelFolder(tiny("llama"))
    patterns = {linear: Pattern(sparsity) for linear in source.anatomy if linear.block is not None}
    tokens = token_windows(source, "books", 32, 4)
    shares = allocate(source, patterns, Allocation(kind, 0.1), tokens, Text("books"))
    assert set(shares) == {linear.name for linear in patterns}
    assert all(0 <= share <= max(0.99, sparsity) for share in shares.values())
    total = sum(linear.weights for linear in patterns)
    mean = sum(shares[linear.name] * linear.weights for linear in patterns) / total
    assert mean == pytest.approx(sparsity, abs=2e-6)


def test_sensitivity_of_a_part_that_lacks_some_of_it_is_not_taken_for_that_of_all(tiny, tmp_path, monkeypatch):
    """Losses are cached by the name of a part; the loss of q alone must not be used for q, k and v together."""
    source = ModelFolder(tiny("llama"))
    inside = [linear for linear in source.anatomy if linear.block is not None]
    tokens = token_windows(source, "books", 32, 4)
    find = lambda linears: allocate(
        source, {linear: Pattern(0.6) for linear in linears}, Allocation("sensitivity"), tokens, Text()
    )
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "fresh"))
    fresh = find(inside)
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "used"))
    find([linear for linear in inside if linear.role in ("q", "up")])
    assert find(inside) == fresh
    used = read_entries(tmp_path / "used")
    assert used == used | read_entries(tmp_path / "fresh")


STEPS = recipe({"method": "sds", "base": "wanda", "sparsity": 0.5, "allocation": "owl"} | FAST, quantize("gptq"))


@some_writes
@pytest.mark.parametrize(
    ("family", "steps"), [("llama", STEPS), ("gpt2", recipe({"method": "magnitude", "sparsity": 0.5}))]
)
def test_a_run_killed_at_any_write_gives_the_same_bytes(tiny, tmp_path, family, steps, most):
    check_kills(lambda out: compress(tiny(family), steps, out), tmp_path, most)


@pytest.mark.slow
def test_workers_change_nothing(tiny, tmp_path):
    steps = recipe({"method": "sds", "pattern": "2:4"} | FAST)
    one = compress(tiny("llama"), steps, tmp_path / "one")
    two = compress(tiny("llama"), steps, tmp_path / "two", workers=2)
    errors = lambda manifest: [r["error"] for block in manifest["blocks"] for r in block["linears"].values()]
    assert errors(two) == pytest.approx(errors(one), rel=1e-3)  # the number of threads changes the order of sums


QUICK = {"samples": 32, "length": 32, "batch": 4, "epochs": 4, "weight_lr": 2e-3, "lr": 5e-3}


class TestRecovery:
    @pytest.fixture(scope="class")
    def pruned(self, tiny, tmp_path_factory):
        folder = tmp_path_factory.mktemp("pruned") / "out"
        compress(tiny("llama"), recipe({"method": "wanda", "sparsity": 0.7}), folder)
        return folder

    @pytest.mark.parametrize("train", [["weights"], ["lora"], ["weights", "lora"]])
    def test_masks_hold_and_the_loss_falls(self, pruned, tmp_path, train):
        shutil.copytree(pruned, tmp_path / "out")
        changes = [f"recover.{name}={value}" for name, value in QUICK.items()]
        loss = recover(tmp_path / "out", changes=[*changes, f"recover.train={train}"])["recovery"]["loss"]
        assert sum(loss[-8:]) < 0.95 * sum(loss[:8])  # first and last epoch, 8 steps each
        before, after = dict(dense_weights(pruned)), dict(dense_weights(tmp_path / "out"))
        for (_, old), (_, new) in zip(before.items(), after.items(), strict=True):
            assert torch.equal(old == 0, new == 0)
            assert torch.equal(old, new) == ("weights" not in train)
        assert (tmp_path / "out" / "adapter").is_dir() == ("lora" in train)

    def test_features_weigh_in(self, pruned, tmp_path):
        losses = {}
        for features in (0.0, 1.0):
            out = tmp_path / str(features)
            shutil.copytree(pruned, out)
            changes = [f"recover.{name}={value}" for name, value in QUICK.items()]
            losses[features] = recover(
                out, changes=[*changes, "recover.train=[weights]", f"recover.features={features}"]
            )
        first, second = (losses[features]["recovery"]["loss"] for features in (0.0, 1.0))
        assert second[0] > first[0] + 0.01
        assert sum(second[-8:]) < sum(second[:8])

    def test_without_the_mask_the_model_grows_dense_again_and_restart_puts_the_zeros_back(self, pruned, tmp_path):
        shutil.copytree(pruned, tmp_path / "out")
        changes = [f"recover.{name}={value}" for name, value in QUICK.items()]
        recover(tmp_path / "out", changes=[*changes, "recover.train=[weights]", "recover.masked=false"])
        assert max(float(zero.float().mean()) for zero in zeros_of(tmp_path / "out").values()) < 0.3
        recover(tmp_path / "out", changes=[*changes, "recover.train=[lora]"], restart=True)
        assert all(
            torch.equal(a, b)
            for a, b in zip(zeros_of(tmp_path / "out").values(), zeros_of(pruned).values(), strict=True)
        )

    def test_the_dense_stage_may_distil_logits(self, tiny, pruned, tmp_path):
        """Pruned, re-densified with the original's logits and pruned again: nearer to the original than pruned once.

        Every model made from it still has the first model as its teacher.
        """
        shutil.copytree(pruned, tmp_path / "dense")
        changes = [f"recover.{name}={value}" for name, value in QUICK.items()]
        recover(tmp_path / "dense", changes=[*changes, "recover.train=[weights]", "recover.masked=false"])
        steps = recipe({"method": "wanda", "sparsity": 0.7})
        manifest = compress(tmp_path / "dense", steps, tmp_path / "out")
        assert manifest["teacher"] == read_manifest(pruned)["teacher"]
        assert all(float(zero.float().mean()) > 0.69 for zero in zeros_of(tmp_path / "out").values())
        once, twice = (
            evaluate(folder, texts=["books-evaluation"], tokens=2048, window=64)["texts"]["books-evaluation"]["kl"]
            for folder in (pruned, tmp_path / "out")
        )
        assert twice < once

    def test_packed_and_pruned_weights_keep_their_zeros(self, tiny, tmp_path):
        steps = recipe({"method": "sparsegpt", "pattern": "2:4", "joint": True}, quantize())
        compress(tiny("llama"), steps, tmp_path / "out")
        before = zeros_of(tmp_path / "out")
        changes = [f"recover.{name}={value}" for name, value in QUICK.items()]
        recover(tmp_path / "out", changes=[*changes, "recover.train=[lora, scales]"])
        assert all(torch.equal(before[name], zero) for name, zero in zeros_of(tmp_path / "out").items())
        with pytest.raises(UsageError, match="fits no linear of .* for weights"):
            where = {"where": {"role": ["gate", "up"]}}
            compress(
                tiny("llama"),
                recipe(
                    {"method": "magnitude", "sparsity": 0.5},
                    quantize(),
                    {"recover": {"train": ["weights"], "length": 16}} | where,
                ),
                tmp_path / "packed",
            )
            recover(tmp_path / "packed")

    @some_writes
    def test_killed_at_any_write_it_ends_with_the_same_bytes(self, pruned, tmp_path, most):
        changes = [f"recover.{name}={value}" for name, value in (QUICK | {"samples": 8, "epochs": 1}).items()]
        work = lambda out: recover(out, changes=[*changes, "recover.train=[weights]"], save_every=0)
        check_kills(work, tmp_path, most, start=pruned)


class TestRecipes:
    def test_what_is_written_is_read(self):
        steps = recipe(
            {"method": "sds", "base": "alps", "sparsity": 0.6, "scope": "row", "allocation": "owl"}, quantize()
        )
        loaded = load_recipe(steps)
        assert loaded.of("prune")[0].pattern.sparsity == 0.6
        assert loaded.of("prune")[0].allocation.kind == "owl"
        assert load_recipe(loaded.to_dict()) == loaded
        again = load_recipe(recipe({"method": "magnitude", "pattern": 124}))
        assert again.to_dict()["steps"][0]["prune"] == {"method": "magnitude", "pattern": "2:4"}

    def test_changes(self):
        changed = load_recipe(
            recipe({"method": "wanda", "pattern": "2:4"}), ["prune.sparsity=0.7", "prune.method=alps"]
        )
        assert (changed.steps[0].method, changed.steps[0].pattern.sparsity) == ("alps", 0.7)
        assert load_recipe(changed, ["prune.pattern=4:8"]).steps[0].pattern.of == 8


REFUSED = [
    ({"method": "magnitude"}, "needs 'sparsity' .* or 'pattern'"),
    ({"method": "magnitude", "sparsity": 0.5, "pattern": "2:4"}, "needs 'sparsity' .* or 'pattern'"),
    ({"method": "magnitude", "sparsity": 1.0}, "sparsity = 1.0: a share"),
    ({"method": "magnitude", "sparsity": "half"}, "sparsity = 'half': a number"),
    ({"method": "magnitude", "pattern": "4:2"}, "N:M with 0 < N < M"),
    ({"method": "wandaa", "sparsity": 0.5}, "unknown prune method 'wandaa' .did you mean 'wanda'"),
    (
        {"method": "magnitude", "pattern": "2:4", "allocation": "owl"},
        "'owl': '2:4' is the same everywhere; give a sparsity",
    ),
    ({"method": "magnitude", "sparsity": 0.5, "allocation": "owls"}, "unknown allocation 'owls'"),
    ({"method": "magnitude", "sparsity": 0.5, "spread": 2}, "spread = 2"),
    ({"method": "magnitude", "pattern": "2:4", "scope": "row"}, "2:4 already says"),
    ({"method": "magnitude", "pattern": "8:9"}, "q_proj: 8:9 does not divide a row of 64 weights; valid here: 2:4"),
    ({"method": "sparsegpt", "pattern": "2:4", "joint": True}, "joint: true needs a quantize step with gptq"),
    ({"method": "sds", "base": "gptq", "pattern": "2:4"}, "unknown base 'gptq'"),
]


@pytest.mark.parametrize(("prune", "words"), REFUSED, ids=[words[:25] for _, words in REFUSED])
def test_recipes_that_do_not_fit_are_refused(tiny, tmp_path, prune, words):
    with pytest.raises(UsageError, match=words):
        compress(tiny("llama"), recipe(prune), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # so the folder is free for the corrected recipe


def test_other_things_that_are_refused(tiny, tmp_path):
    magnitude = {"method": "magnitude", "sparsity": 0.5}
    with pytest.raises(UsageError, match="looked up, not multiplied: it is not pruned"):
        compress(tiny("llama"), recipe(magnitude, where={"role": ["embed"]}), tmp_path / "a")
    with pytest.raises(UsageError, match="two steps claim .*q_proj"):
        compress(tiny("llama"), recipe(magnitude, {"prune": magnitude}), tmp_path / "b")
    with pytest.raises(UsageError, match="lies in one tensor with other experts"):
        compress(tiny("gpt_oss"), recipe(magnitude), tmp_path / "c")
    short = tmp_path / "short.txt"
    short.write_text("It was a dark night.")
    with pytest.raises(UsageError, match="one window of 32 is needed"):
        compress(tiny("llama"), recipe({"method": "wanda", "sparsity": 0.5}, text=str(short)), tmp_path / "d")


def test_too_little_calibration_text_is_said(tiny, tmp_path, capfd):
    """With fewer tokens than inputs the Hessians are singular: a note counts them, and the weights are finite."""
    manifest = compress(tiny("llama"), recipe({"method": "sds", "pattern": "2:4"} | FAST, samples=1), tmp_path / "out")
    assert "14 matrices saw fewer tokens than they have inputs, such as" in manifest["check"]["notes"][0]
    assert all(torch.isfinite(weight).all() for _, weight in dense_weights(tmp_path / "out"))


def test_a_head_is_pruned_only_where_it_is_named(tiny, tmp_path):
    compress(
        tiny("qwen3"),
        recipe({"method": "magnitude", "sparsity": 0.5}, where={"role": ["head", "q", "k", "v"]}),
        tmp_path / "out",
    )
    out = ModelFolder(tmp_path / "out")
    assert not out.anatomy.tied
    assert float((out.read("lm_head.weight") == 0).float().mean()) >= 0.5
    assert torch.equal(
        out.read("model.embed_tokens.weight"), ModelFolder(tiny("qwen3")).read("model.embed_tokens.weight")
    )
