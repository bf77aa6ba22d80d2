"""Made-up runs for the tests of the report and the comparison, and readers of the pages that are written."""

import copy
import json
import re
from html.parser import HTMLParser

EVIL = "</script><script>alert('x')</script><img src=http://evil/x.png>&"


def stage(bytes, bits, perplexity, log_perplexity, kl, accuracy):
    """Return the results of a stage, as in jettison.json."""
    text = {"log_perplexity": log_perplexity, "perplexity": perplexity, "kl": kl, "agreement": 1 - kl, "tokens": 1000}
    return {
        "size": {"bytes": bytes, "disk_bytes": bytes, "bits_per_weight": bits, "bits_per_weight_without_adapter": bits},
        "texts": {"books-evaluation": text, "wikitext2": text | {"perplexity": 2 * perplexity}},
        "samples": [{"prompt": "It was", "text": f"written at {bits} bits {EVIL}"}],
        "tasks": {"piqa": {"accuracy": accuracy, "standard_error": 0.01, "random": 0.5, "items": 100}},
    }


def linear(grid, error):
    """Return the row of a linear, as in jettison.json."""
    return {"grid": grid, "error": error}


def rates(decode, prefill, spread=1.5, count=3):
    """Return the rates of a stage, as in speed.json: medians, and ``count`` samples."""
    speed = {}
    for kind, median in (("decode", decode), ("prefill", prefill)):
        speed |= {f"{kind}_tokens_per_second": median, f"{kind}_samples": [median + spread, median, median - spread]}
        speed[f"{kind}_samples"] = speed[f"{kind}_samples"][-count:] if count > 1 else [median]
    return speed


FULL = {
    "jettison": "0.1.0",
    "teacher": {"name": "owner/small", "folder": "models/small", "fingerprint": "abc"},
    "hashes": {"model-00001-of-00003.safetensors": "00"},
    "license": "apache-2.0",
    "seed": 7,
    "versions": {"torch": "2.13.0"},
    "not_in_transformers": ["the scales of a note"],
    "recipe": {
        "name": "mine",
        "use": "for tests",
        "why": ["w4 misses the budget"],
        "calibration": {"text": "books", "samples": 8},
        "steps": [
            {"quantize": {"method": "gptq", "bits": 2, "group_size": 64}, "where": {"role": ["gate"]}},
            {"recover": {"method": "distill", "train": ["lora"], "rank": 8}},
        ],
    },
    "request": {
        "model": "owner/small", "device": "raspberry-pi-5", "tps": 40, "memory": "8MB", "context": 512, "recipe": None,
        "changes": ["recover.rank=8"], "texts": ["books-evaluation", "my text.txt"], "tasks": ["piqa"], "seed": 7,
        "command": [
            "jettison", "fit", "owner/small", "--device", "raspberry-pi-5", "--tps", "40", "--memory", "8MB",
            "--context", "512", "--set", "recover.rank=8", "--text", "books-evaluation", "--text", "my text.txt",
            "--tasks", "piqa", "--seed", "7",
        ],
        "predicted": {
            "original": {"tokens_per_second": 20.5, "memory": 2e7},
            "result": {"tokens_per_second": 55.5, "memory": 9e6},
        },
    },
    "results": {
        "original": stage(14_000_000, 16.0, 37.5, 3.6, 0.0, 0.70),
        "quantized": stage(5_000_000, 3.25, 53.5, 4.0, 0.4, 0.60),
        "recovered": stage(5_600_000, 3.75, 39.5, 3.7, 0.05, 0.68),
    },
    "tasks": [
        {"task": "piqa", "lost": 0.1, "lost_error": 0.01, "recovered": 0.8, "recovered_error": 0.09, "counts": True},
        {"task": "arc", "lost": 0.01, "lost_error": 0.01, "recovered": 0.5, "recovered_error": 0.9, "counts": False},
    ],
    "recovery": {"loss": [0.5, 0.25, 0.125], "hashes": {}},
    "blocks": [
        {"error": 0.1, "linears": {
            "layers.0.experts.0.gate_proj": linear("int2 g64 sym", 0.2),
            "layers.0.experts.1.gate_proj": linear("int3 g64 sym", 0.4),
            "layers.0.q_proj": linear("int4 g128 sym", 0.001),
        }},
        {"error": None, "linears": {"layers.1.q_proj": linear("int4 g128 sym", 0.002)}},
        {"error": None, "linears": {"lm_head": linear("int4 g128 sym", 0.0123)}},
    ],
    "check": {"linears": 5, "block": {"index": 0, "difference": 3e-7}, "notes": ["one group is constant"]},
}  # fmt: skip
SPEED = {
    "machine": "a test bench",
    "stages": {
        "original": rates(31.5, 501.5),
        "recovered": rates(62.5, 402.5),
    },
}


class Page(HTMLParser):
    """A parsed page.

    sections: ids of the sections.
    text: the text that a reader sees.
    outside: addresses that a browser would fetch.
    scripts: the code of the scripts.
    """

    def __init__(self, html):
        super().__init__()
        self.sections, self.text, self.outside, self.scripts, self._inside = set(), "", [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes, self._inside = dict(attributes), tag if tag in ("script", "style") else None
        if tag == "section":
            self.sections.add(attributes["id"])
        self.outside += [attributes[name] for name in ("src", "href", "data", "srcset") if name in attributes]

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.text += data


def make_run(parent, name="run", without=(), speed=None, **sections):
    """Return a folder with a jettison.json: FULL with ``sections`` replaced and the names in ``without`` left out."""
    folder = parent / name
    folder.mkdir()
    manifest = {key: value for key, value in (copy.deepcopy(FULL) | sections).items() if key not in without}
    (folder / "jettison.json").write_text(json.dumps(manifest))
    if speed:
        (folder / "speed.json").write_text(json.dumps(speed))
    return folder


def drawn(file, chart):
    """Return the traces of a chart in a page."""
    html = file.read_text(encoding="utf-8")
    match = re.search(rf'Plotly\.newPlot\(\s*"{chart}",\s*(\[.*?\]),\s*\{{"', html, re.DOTALL)
    return json.loads(match[1])


def without_stage(name):
    """Return the results of FULL without one stage."""
    return {stage: result for stage, result in copy.deepcopy(FULL)["results"].items() if stage != name}
