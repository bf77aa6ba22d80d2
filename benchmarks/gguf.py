"""GGUF: types bit by bit, damaged files, and SmolLM2-135M in full: quality, speed and perplexity against llama.cpp.

    python -m benchmarks.fixtures.smollm2               # the model, once
    pip install -r benchmarks/gguf_requirements.txt     # llama.cpp, built natively: CMAKE_ARGS=-DGGML_NATIVE=ON
    OMP_NUM_THREADS=2 python -m benchmarks.gguf         # all cells, one by one; hours on two cores
    python -m benchmarks.gguf --only types fuzz w4      # some cells, by how their names begin
    python -m benchmarks.gguf --finish                  # write the result, once all cells are there

Every cell is computed once and kept in runs/gguf. ``--scale 0.05`` takes that share of texts, samples, rounds and
files, to try the plan: its cells are kept elsewhere, and its claims are shown, not written. ``--check`` reads the types
again and compares. The cell ``speed`` needs an idle machine.

- Quality is that of WikiText-2 and of books, in windows of 512 tokens, and KL from the file as it is. Its weights lie
  on Q4_1's grid, which flatters 4 bits in groups of 32; presets and methods here have groups of 64 and more.
- ``rtn``, ``gptq``, ``gptaq`` and ``awq`` are 4 bits in groups of 64, of the blocks alone. Presets leave the embedding
  in 16 bits; those with ``, tied`` pack it with the head, as one matrix.
- llama.cpp reads the same file. With LLAMA_BENCH (see benchmarks.decoding.native_decoder) its own program is timed,
  whose loop has no Python; else llama-cpp-python, with a few calls of Python per token, as our own loop has.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding.llama_cpp_python import LlamaCppPython
from benchmarks.fixtures.smollm2 import HOME
from benchmarks.witness import ROOT, RUNS, cell, claim, compare, origin, show, write_result
from jettison import compress, evaluate, fit, recover
from jettison.bench.decoding import measure_decoding, measure_prefill
from jettison.bench.llama_cpp import LlamaCpp
from jettison.core.errors import JettisonError
from jettison.domains.text.data import token_windows
from jettison.graph.folder import ModelFolder
from jettison.kernels import native
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.runtime.load import load

NAME = "gguf"
MODEL = HOME / "model.gguf"
PRESETS = ("w8", "w4", "w3", "gateup-w4w2", "w2")
METHODS = ("rtn", "gptq", "gptaq", "awq")
BLOCKS = ["q", "k", "v", "o", "gate", "up", "down"]
TEXTS, TOKENS, WINDOW = ("wikitext2", "books-evaluation"), 30_720, 512
FUZZED, PART = 20_000, 1000  # files, and files of a cell
SAMPLES, RECOVERED = 64, 1024  # windows of calibration; samples of recovery
ROUNDS, CONTEXT, PROMPT = 11, 16, 512
FIT = {"memory": "115MB", "context": 512, "runtime": "jettison"}
QUESTION = "What is the capital of France?"
AS_IS, W4, PEER = "Q4_1 as it is", "w4, tied", "llama.cpp"
HOURS = 1.0  # within which the fit must end


class Plan:
    """The cells of a run: name -> its work. scale: share of texts, samples, rounds and files."""

    def __init__(self, model: Path, scale: float = 1.0):
        self.model, self.scale = model, scale
        self.name = NAME if scale == 1 else f"{NAME}-{scale:g}"
        self.folder = RUNS / self.name

    def share(self, count: int, least: int = 1) -> int:
        """Return the share of a count that this run takes."""
        return max(least, round(self.scale * count))

    def cells(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return name -> work, in the order in which they are computed."""
        quality = ("original", *PRESETS, *METHODS, "w8, tied", W4)
        works: dict[str, Callable[[], dict[str, Any]]] = {"types": types}
        works |= {name: lambda name=name: self.quality(name) for name in quality}
        works |= {"perplexity": self.perplexity, "speed": self.speed, "fit": self.fit}
        works |= {f"{name}, recovered": lambda name=name: self.recovered(name) for name in ("gateup-w4w2", "w2")}
        parts = math.ceil(self.share(FUZZED) / PART)
        return works | {f"fuzz {part}": lambda part=part: self.fuzz(part) for part in range(parts)}

    def run(self, name: str) -> dict[str, Any]:
        """Return the result of a cell, computed now or before."""
        return cell(self.name, slug(name), self.cells()[name])

    def quality(self, name: str) -> dict[str, Any]:
        """Compress by a preset or method, and measure; ``original`` is the file as it is."""
        if name == "original":
            return self.measured(self.model)
        preset, out = name.removesuffix(", tied"), self.folder / slug(name)
        compress(self.model, self.recipe(preset), out, runtime="jettison" if preset != name else None)
        return self.measured(out)

    def recipe(self, name: str) -> Recipe:
        """Return a preset, or a method's 4 bits in groups of 64."""
        if name in PRESETS:
            return load_recipe(name, [f"calibration.samples={self.share(SAMPLES, 4)}"])
        step = {"quantize": {"method": name, "bits": 4, "group_size": 64}, "where": {"role": BLOCKS}}
        calibration = {"text": "books", "samples": self.share(SAMPLES, 4)}
        return load_recipe({"name": name, "calibration": calibration, "steps": [step]})

    def measured(self, folder: Path) -> dict[str, Any]:
        """Return perplexity, KL and size of a model, and its answer to a question."""
        teacher = None if folder == self.model else self.model
        report = evaluate(folder, texts=TEXTS, tokens=self.share(TOKENS, 2 * WINDOW), window=WINDOW, teacher=teacher)
        answer = load(folder).generate([{"role": "user", "content": QUESTION}], tokens=24, temperature=0).text
        return {"texts": report["texts"], "size": report["size"], "answer": answer}

    def recovered(self, name: str) -> dict[str, Any]:
        """Recover a preset by its own recover step, and measure again."""
        self.run(name)
        recover(self.folder / slug(name), changes=[f"recover.samples={self.share(RECOVERED, 8)}"])
        return self.measured(self.folder / slug(name))

    def fit(self) -> dict[str, Any]:
        """Plan, compress, recover, measure and report under a budget of memory. Returns the seconds and the plan."""
        start, out = time.perf_counter(), self.folder / "fitted"
        changes = [f"recover.samples={self.share(RECOVERED // 4, 8)}"]
        result = fit(self.model, out=out, tokens=self.share(TOKENS, 2 * WINDOW), changes=changes, **FIT)
        return {
            "hours": (time.perf_counter() - start) / 3600,
            "report": (out / "report.html").exists(),
            "steps": result["recipe"]["steps"],
            "results": result["results"],
        }

    def fuzz(self, part: int) -> dict[str, Any]:
        """Read damaged files, as tests/graph/test_gguf_fuzz.py does. Returns how many, and what was found."""
        fuzz = from_tests("test_gguf_fuzz")
        folder, count = self.folder / f"fuzz-{part}", min(PART, self.share(FUZZED) - PART * part)
        folder.mkdir(parents=True, exist_ok=True)
        findings, refused, done = [], 0, 0
        bases = fuzz.make_bases(folder)
        while done < count:
            # A finding ends a call. The inputs of the next one have other seeds.
            try:
                refused += fuzz.run(bases, folder / "x.gguf", count - done, seed := f"{part}-{len(findings)}")
                done = count
            except AssertionError as finding:
                findings.append(str(finding))
                done += 1 + int(re.search(rf"input {seed}/(\d+)", str(finding))[1])
        return {"files": count, "refused": refused, "findings": findings}

    def perplexity(self) -> dict[str, Any]:
        """Measure both engines on the same tokens of WikiText-2, from the same file."""
        windows = list(token_windows(ModelFolder(self.model), TEXTS[0], WINDOW, self.share(TOKENS // WINDOW, 2)))
        ours, theirs = load(self.model).decoder, LlamaCppPython(self.model, native.threads(), WINDOW, every=True)
        losses: dict[str, list[float]] = {"jettison": [], PEER: []}
        for ids in windows:
            tokens = ids.tolist()
            read = {"jettison": ours.session(WINDOW).append(tokens, every=True), PEER: theirs.logits(tokens)}
            for name, logits in read.items():
                likelihood = logits[:-1].double().log_softmax(-1).gather(1, ids[1:, None])
                losses[name].append(-float(likelihood.mean()))
        perplexities = {name: math.exp(sum(values) / len(values)) for name, values in losses.items()}
        return {"perplexity": perplexities, "windows": len(windows)}

    def speed(self) -> dict[str, Any]:
        """Time decoding and a prompt, interleaved: the file as it is, our w4, and llama.cpp on the file."""
        folder = self.folder / slug(W4)
        compress(self.model, self.recipe("w4"), folder, runtime="jettison")
        models = {AS_IS: load(self.model).model, W4: load(folder).model}
        program, threads = os.environ.get("LLAMA_BENCH"), native.threads()
        peer = LlamaCpp(program, self.model, threads) if program else LlamaCppPython(self.model, threads, 2 * PROMPT)
        options = {"rounds": self.share(ROUNDS, 2), "others": {PEER: peer}}
        decoding = measure_decoding(models, contexts=(CONTEXT,), **options)
        prompt = measure_prefill(models, tokens=PROMPT, **options)
        return {"decoding": decoding, "prompt": prompt, "program": "llama-bench" if program else "llama-cpp-python"}


def slug(name: str) -> str:
    """Return a name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def from_tests(module: str) -> Any:
    """Import a module of tests/ or tests/graph/."""
    import importlib

    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "graph")]
    try:
        return importlib.import_module(module)
    finally:
        del sys.path[:2]


def types() -> dict[str, Any]:
    """Compare every type with the package gguf: scribe written in it, and random valid blocks.

    Returns type -> whether all values have the same bits, of both.
    """
    import gguf

    from jettison.graph.gguf.container import GgufFile

    models, lists = from_tests("gguf_models"), from_tests("test_gguf")
    file = RUNS / NAME / "types.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)

    def equal(path: Path) -> bool:
        ours = GgufFile(path)
        for stored in gguf.GGUFReader(path).tensors:
            value = ours.decode(stored.name, ours.blocks(stored.name))
            if not _same(value, gguf.dequantize(stored.data, stored.tensor_type)):
                return False
        return True

    written = {}
    for kind in (*lists.FULL, *lists.WRITTEN):
        written[kind] = equal(models.write("scribe", file, kind))
    decoded = {}
    for kind, path in _random_files(lists.DECODED, models, file):
        decoded[kind] = equal(path)
    file.unlink()
    return {"scribe written": written, "random blocks": decoded}


def _random_files(kinds: tuple[str, ...], models: Any, path: Path) -> Iterator[tuple[str, Path]]:
    """Write one matrix of random valid blocks of every type, and yield it."""
    import gguf

    for kind in kinds:
        width, _ = gguf.GGML_QUANT_SIZES[models.KINDS[kind]]
        writer = gguf.GGUFWriter(path, "llama")
        blocks = models.random_blocks(kind, 64, 2 * max(width, 256), seed=1)
        writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=models.KINDS[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield kind, path


def _same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether two arrays have the same bits; NaNs are equal."""
    return ours.size == theirs.size and np.array_equal(ours.reshape(theirs.shape), theirs, equal_nan=True)


def equal_types(result: dict[str, Any]) -> tuple[int, int]:
    """Return how many types are equal, and how many were compared."""
    every = [*result["scribe written"].values(), *result["random blocks"].values()]
    return sum(every), len(every)


def claims(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims of all cells."""
    equal, compared = equal_types(results["types"])
    speed, both = results["speed"], results["perplexity"]["perplexity"]
    decoding = {row["model"]: row for row in speed["decoding"]["rows"]}
    prompt = {row["model"]: row for row in speed["prompt"]}
    rates = lambda rows: (
        f"tokens/s, by {speed['program']}: "
        + ", ".join(f"{name} {row['tokens_per_second']:.0f}" for name, row in rows.items())
    )
    ratio = lambda rows, ours: rows[ours]["tokens_per_second"] / rows[PEER]["tokens_per_second"]
    fuzzed = [result for name, result in results.items() if name.startswith("fuzz")]
    findings = [finding for result in fuzzed for finding in result["findings"]]
    apart = 100 * abs(both["jettison"] / both[PEER] - 1)
    return [
        claim("gguf_types_bit_equal", equal, "types", "equal", compared,
              "every type that the package gguf writes or decodes: scribe written and read, random valid blocks"),
        claim("smollm2_decode_vs_llamacpp", ratio(decoding, AS_IS), "x", "higher", 1.2, rates(decoding)),
        claim("smollm2_prefill_vs_llamacpp", ratio(prompt, AS_IS), "x", "higher", 1.0,
              f"{PROMPT} tokens; {rates(prompt)}"),
        claim("smollm2_bandwidth_share", decoding[W4]["share"], "", "higher", 0.7,
              f"w4 with one packed matrix for head and embedding; {AS_IS}: {decoding[AS_IS]['share']:.2f}"),
        claim("smollm2_ppl_diff_pct", apart, "%", "lower", 0.5,
              f"WikiText-2, Q4_1 as it is: {both['jettison']:.3f} and {both[PEER]:.3f}"),
        claim("gguf_fuzzed", sum(result["files"] for result in fuzzed), "files", "higher", FUZZED, origin(fuzzed[0])),
        claim("gguf_fuzz_findings", len(findings), "", "lower", 0, "; ".join(findings[:3])),
    ]  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of quality: perplexity and KL by text, bits per weight, bytes, and an answer."""
    rows = {}
    for name, result in results.items():
        if "texts" in result:
            texts = {text: {key: round(of[key], 4) for key in ("perplexity", "kl") if key in of}
                     for text, of in result["texts"].items()}  # fmt: skip
            size = {key: result["size"][key] for key in ("bytes", "bits_per_weight")}
            rows[name] = texts | size | {"answer": result["answer"]}
    return rows


def finish(plan: Plan, results: dict[str, dict[str, Any]], seconds: float) -> None:
    """Write the result; of a scaled plan, only show its claims."""
    found = claims(results)
    if plan.scale != 1:
        show(found)
        return
    fitted = results["fit"] | {"within": HOURS, "budget": FIT}
    details = {"types": results["types"], "quality": table(results), "fit": fitted, "speed": results["speed"]}
    details |= {"perplexity": results["perplexity"]}
    write_result(NAME, found, seconds, details, script=__file__)


def main() -> None:
    """Compute cells, check, or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="the GGUF file of the fixture")
    parser.add_argument("--only", nargs="+", help="compute only cells whose names begin so")
    parser.add_argument("--scale", type=float, default=1.0, help="share of texts, samples, rounds and files")
    parser.add_argument("--finish", action="store_true", help="write the result of all cells")
    parser.add_argument("--check", action="store_true", help="read the types again, and compare")
    options, start = parser.parse_args(), time.perf_counter()
    plan = Plan(options.model, options.scale)
    if options.check:
        recorded, now = equal_types(plan.run("types")), equal_types(types())
        compare({"types": (now[1], recorded[1], 0), "bit-equal": (now[0], recorded[0], 0)})
    names = [name for name in plan.cells() if not options.only or name.startswith(tuple(options.only))]
    if not options.model.exists() and set(names) != {"types"}:
        raise JettisonError(f"there is no {options.model}: run python -m benchmarks.fixtures.smollm2")
    results = {name: plan.run(name) for name in names}
    if options.finish:
        finish(plan, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
