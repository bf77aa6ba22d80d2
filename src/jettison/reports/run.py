"""A finished run as the report sees it: what its files say, and the few figures that follow from them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError
from jettison.core.kept import read_record
from jettison.core.progress import say
from jettison.formats.card import STAGES
from jettison.formats.manifest import read_manifest
from jettison.formats.schema import Drafts, Speeds, checked
from jettison.runtime.speculative.draft import NAME as DRAFT

SPEED = "speed.json"
# A share of less than this, in nats of log-perplexity, is a share of noise: texts of 30,000 tokens say no more.
WORTH_RECOVERING = 0.005


@dataclass(frozen=True)
class Run:
    """manifest: jettison.json. speed: speed.json, None if speed was not measured. draft: draft.json, None if none was
    looked for."""

    folder: Path
    manifest: dict[str, Any]
    speed: dict[str, Any] | None
    draft: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The original's name without the path or the owner in front of it."""
        return self.manifest["teacher"]["name"].rstrip("/\\").replace("\\", "/").rpartition("/")[2]

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """The stages that were measured, in their order."""
        measured = self.manifest.get("results") or {}
        return {stage: measured[stage] for stage in STAGES if stage in measured}

    @property
    def device(self) -> str:
        """What the request was for, in words; empty without a request."""
        named = (self.manifest.get("request") or {}).get("device", "")
        return "this machine" if named == "this" else named

    @property
    def last(self) -> str | None:
        """The stage that the folder holds now, None if only the original was measured or nothing was."""
        return next((stage for stage in reversed(self.results) if stage != "original"), None)

    @property
    def losses(self) -> list[float]:
        """What every step of the recovery had to lower."""
        return (self.manifest.get("recovery") or {}).get("loss") or []

    @property
    def loss_name(self) -> str:
        features = (self.manifest.get("recovery") or {}).get("features")
        added = f" + {features:g} times the relative squared error of the blocks' outputs" if features else ""
        return f"KL from the original in nats{added}"

    @cached_property
    def texts(self) -> list[str]:
        """The texts that every measured stage has in common."""
        found = [stage.get("texts") or {} for stage in self.results.values()]
        return [text for text in found[0] if all(text in other for other in found)] if found else []

    def share(self, text: str) -> float | None:
        """Of the log-perplexity that the quantized model loses on a text, how much recovery brings back; 1.0 is all.

        None if nothing was recovered, or if the loss is too small to divide by.
        """
        if not all(stage in self.results for stage in STAGES):
            return None
        original, quantized, recovered = (self.results[stage]["texts"][text]["log_perplexity"] for stage in STAGES)
        lost = quantized - original
        return (quantized - recovered) / lost if lost >= WORTH_RECOVERING else None

    def measured_speed(self, kind: str) -> dict[str, float]:
        """Tokens per second of each stage; kind: decode or prefill."""
        stages = (self.speed or {}).get("stages") or {}
        found = {stage: stages[stage].get(f"{kind}_tokens_per_second") for stage in STAGES if stage in stages}
        return {stage: rate for stage, rate in found.items() if rate}

    def speed_samples(self, kind: str, stage: str) -> list[float]:
        """What ``measured_speed`` is the median of: one figure where nothing else is recorded."""
        found = self.speed["stages"][stage]
        return found.get(f"{kind}_samples") or [found[f"{kind}_tokens_per_second"]]


def read_run(folder: str | Path) -> Run:
    """Raises UsageError if the folder is not a finished output of Jettison."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    speed = read_speed(folder / SPEED) if (folder / SPEED).exists() else None
    return Run(folder, manifest, speed, _draft(folder / DRAFT))


def _draft(path: Path) -> dict[str, Any] | None:
    try:
        return checked(read_record(path), Drafts, str(path)) if path.exists() else None
    except JettisonError as error:
        say(f"note: the report leaves the draft out: {error}")
        return None


def read_speed(file: Path) -> dict[str, Any]:
    """speed.json. Raises JettisonError if it is damaged."""
    return checked(read_json(file), Speeds, str(file))
