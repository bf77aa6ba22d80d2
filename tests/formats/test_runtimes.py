"""What target runtimes load: the table, the reasons of a refusal, and a few cases against transformers."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tiny import CONFIGS
from transformers import AutoModelForCausalLM

from jettison.core.errors import UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats import compressed_tensors
from jettison.formats.runtimes import find_runtime, illegal, runtime_names
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.families import families
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.jobs import assign
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load

ROLES = {f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")}
GROUPS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def linear(role: str = "o", columns: int = 1024, rows: int = 1024, **fields) -> Linear:
    name = fields.pop("name", f"model.layers.0.{role}_proj")
    return Linear(name, (role,), rows, columns, 0, name, name, **fields)


def anatomy(blocks: int, experts: int = 0) -> Anatomy:
    """Return the anatomy of a Llama with 256 × 256 matrices, or of a Qwen3-MoE, without a model."""
    linears = [Linear("model.embed_tokens", ("embed",), 512, 256, None, "model.embed_tokens", "e", "embedding")]
    for block in range(blocks):
        block_path = f"model.layers.{block}"
        for path, role in ROLES.items():
            inner = "self_attn" if role in "qkvo" else "mlp"
            fused = f"{block_path}.{inner}.{GROUPS.get(role, path)}"
            if inner == "self_attn" or not experts:
                linears.append(Linear(f"{block_path}.{inner}.{path}", (role,), 256, 256, block, fused, fused))
                continue
            stacked = fused.replace(".mlp.", ".mlp.experts.")
            for number in range(experts):
                name = f"{block_path}.mlp.experts.{number}.{path}"
                linears.append(Linear(name, (role, "expert"), 256, 256, block, stacked, name))
    linears.append(Linear("lm_head", ("head",), 512, 256, None, "lm_head", "lm_head"))
    family = families()["qwen3_moe" if experts else "llama"]
    return Anatomy(family, blocks, tuple(linears), 0, False)


def assign_grids(model: Anatomy, *rules: tuple[str, Grid | None]) -> dict[str, Grid]:
    """Return the grid of every linear: that of the last rule whose pattern matches in its name."""
    grids = {}
    for linear in model:
        for pattern, grid in rules:
            if re.search(pattern, linear.name):
                grids[linear.name] = grid
    return {name: grid for name, grid in grids.items() if grid}


W4, W2, W8 = UniformGrid(4, 128), UniformGrid(2, 64), UniformGrid(8, 128)
BLOCKS = r"layers"


class TestTable:
    @pytest.mark.parametrize("name", runtime_names())
    def test_every_row_is_sound(self, name):
        runtime = find_runtime(name)
        assert runtime.name == name and runtime.formats
        groups = {group for family in families().values() for group in family.fused} | {"experts"}
        for format in runtime.formats:
            assert set(format.fused) <= groups
            assert format.share in ("fused", "block", "model")
            assert format.source and format.where
            assert format.parts["linears"].kinds
            for part in format.parts.values():
                assert set(part.only) | set(part.not_in) <= set(families())
                assert type(part.verified) is bool
                for kind in part.kinds:
                    for bits in kind.bits or (4,):
                        for size in kind.group_sizes or (64,):
                            assert str(UniformGrid(bits, size)).startswith(f"int{bits}")
                    assert kind.symmetric and set(kind.symmetric) <= {True, False}

    def test_the_engines_of_the_field_are_there(self):
        assert set(runtime_names()) >= {"jettison", "transformers", "vllm", "sglang", "llama.cpp", "onnxruntime"}

    def test_an_unknown_engine(self):
        with pytest.raises(
            UsageError, match=r"unknown runtime 'vlm' \(did you mean 'vllm'\?\); valid: jettison, llama"
        ):
            find_runtime("vlm")

    def test_an_engine_is_judged_by_the_format_that_is_written(self):
        assert find_runtime("sglang").format.name == "compressed-tensors"
        assert find_runtime("sglang").no_writer == ""
        assert find_runtime("llama.cpp").format.name == "gguf"
        reason = find_runtime("llama.cpp").no_writer
        assert re.search("loads gguf, which compress does not write.*made for .*vllm", reason)

    def test_fields_are_known(self):
        """No rule has a field that the reader ignores."""
        file = Path(sys.modules["jettison.formats.runtimes"].__file__).with_suffix(".yaml")
        known = {
            "grids",
            "head",
            "embedding",
            "experts",
            "fused",
            "one_grid",
            "stored_dense",
            "tied",
            "where",
            "note",
            "source",
            "verified",
        }
        of_parts = {"grids", "only", "not_in", "verified"}
        for row in yaml.safe_load(file.read_text(encoding="utf-8")).values():
            assert set(row) <= {"title", "max_rank", "formats"}
            for format in row["formats"].values():
                assert set(format) <= known
                for part, more in (("head", ()), ("embedding", ()), ("experts", ("share", "stacked", "may_stay"))):
                    if isinstance(format[part], dict):
                        assert set(format[part]) <= of_parts | set(more)


LOADS = [
    ("jettison", linear(), UniformGrid(3, 32, False)),
    ("jettison", linear("embed", layout="embedding"), UniformGrid(4, 64)),
    ("transformers", linear(), UniformGrid(7, 256)),
    ("vllm", linear(), UniformGrid(2, 64)),
    ("vllm", linear(), UniformGrid(3, 64, False)),
    ("vllm", linear("head"), UniformGrid(2, -1)),
    ("sglang", linear(), UniformGrid(4, 128, False)),
    ("sglang", linear("head", rows=151_669), UniformGrid(8, 128)),  # sglang pads the vocabulary
    ("sglang", linear(layout="conv1d"), UniformGrid(2, 64)),  # conv1d is stored dense
    ("llama.cpp", linear(), UniformGrid(2, 16, False)),
    ("llama.cpp", linear(columns=96), UniformGrid(4, 32)),
    ("onnxruntime", linear(), UniformGrid(2, 128, False)),
]

REFUSED = [
    ("jettison", linear(columns=96), UniformGrid(4, 64), "group_size 64 does not divide a row of 96"),
    ("transformers", linear(), UniformGrid(4, 64, False), "symmetric false with bits 4; valid: true$"),
    ("transformers", linear("embed", layout="embedding"), UniformGrid(4, 64), "quantized embedding; valid: 16 bits$"),
    ("vllm", linear(), UniformGrid(4, 48), "group_size 48 with bits 4, symmetric true; valid: -1, 16, 32, 64, 128$"),
    ("vllm", linear("embed", layout="embedding"), UniformGrid(3, 64), "bits 3; valid: 2, 4, 8$"),
    ("sglang", linear(), UniformGrid(2, 64), "sglang, compressed-tensors: .*o_proj: bits 2; valid: 4, 8$"),
    ("sglang", linear(), UniformGrid(8, 128, False), "symmetric false with bits 8; valid: true$"),
    ("sglang", linear(columns=192), UniformGrid(4, 64), "192 columns with bits 4.*; valid: multiples of 128$"),
    ("sglang", linear(rows=96), UniformGrid(4, 64), "96 rows with bits 4.*; valid: multiples of 64$"),
    ("llama.cpp", linear(), UniformGrid(2, 64), "symmetric true with bits 2; valid: false$"),
    ("llama.cpp", linear(), UniformGrid(4, 128), "group_size 128 with bits 4, symmetric true; valid: 32$"),
    ("llama.cpp", linear(columns=96), UniformGrid(2, 16, False), "96 columns with bits 2.*; valid: multiples of 256$"),
    ("onnxruntime", linear(), UniformGrid(3, 128), "bits 3; valid: 2, 4, 8$"),
    ("onnxruntime", linear("embed", layout="embedding"), UniformGrid(8, 32), r"bits 8; valid: 4 \(not verified\)$"),
]


class TestOneMatrix:
    @pytest.mark.parametrize(("runtime", "matrix", "grid"), LOADS, ids=lambda value: str(value)[:30])
    def test_loads(self, runtime, matrix, grid):
        assert find_runtime(runtime).allows(matrix, grid) == ""

    @pytest.mark.parametrize(("runtime", "matrix", "grid", "words"), REFUSED, ids=[row[3][:40] for row in REFUSED])
    def test_refused_with_what_would_be_valid(self, runtime, matrix, grid, words):
        reason = find_runtime(runtime).allows(matrix, grid)
        assert re.search(words, reason) and "\n" not in reason

    def test_some_families_keep_their_head_and_embedding(self):
        vllm, head, embedding = find_runtime("vllm"), linear("head"), linear("embed", layout="embedding")
        assert vllm.allows(head, W4, families()["llama"]) == ""
        assert "quantized head of gemma2; valid: 16 bits" in vllm.allows(head, W4, families()["gemma2"])
        assert vllm.allows(embedding, W4, families()["qwen3"]) == ""
        assert "quantized embedding of llama" in vllm.allows(embedding, W4, families()["llama"])

    def test_experts_stacked_in_one_tensor(self):
        expert = Linear("experts.0.up_proj", ("up", "expert"), 256, 256, 0, "experts.gate_up", "experts.0.gate_up")
        for name in ("transformers", "vllm", "sglang"):
            assert find_runtime(name).allows(expert, W4, families()["qwen3_moe"]) == ""
            assert "quantized experts of gpt_oss; valid: 16" in find_runtime(name).allows(
                expert, W4, families()["gpt_oss"]
            )
        assert find_runtime("jettison").allows(expert, W4, families()["gpt_oss"]) == ""

    def test_offered_grids_load_and_others_do_not(self):
        matrix = linear(columns=96)
        for name in runtime_names():
            runtime = find_runtime(name)
            offered = runtime.grids(matrix)
            every = [
                UniformGrid(b, size, sign)
                for b in range(2, 9)
                for size in (-1, 16, 32, 48, 64)
                for sign in (True, False)
            ]
            legal = {grid for grid in every if not runtime.allows(matrix, grid)}
            assert set(offered) == {grid for grid in legal if grid.group_size != 48}, name
            assert [grid.bits for grid in offered] == sorted(grid.bits for grid in offered)
        assert UniformGrid(4, 32) in find_runtime("llama.cpp").grids(matrix)

    def test_bits_as_the_format_stores_them(self):
        gguf = find_runtime("llama.cpp")
        assert gguf.bits_per_weight(linear(), UniformGrid(2, 16, False)) == 84 * 8 / 256
        assert gguf.bits_per_weight(linear(), UniformGrid(4, 32, False)) == 144 * 8 / 256  # Q4_K
        assert gguf.bits_per_weight(linear(columns=96), UniformGrid(4, 32, False)) == 20 * 8 / 32  # Q4_1
        assert find_runtime("vllm").bits_per_weight(linear(), W2) == W2.bits_per_weight(1024)


class TestWholeModel:
    @pytest.mark.parametrize("runtime", ["jettison", "transformers", "vllm"])
    def test_a_legal_mix_has_no_reasons(self, runtime):
        model = anatomy(36)
        assert (
            illegal(find_runtime(runtime), model, assign_grids(model, (BLOCKS, W4), ("gate|up", W2), ("head", W8)))
            == []
        )

    def test_all_reasons_at_once_one_line_each(self):
        model = anatomy(36)
        grids = assign_grids(model, (BLOCKS, W4), ("gate|up", W2), ("head", UniformGrid(3, 64)), ("embed", W4))
        lines = illegal(find_runtime("sglang"), model, grids)
        assert [line.removeprefix("sglang, compressed-tensors: ") for line in lines] == [
            "model.embed_tokens: quantized embedding; valid: 16 bits",
            "gate, up (72 matrices, first model.layers.0.mlp.gate_proj): bits 2; valid: 4, 8",
            "lm_head: bits 3; valid: 4, 8",
        ]

    def test_what_is_fused_shares_a_grid(self):
        model = anatomy(36)
        grids = assign_grids(model, (BLOCKS, W4), ("k_proj", W8), ("v_proj", None))
        (line,) = illegal(find_runtime("vllm"), model, grids)
        assert "qkv needs one grid; given: q int4 g128 sym, k int8 g128 sym, v 16 bits (36 times, first model" in line
        grids = assign_grids(model, (BLOCKS, W4), (r"layers\.7\..*up_proj", W2))
        (line,) = illegal(find_runtime("vllm"), model, grids)
        assert line.endswith("model.layers.*.mlp.gate_up needs one grid; given: gate int4 g128 sym, up int2 g64 sym")

    def test_llama_cpp_has_a_type_for_each_tensor(self):
        model = anatomy(2)
        grids = assign_grids(model, (BLOCKS, UniformGrid(4, 32)), ("k_proj|up_proj", UniformGrid(8, 32)))
        assert illegal(find_runtime("llama.cpp"), model, grids) == []
        assert len(illegal(find_runtime("jettison"), model, grids)) == 2

    @pytest.mark.parametrize(
        ("rule", "refusing"),
        [
            (("none", None), set()),
            ((r"down", W8), {"transformers", "vllm", "sglang"}),  # gate and up on one grid, down on another
            ((r"layers\.1\..*experts", W8), {"transformers"}),
            ((r"layers\.1\..*experts", None), {"transformers"}),
            ((r"layers\.1\..*experts\.2\.", W8), {"jettison", "transformers", "vllm", "sglang"}),
            ((r"experts\.2\.down", None), {"jettison", "transformers", "vllm", "sglang"}),
            ((r"experts", None), {"transformers"}),
        ],
    )
    def test_experts_share_a_grid_as_far_as_the_loader_asks(self, rule, refusing):
        model = anatomy(3, experts=4)
        grids = assign_grids(model, (BLOCKS, W4), rule)
        names = ("jettison", "transformers", "vllm", "sglang")
        assert {name for name in names if illegal(find_runtime(name), model, grids)} == refusing

    def test_rows_of_whole_groups_for_experts_of_vllm(self):
        model = anatomy(1, experts=2)
        assert illegal(find_runtime("vllm"), model, assign_grids(model, ("experts", UniformGrid(4, -1)))) == []
        (line,) = illegal(find_runtime("vllm"), model, assign_grids(model, ("experts", UniformGrid(2, -1))))
        assert "group_size -1 with bits 2, symmetric true; valid: 32, 64, 128" in line

    def test_nothing_quantized_loads_everywhere(self, tiny):
        for family in CONFIGS:
            for name in runtime_names():
                assert illegal(find_runtime(name), ModelFolder(tiny(family)).anatomy, {}) == []

    @pytest.mark.parametrize("experts", [0, 128])
    def test_it_takes_a_blink(self, experts):
        model = anatomy(48 if experts else 2500, experts=experts)
        assert len(model.linears) > 17_000
        grids = assign_grids(model, (BLOCKS, W2), ("k_proj", W8), ("experts.*down", UniformGrid(3, 48)))
        start = time.process_time()
        assert illegal(find_runtime("sglang"), model, grids)
        assert time.process_time() - start < 0.8


class TestAgainstTheRest:
    """The table agrees with the code that writes and loads."""

    @pytest.mark.parametrize("family", list(CONFIGS))
    def test_jettison_loads_what_compress_accepts(self, tiny, family):
        source = ModelFolder(tiny(family))
        quantize = lambda roles, **grid: {"quantize": {"method": "rtn", **grid}, "where": {"role": roles}}
        steps = [
            quantize(["down", "o"], bits=3, group_size=32, symmetric=False),
            quantize(["q", "k", "v", "head"], bits=8, group_size=-1),
            quantize(["embed"], bits=2, group_size=16),
        ]
        jobs = assign(source, load_recipe({"steps": steps}))
        assert illegal(find_runtime("jettison"), source.anatomy, {job.linear.name: job.grid for job in jobs}) == []

    @pytest.mark.parametrize(
        "rules", [[(".", W4)], [(".", UniformGrid(4, 32, False))], [("expert|head|q_proj", W4), ("down", W8)]]
    )
    @pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "gpt2"])
    def test_what_is_known_of_transformers_is_refused(self, tiny, family, rules):
        model = ModelFolder(tiny(family)).anatomy
        small = [(pattern, UniformGrid(grid.bits, 32, grid.symmetric)) for pattern, grid in rules]
        grids = assign_grids(model, *small)
        packed = {linear.name for linear in model if compressed_tensors.packs(linear)} & set(grids)
        if compressed_tensors.problems(model, {name: grids[name] for name in packed}):
            assert illegal(find_runtime("transformers"), model, grids)

    @pytest.mark.parametrize(
        ("role", "legal"),
        [(["expert"], True), (["expert", "q", "k", "v"], True), (["head"], False), (["gate", "up"], False)],
    )
    def test_transformers_takes_all_experts_or_nothing(self, tiny, tmp_path, role, legal):
        source = ModelFolder(tiny("qwen3_moe"))
        recipe = load_recipe(
            {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": role}}]}
        )
        grids = {job.linear.name: job.grid for job in assign(source, recipe)}
        assert (illegal(find_runtime("transformers"), source.anatomy, grids) == []) is legal
        manifest = compress(source.folder, recipe, tmp_path / "out")
        assert (manifest["not_in_transformers"] == []) is legal
        ids = torch.randint(1, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
        ours = load(tmp_path / "out", dtype=torch.bfloat16, exact=True).logits(ids).float()
        try:
            with torch.no_grad():
                theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)(
                    ids
                ).logits.float()
        except RuntimeError:
            assert not legal
            return
        same = float((ours - theirs).square().mean()) < 1e-3 * float(ours.square().mean())
        assert same is legal


def test_formats_with_one_grid_for_the_whole_model():
    """Bits and group size must be equal; zero points need not be."""
    model, vllm = anatomy(2), find_runtime("vllm")
    mixed = assign_grids(model, (BLOCKS, W4), ("mlp", W8))
    assert illegal(vllm, model, mixed, "auto-round") == []
    assert illegal(vllm, model, mixed, "awq") == [
        "vllm, awq: the whole model needs one number of bits and one group size; given: 4 bits in groups of 128, "
        "8 bits in groups of 128"
    ]
    zeros = assign_grids(model, (BLOCKS, W4), ("mlp", UniformGrid(4, 128, False)))
    assert illegal(vllm, model, zeros, "awq") == illegal(find_runtime("jettison"), model, zeros, "gptq") == []
