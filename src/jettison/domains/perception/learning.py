"""``train``: learn a perception model from a dataset folder, and write it as a model folder.

- The stages of the model follow each other. Each is one training of ``training.loop``: resumable, and with the best
  parameters by the score on the split ``val``; of equal scores, those of the smaller loss.
- A stage that trains a part which reads only what frozen parts make of a sample learns from that, computed once, if the
  model has ``condense``.
- A run that was killed continues, and gives the same bytes. ``training.jsonl`` says what was asked for, and records
  the loss of every step and the scores; ``training.svg`` draws them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from jettison.core.errors import UsageError, guarded, shown, unknown
from jettison.core.files import check_folder, content_digest, write_json, write_text
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_number, check_seed
from jettison.core.progress import logged, say, silent
from jettison.core.tensors import write_tensors
from jettison.domains.perception.curves import training_svg
from jettison.domains.perception.judging import headline, judge
from jettison.domains.perception.modelling import Stage, Tensors, find_model, stages_of
from jettison.domains.perception.samples import Samples, folder_digest
from jettison.domains.perception.world.loading import recognizes
from jettison.graph.anatomy import OWN
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import OwnConfig, OwnModel, make_config, make_model
from jettison.training.loop import Group, Judge, Plan
from jettison.training.loop import train as run_loop

JOURNAL, RESULT, CURVES, WEIGHTS = "training.jsonl", "training.json", "training.svg", "model.safetensors"
PREPARED = ".prepared"  # folder in that of the model, while it trains
TRAIN, VALIDATE = "train", "val"
JUDGED, VALIDATED = 10, 64  # times in a stage; frames of ``val`` at most, spread evenly
MOST_STEPS, MOST_BATCH = 10_000_000, 4096
RATES = (1e-9, 10.0)  # least, most: with a rate of 0 nothing is learned


@logged("out")
def train(
    name: str,
    data: str | Path,
    out: str | Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    changes: Iterable[str] = (),
    layout: str | None = None,
    save_every: float = 60.0,
    start: str | Path | None = None,
    stages: Iterable[str] | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Train a perception model on the split ``train``, and judge it on ``val``.

    name: of the model, see ``modelling.model_names``.
    data: folder of a driving dataset in a layout of the model's task, or of rendered worlds.
    out: folder of the model, new or of the same run; a run that was killed continues.
    steps, batch, rate: of every stage; None for the model's own.
    changes: of its config, ``field=value``.
    layout: of ``data``; None to look at its files.
    start: a folder of the same model, whose weights are the first ones; None for new ones, drawn by the seed.
    stages: names of those to run, such as those that ``start`` lacks; None for all.
    cache: where a model may keep what it makes of the data, such as matches; runs may share it. None: in ``out``,
        removed at the end.
    Returns model, data, frames (train and val), and for every stage steps, loss (of the last step), score, the best
    one on ``val``, and what the model says of its targets.
    Raises UsageError for unknown names, data that the model cannot read, and a folder that holds another run.
    """
    model, config = find_model(name), make_config(OWN + name, _parse(changes), name)
    plan = [_changed(stage, steps, batch, rate) for stage in _chosen(stages_of(model, config), stages)]
    check_seed(seed)
    check_number("save_every", save_every, 0)
    first = None if start is None else _weights(Path(start), config)
    sets = {split: Samples(model, config, data, split, layout) for split in (TRAIN, VALIDATE)}
    out = check_folder(out, JOURNAL)
    fields = config.fields.model_dump(mode="json")
    run = {"kind": "perceive train", "model": name, "config": fields, "data": folder_digest(data)}
    run |= {"layout": sets[TRAIN].layout, "seed": seed, "stages": [vars(stage) for stage in plan]}
    if first is not None:
        run["start"] = content_digest(Path(start) / WEIGHTS)
    prepared = out / PREPARED if cache is None else Path(cache)
    with locked(out):
        journal = Journal(out / JOURNAL, run)
        if journal.last(kind="finished") and (out / RESULT).exists():
            say(f"{out} is trained already")
            return journal.last(kind="finished")["result"]
        torch.manual_seed(seed)
        network = make_model(config)
        if first is not None:
            network.load_state_dict(first)
        for number, stage in enumerate(plan):
            if hasattr(model, "teach"):
                _teach(network, stage, sets, journal, out, prepared)
            _learn(network, stage, sets, journal, out / f".{number}-{stage.name}.safetensors", seed, save_every)
        frames = {split: len(samples) for split, samples in sets.items()}
        result = {"model": name, "data": str(data), "synthetic": recognizes(Path(data)), "frames": frames}
        result |= {"seed": seed, "stages": [_summary(journal, stage) for stage in plan]}
        write_tensors(out / WEIGHTS, {key: value.cpu() for key, value in network.state_dict().items()})
        write_text(out / CURVES, training_svg(journal.entries))
        write_json(out / RESULT, result)
        write_json(out / "config.json", {"model_type": config.model_type, **fields})  # last: the folder is now a model
        journal.add(kind="finished", result=result)
        for number, stage in enumerate(plan):
            (out / f".{number}-{stage.name}.safetensors").unlink(missing_ok=True)
        rmtree(out / PREPARED, ignore_errors=True)
    return result


