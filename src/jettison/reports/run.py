"""A finished run as the report reads it: the contents of its files, and a few figures derived from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError
from jettison.core.journal import read_records
from jettison.core.kept import read_record
from jettison.core.progress import say
from jettison.formats.card import stage_words
from jettison.formats.draft_schema import Drafts
from jettison.formats.manifest import read_manifest
from jettison.formats.plan_schema import Part
from jettison.formats.schema import Speeds, checked
from jettison.runtime.speculative.draft import NAME as DRAFT

SPEED = "speed.json"
# Nats of log-perplexity. A smaller loss is noise on texts of 30,000 tokens, so no share of it is computed.
WORTH_RECOVERING = 0.005


@dataclass(frozen=True)
class Run:
    """The files of a run.

    manifest: jettison.json.
    speed: speed.json; None if speed was not measured.
    draft: draft.json; None if no draft was searched for.
    """

    folder: Path
    manifest: dict[str, Any]
    speed: dict[str, Any] | None
    draft: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of the original model, without a path or an owner before it."""
        return self.manifest["teacher"]["name"].rstrip("/\\").replace("\\", "/").rpartition("/")[2]

    @cached_property
    def words(self) -> dict[str, str]:
        """Stage -> its name on the page, see ``stage_words``. The rest of the report knows stages by that name."""
        return stage_words(self.manifest["recipe"])

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """The results of the stages that were measured, in the order of the stages."""
        return self._by_stage(self.manifest.get("results"))

    def _by_stage(self, stored: Mapping[str, Any] | None) -> dict[str, Any]:
        return {word: stored[stage] for stage, word in self.words.items() if stage in (stored or {})}

    @property
    def device(self) -> str:
        """The device of the request, in words; empty without a request."""
        device = (self.manifest.get("request") or {}).get("device", "")
        return "this machine" if device == "this" else device

    @property
    def last(self) -> str | None:
        """The stage that the folder holds now; None if only the original or nothing was measured."""
        return next((stage for stage in reversed(self.results) if stage != "original"), None)

    @property
    def losses(self) -> list[float]:
        """The training loss of every step of the recovery."""
        return (self.manifest.get("recovery") or {}).get("loss") or []

    @property
    def loss_name(self) -> str:
        """What the training loss of the recovery is, in words."""
        features = (self.manifest.get("recovery") or {}).get("features")
        added = f" + {features:g} times the relative squared error of the blocks' outputs" if features else ""
        return f"KL from the original in nats{added}"

    @cached_property
    def texts(self) -> list[str]:
        """The texts that every measured stage has in common."""
        texts = [stage.get("texts") or {} for stage in self.results.values()]
        return [text for text in texts[0] if all(text in other for other in texts)] if texts else []

    def share(self, text: str) -> float | None:
        """Return the share of the log-perplexity lost on a text by quantization that recovery brings back; 1.0 is all.

        None if there was no recovery, or if the loss is too small to divide by.
        """
        stages = list(self.words.values())
        if not all(stage in self.results for stage in stages):
            return None
        original, quantized, recovered = (self.results[stage]["texts"][text]["log_perplexity"] for stage in stages)
        lost = quantized - original
        return (quantized - recovered) / lost if lost >= WORTH_RECOVERING else None

    @cached_property
    def speeds(self) -> dict[str, dict[str, Any]]:
        """The rates of the stages that were timed, see ``schema.Rates``."""
        return self._by_stage((self.speed or {}).get("stages"))

    def measured_speed(self, kind: str) -> dict[str, float]:
        """Return the tokens per second of every stage that was timed. kind: decode or prefill."""
        rates = {stage: rates.get(f"{kind}_tokens_per_second") for stage, rates in self.speeds.items()}
        return {stage: rate for stage, rate in rates.items() if rate}

    def speed_samples(self, kind: str, stage: str) -> list[float]:
        """Return the samples whose median ``measured_speed`` is; that figure alone if no samples were recorded."""
        measured = self.speeds[stage]
        return measured.get(f"{kind}_samples") or [measured[f"{kind}_tokens_per_second"]]


def read_run(folder: str | Path) -> Run:
    """Read the files of a run. Raises UsageError if the folder is not a finished output of Jettison."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    speed = read_speed(folder / SPEED) if (folder / SPEED).exists() else None
    return Run(folder, manifest, speed, _draft(folder / DRAFT))


def _draft(path: Path) -> dict[str, Any] | None:
    """Read draft.json. Returns None if it is missing, and if it is damaged, which is printed as a note."""
    try:
        return checked(read_record(path), Drafts, str(path)) if path.exists() else None
    except JettisonError as error:
        say(f"note: the report leaves the draft out: {error}")
        return None


def read_speed(file: Path) -> dict[str, Any]:
    """Read speed.json. Raises JettisonError if it is damaged."""
    return checked(read_json(file), Speeds, str(file))


def read_entries(path: Path, what: str) -> list[dict[str, Any]]:
    """Return the intact records of a journal; [] with a note if it cannot be read. what: is left out then, in words."""
    try:
        return [record for record in read_records(path)[0] if record] if path.exists() else []
    except (JettisonError, OSError) as error:
        say(f"note: the report leaves out {what}: {error}")
        return []


def valid_entries(entries: list[dict[str, Any]], field: str, kind: type[Part]) -> list[Any]:
    """Return the entries that have a field and are valid, as objects."""
    valid = []
    for entry in entries:
        if field in entry:
            try:
                valid.append(kind.model_validate(entry))
            except ValidationError:
                continue
    return valid
