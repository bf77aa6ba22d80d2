"""What each stage learns from: all matches in the first round, in the second those that agree with the first model.

Source: arXiv:2407.10406; the threshold of the second round is our reconstruction, see ``surround.disagreement``.
"""

from pathlib import Path
from typing import Any

import torch

from jettison.core.sealed import read_sealed, write_sealed
from jettison.domains.perception.modelling import Lessons, Sample
from jettison.domains.perception.models.sa_fsm.reading import pseudo_depth, surroundings, usable_of
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.surround.disagreement import agreeing, errors
from jettison.domains.perception.surround.matchers import open_matcher
from jettison.domains.perception.surround.matching import Table, check_enough, correctness, match_frames, slots_of
from jettison.domains.perception.surround.triangulation import Limits
from jettison.graph.own_models import OwnModel

FIRST, SECOND, LAST = "round-1", "round-2", "photometric"
CHECKED = 128  # frames at most whose matches are compared with the true depth
BATCH = 4


def teach(network: OwnModel, samples: Samples, stage: str, out: Path, cache: Path) -> Lessons:
    """Match the frames, or read the matches of an earlier run, and choose those that a stage learns from.

    The record says how many matches there were and were kept, and where the true depth is known, how many mismatches
    were among them, and which share of those was removed. The last stage keeps what the second round kept; if it is
    run alone, the matches that agree with the network it starts from.
    Raises UsageError if the matcher cannot be opened, JettisonError if no match fits the calibration.
    """
    config, numbers = samples.config, range(len(samples))
    limits = Limits(config.most, config.angle, config.epipolar)
    frames = ((_key(sample), sample.frame) for sample in map(samples.sample, numbers))
    every = match_frames(frames, len(numbers), config.views, open_matcher(config.matcher), limits, cache / "matches")
    check_enough(every.values(), config.filters)
    first = {key: table.fits if config.filters else torch.ones_like(table.fits) for key, table in every.items()}
    kept, file = first, out / f".kept-{samples.split}.safetensors"
    if stage != FIRST and config.rounds == 2:
        if (stored := read_sealed(file)) is None:
            kept = _agreeing(network, samples, {key: table.kept(first[key]) for key, table in every.items()}, first)
            write_sealed(file, kept)
        else:
            kept = stored[0]
    tables = {key: table.kept(kept[key]) for key, table in every.items()}
    usable = usable_of(config)

    def targets(config: Any, sample: Sample) -> dict[str, torch.Tensor]:
        made = pseudo_depth(config, sample, tables[_key(sample)])
        return made | surroundings(config, sample, usable) if stage == LAST else made

    return Lessons(targets, {} if stage == LAST else _record(samples, every, first if stage == SECOND else None, kept))


def _key(sample: Sample) -> str:
    return f"{sample.scene.name}/{sample.place}"


@torch.no_grad()
def _agreeing(
    network: OwnModel, samples: Samples, tables: dict[str, Table], first: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return which of all matches to keep: of those of the first round, the ones that agree with the network."""
    training, off = network.training, {}
    network.eval()
    for start in range(0, len(samples), BATCH):
        numbers = list(range(start, min(start + BATCH, len(samples))))
        inputs = {name: value.to(network.device) for name, value in samples.inputs(numbers).items()}
        depths = network.compute(**inputs)["depth"].float().cpu()
        for number, depth in zip(numbers, depths, strict=True):
            sample = samples.sample(number)
            slots = slots_of(sample.frame, samples.config.views)
            sizes = torch.tensor(
                [(1, 1) if view is None else (view.camera.width, view.camera.height) for view in slots]
            )
            off[_key(sample)] = errors(depth, tables[_key(sample)], sizes)
    network.train(training)
    kept = {}
    for key, good in agreeing(tables, off).items():
        kept[key] = first[key].clone()
        kept[key][first[key]] = good
    return kept


def _record(
    samples: Samples, every: dict[str, Table], before: dict[str, torch.Tensor] | None, kept: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Return counts of matches. before: those that the last round kept; None for all that were made."""
    entering = before or {key: torch.ones_like(table.fits) for key, table in every.items()}
    total = sum(int(chosen.sum()) for chosen in entering.values())
    record: dict[str, Any] = {"matches": total, "kept": sum(int((kept[key] & entering[key]).sum()) for key in every)}
    record["kept_ratio"] = round(record["kept"] / max(1, total), 4)
    wrong = removed = right = lost = 0
    for number in samples.spread(CHECKED):
        sample = samples.sample(number)
        key = _key(sample)
        true, known = correctness(sample.frame, every[key], samples.config.views)
        known &= entering[key]
        wrong, right = wrong + int((known & ~true).sum()), right + int((known & true).sum())
        removed, lost = removed + int((known & ~true & ~kept[key]).sum()), lost + int((known & true & ~kept[key]).sum())
    if wrong + right:
        record |= {"mismatches": wrong, "true_matches": right}
        record["mismatches_removed_share"] = round(removed / max(1, wrong), 4)
        record["true_matches_removed_share"] = round(lost / max(1, right), 4)
    return record