def _chosen(stages: tuple[Stage, ...], names: Iterable[str] | None) -> list[Stage]:
    """Return the stages of these names; all for None."""
    if names is None:
        return list(stages)
    names, valid = list(names), {stage.name: stage for stage in stages}
    for name in names:
        if name not in valid:
            raise unknown("stage", name, valid)
    if not names:
        raise UsageError(f"stages is empty; valid: {', '.join(valid)}")
    return [stage for stage in stages if stage.name in names]


def _weights(start: Path, config: OwnConfig) -> dict[str, torch.Tensor]:
    """Return the weights of a model folder. Raises UsageError if it holds another kind of model, or other shapes."""
    source = ModelFolder(start)
    if source.config.model_type != config.model_type:
        raise UsageError(f"start {start} is {source.config.model_type}: {config.model_type} is needed")
    file = start / WEIGHTS
    if not file.is_file():
        raise UsageError(f"start {start} has no {WEIGHTS}: a folder that `jettison perceive train` wrote is needed")
    with guarded(f"start {start} cannot be read"):
        weights = load_file(file)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in make_model(config).state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        wrong = next(
            name for name in {**shapes, **weights} if getattr(weights.get(name), "shape", 0) != shapes.get(name)
        )
        raise UsageError(f"start {start} has other weights than this config, such as {wrong}")
    return weights


def _teach(
    network: OwnModel, stage: Stage, sets: Mapping[str, Samples], journal: Journal, out: Path, cache: Path
) -> None:
    """Let a model choose the targets of a stage. The journal gets its records once."""
    for split, samples in sets.items():
        lessons = samples.model.teach(network, samples, stage.name, out / PREPARED, cache)
        samples.learn(lessons.targets)
        if lessons.record and not journal.last(kind="taught", of=stage.name, split=split):
            journal.add(kind="taught", of=stage.name, split=split, record=lessons.record)


def _parse(changes: Iterable[str]) -> dict[str, Any]:
    """Return the fields that changes set, as YAML reads their values."""
    fields = {}
    for change in changes:
        field, mark, value = change.partition("=")
        if not mark or not field:
            raise UsageError(f"change {shown(change)}: field=value is needed, such as height=160")
        try:
            fields[field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"change {shown(change)}: the value is no YAML ({error})") from error
    return fields


def _changed(stage: Stage, steps: int | None, batch: int | None, rate: float | None) -> Stage:
    """Return a stage with other settings."""
    for setting, value, least, most in (("steps", steps, 1, MOST_STEPS), ("batch", batch, 2, MOST_BATCH)):
        if value is not None:
            check_number(setting, value, least, most, whole=True)
            stage = replace(stage, **{setting: value})
    if rate is not None:
        check_number("rate", rate, *RATES)
        stage = replace(stage, rate=rate)
    return stage


class _Lesson(nn.Module):
    """Maps a batch, input tensors and then target tensors, to the loss of a stage."""

    def __init__(self, loss: Any, network: OwnModel, names: tuple[list[str], list[str]], stage: str):
        super().__init__()
        self.network, self._loss, self._names, self._stage = network, loss, names, stage

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the loss. tensors: (batch, ...) in the order of the names."""
        inputs, targets = self._names
        return self._loss(
            self.network,
            dict(zip(inputs, tensors[: len(inputs)], strict=True)),
            dict(zip(targets, tensors[len(inputs) :], strict=True)),
            self._stage,
        )


def _learn(
    network: OwnModel, stage: Stage, sets: Mapping[str, Samples], journal: Journal, state: Path, seed: int,
    save_every: float,
) -> None:  # fmt: skip
    """Train a stage, and leave its best parameters in the network."""
    training, model = sets[TRAIN], sets[TRAIN].model
    read = {split: _reader(network, samples, stage) for split, samples in sets.items()}
    first = (read[TRAIN]([0]), training.targets([0]))
    names = (list(first[0]), list(first[1]))
    parameters = {
        name: parameter.requires_grad_(name.startswith(stage.trains)) for name, parameter in network.named_parameters()
    }
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in network.state_dict()}
    lesson = _Lesson(model.loss, network, names, stage.name)
    every = max(1, stage.steps // JUDGED)

    def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        numbers = indices.tolist()
        return (*read[TRAIN](numbers).values(), *training.targets(numbers).values())

    def score() -> float:
        network.eval()
        with silent():
            value, loss = _validate(network, sets[VALIDATE], read[VALIDATE], lesson, stage)
        journal.add(stage=stage.name, score=value, validation_loss=loss)
        network.train()
        return value + 1e-6 / (1 + max(loss, 0.0))  # of equal scores, the smaller loss

    def record(step: int, loss: float) -> None:
        journal.add(stage=stage.name, step=step, loss=round(loss, 6))

    network.train()
    best = run_loop(
        lesson,
        [Group(trained, stage.rate)],
        fetch,
        Plan(stage.steps, stage.batch, len(training), seed, weight_decay=stage.weight_decay, betas=(0.9, 0.999)),
        state,
        buffers=buffers,
        judge=Judge(score, every),
        save_every=save_every,
        record=record,
        name=stage.name,
    )
    network.load_state_dict(best, strict=False)


def _reader(network: OwnModel, samples: Samples, stage: Stage) -> Callable[[Sequence[int]], Tensors]:
    """Return a function that reads what a stage learns from of some samples, (n, ...) by name.

    These are their inputs, or what the model condenses them to. A sample is condensed alone, so that the result does
    not depend on the others of its batch.
    """
    kept: dict[int, Tensors] = {}

    @torch.no_grad()
    def condensed(number: int) -> Tensors | None:
        if number not in kept:
            learns = network.training
            inputs = {name: value.to(network.device) for name, value in samples.inputs([number]).items()}
            made = samples.model.condense(network.eval(), inputs, stage.name)
            network.train(learns)
            if made is None:
                return None
            kept[number] = {name: value.cpu() for name, value in made.items()}
        return kept[number]

    def read(numbers: Sequence[int]) -> Tensors:
        parts = [condensed(number) for number in numbers]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    if not hasattr(samples.model, "condense") or condensed(0) is None:
        return samples.inputs
    return read


@torch.no_grad()
def _validate(
    network: OwnModel, samples: Samples, read: Callable[[Sequence[int]], Tensors], lesson: _Lesson, stage: Stage
) -> tuple[float, float]:
    """Return the score of a network on the validation samples, and its mean loss. read: see ``_reader``."""
    device = network.device
    run = lambda inputs: network(inputs.to(device)).logits
    value = headline(judge(samples, run, (network.inputs, network.outputs), count=VALIDATED))
    total, every = 0.0, samples.spread(VALIDATED)
    for first in range(0, len(every), stage.batch):
        numbers = every[first : first + stage.batch]
        tensors = (*read(numbers).values(), *samples.targets(numbers).values())
        total += len(numbers) * float(lesson(*(tensor.to(device) for tensor in tensors)))
    return round(value, 6), round(total / len(every), 6)


def _summary(journal: Journal, stage: Stage) -> dict[str, Any]:
    """Return what the journal says of a finished stage."""
    entries = [entry for entry in journal.entries if entry.get("stage") == stage.name]
    losses = {entry["step"]: entry["loss"] for entry in entries if "step" in entry}
    taught = journal.last(kind="taught", of=stage.name, split=TRAIN)
    return {
        "stage": stage.name,
        "steps": stage.steps,
        "loss": losses.get(stage.steps - 1),
        "score": max(entry["score"] for entry in entries if "score" in entry),
        **({"targets": taught["record"]} if taught else {}),
    }
