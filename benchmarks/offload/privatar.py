"""Private offloading on synthetic avatars: loss, attacks, users and energy, beside other ways to make a decoder fit.

    python -m benchmarks.offload.privatar            # trains, measures losses and attacks: half an hour on 2 cores
    python -m benchmarks.offload.privatar --finish   # then times, five minutes, nothing else may run; the result
    python -m benchmarks.offload.privatar --check    # the figures that need no training, against the result
    python -m benchmarks.offload.privatar --tiny     # all paths with tiny settings; it measures nothing

Every cell is computed once and kept in runs/privatar; remove its file to have it computed again. A killed training
continues. For each number k of components that leave, one avatar is trained. Limits V are for everything that is sent
about one expression; N draws of noise share a limit.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.offload import load, privatar_claims
from benchmarks.offload.privatar_times import times
from benchmarks.witness import RUNS, cell
from jettison.core.progress import set_quiet
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.encodings.uniform import UniformGrid
from jettison.methods.quantize.rtn import rtn
from jettison.offload.accounting import Terms
from jettison.offload.avatar import FIRST, AvatarVAE
from jettison.offload.experiment import Experiment, Setup, train_synthetic
from jettison.offload.split import plain
from jettison.offload.training import AvatarLesson, measure

RULES = ("exact", "linear", "waterfilling", "dp-replace", "dp-released")
ATTACKED = ("exact", "linear", "waterfilling")  # rules whose bound is attacked


@dataclass(frozen=True)
class Plan:
    """What is measured.

    ks: components that leave, of 16; main: the k of sequences and baselines. limits: V, nats. draws: N.
    tries: guesses of an attack; network: steps of training of the guesser's network.
    programs: of sequences: frames that an expression lasts, draws, and the frames between two of them.
    played: expressions in a sequence of short holds, and of long ones. tuned: steps of training after pruning.
    frames: that are timed. sizes: of the networks that are timed; none means the paper's.
    """

    name: str
    setup: Setup
    ks: tuple[int, ...]
    main: int
    limits: tuple[float, ...]
    draws: tuple[int, ...]
    tries: int
    network: int
    programs: tuple[tuple[int, int, int], ...]
    played: tuple[int, int]
    tuned: int
    frames: int
    sizes: Mapping[str, int]


FULL = Plan(
    "privatar", Setup(texture=32, expressions=24, frames=1200, steps=3000, batch=16, rate=3e-3), (4, 8, 12, 14), 12,
    (0.1, 1.0, 2.5), (1, 30, 1800), 2000, 600,
    ((30, 1, 30), (30, 30, 1), (1800, 1, 1800), (1800, 30, 60), (1800, 1800, 1)), (24, 2), 400, 40, {},
)  # fmt: skip
TINY = Plan(
    "privatar-tiny",
    Setup(texture=32, grid=(6, 6), expressions=4, frames=24, steps=4, batch=8, rate=3e-3, latents=6,
          offloaded_latents=4, width=4, encoder_width=4),
    (12, 14), 12, (0.1, 1.0), (1, 3), 60, 5, ((3, 1, 3), (3, 3, 1)), (3, 2), 2, 3,
    {"texture": 32, "vertices": 20, "latents": 4, "offloaded_latents": 4},
)  # fmt: skip


class Bench:
    """The cells of the benchmark."""

    def __init__(self, plan: Plan):
        self.plan, self.cells = plan, RUNS / plan.name
        self._experiments: dict[int, Experiment] = {}

    def cell(self, key: str, work: Any) -> dict[str, Any]:
        """Compute a cell, or read it."""
        return cell(self.plan.name, key, work)

    def folder(self, k: int) -> Path:
        """Return the folder of an avatar."""
        return self.cells / f"avatar-{k}"

    def experiment(self, k: int) -> Experiment:
        """Return the trained avatar of which k components leave."""
        if k not in self._experiments:
            setup = self.plan.setup.model_copy(update={"offloaded": k})
            self._experiments[k] = train_synthetic(setup, self.folder(k))
        return self._experiments[k]

    def avatar(self, k: int) -> dict[str, Any]:
        """Train an avatar; return its losses without noise, and of the local part alone."""
        return self.cell(f"avatar-{k}", lambda: self.experiment(k).to_dict() | {"parts": self.parts(k)})

    def parts(self, k: int) -> dict[str, dict[str, float]]:
        """Return the losses of texture and mesh apart, without noise and of the local part alone."""
        experiment = self.experiment(k)
        return {"no noise": experiment.losses(), "local": experiment.losses(local=True)}

    def losses(self, k: int) -> dict[str, Any]:
        """Return loss and trace of every rule, limit and number of draws that share it."""

        def work() -> dict[str, Any]:
            experiment, rows = self.experiment(k), []
            for limit in self.plan.limits:
                for draws in self.plan.draws:
                    for rule in RULES:
                        noise = experiment.noise(limit / draws, rule)
                        row = {"limit": limit, "draws": draws, "rule": rule, "trace": noise.trace}
                        rows.append(row | experiment.losses(noise))
            return {"rows": rows, "latents_trace": float(experiment.covariance.estimate().trace())}

        return self.cell(f"losses-{k}", work)

    def attacks(self, k: int) -> dict[str, Any]:
        """Attack without noise, and with noise of V / N on the average of N draws: the limit that is promised."""

        def work() -> dict[str, Any]:
            experiment, plan = self.experiment(k), self.plan
            options = {"tries": plan.tries, "steps": plan.network}
            rows = [{"rule": "none", **result.to_dict()} for result in experiment.attack(None, **options)]
            for limit in plan.limits:
                for draws in plan.draws:
                    for rule in ATTACKED:
                        noise = experiment.noise(limit / draws, rule)
                        told = draws * noise.information(self._attacked(experiment))
                        for result in experiment.attack(noise, repeats=(draws,), **options):
                            rows.append({"rule": rule, "limit": limit, "told": told, **result.to_dict()})
            return {"rows": rows, "secrets": experiment.secrets}

        return self.cell(f"attacks-{k}", work)

    def _attacked(self, experiment: Experiment) -> torch.Tensor:
        """Return the covariance of the latents that are attacked."""
        return torch.cov(experiment.latents[1].double().T)

    def sequences(self, k: int) -> dict[str, Any]:
        """Play drifting sequences under accounts: short and long holds, N draws each."""
        rows = []
        for limit in self.plan.limits:
            for hold, draws, every in self.plan.programs:
                key = f"sequence-{k}-{limit:g}-{hold}-{draws}"
                rows.append(self.cell(key, lambda a=(limit, hold, draws, every): self.played(k, *a)))
        return {"rows": rows, "seconds": sum(row["seconds"] for row in rows)}

    def played(self, k: int, limit: float, hold: int, draws: int, every: int) -> dict[str, Any]:
        """Play one sequence, with noise that follows the drift."""
        experiment = self.experiment(k)
        played = experiment.play(
            Terms(limit, draws, experiment.secrets, every=every), self._sequence(hold), follow=True
        )
        bounds = {
            "no noise": measure(experiment.model, self._sequence(hold))["loss"],
            "local": measure(experiment.model, self._sequence(hold), local=True)["loss"],
        }
        return {"limit": limit, "hold": hold, "allowed": draws, **played.to_dict(), "bounds": bounds}

    def _sequence(self, hold: int) -> Any:
        setup, short = self.plan.setup, hold == min(program[0] for program in self.plan.programs)
        avatars = SyntheticAvatars(setup.texture, setup.grid, setup.expressions, seed=setup.seed)
        return avatars.sequence(hold * self.plan.played[0 if short else 1], 3, hold=hold, drift=0.3)

    def baselines(self, k: int) -> dict[str, Any]:
        """Return the losses of the whole network on the device: as it is, rounded to 8 bits, with fewer channels."""

        def work() -> dict[str, Any]:
            experiment = self.experiment(k)
            loss = lambda model: measure(model, experiment.other)
            rounded, pruned = eight_bits(experiment.model), self.pruned(k)
            return {"whole": loss(experiment.model), "int8": loss(rounded), "pruned": loss(pruned)}

        return self.cell(f"baselines-{k}", work)

    def pruned(self, k: int) -> AvatarVAE:
        """Return the avatar with 10 % fewer channels in its decoders, trained further. It is made anew every time."""
        return tuned(narrowed(self.experiment(k).model, 0.1), self.experiment(k), self.plan.tuned)

    @cached_property
    def timed(self) -> dict[str, Any]:
        """The times of all avatars, for --finish."""
        return self.cell("times", lambda: times(self.plan, {"pruned": lambda model: narrowed(model, 0.1)}))


@torch.no_grad()
def eight_bits(model: AvatarVAE) -> AvatarVAE:
    """Return a copy whose matrices and kernels are rounded to 8 bits, a scale for every first index. Times stay."""
    copy, grid = plain(model), UniformGrid(8, -1, True)
    for module in copy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            rounded = rtn(module.weight.flatten(1), grid).dequantize()
            module.weight.copy_(rounded.view_as(module.weight))
    return copy


def narrowed(model: AvatarVAE, share: float) -> AvatarVAE:
    """Return a copy whose decoders lack this share of their inner channels: those with the smallest weights."""
    copy = plain(model)
    for decoder in (copy.decoder, copy.offloaded):
        _narrow(decoder, share)
    return copy


@torch.no_grad()
def _narrow(decoder: nn.Sequential, share: float) -> None:
    first, unflatten, steps = decoder[0], decoder[2], list(decoder)
    kernels = [place for place, step in enumerate(steps) if isinstance(step, nn.ConvTranspose2d)]
    strongest = lambda norms: norms.topk(max(1, round(len(norms) * (1 - share)))).indices.sort().values
    channels = unflatten.unflattened_size[0]
    kept = strongest(first.weight.view(channels, -1).norm(dim=1))
    rows = (kept[:, None] * FIRST**2 + torch.arange(FIRST**2)).flatten()
    first.weight, first.bias = nn.Parameter(first.weight[rows]), nn.Parameter(first.bias[rows])
    unflatten.unflattened_size = (len(kept), FIRST, FIRST)
    for place in kernels:
        weight = steps[place].weight[kept]  # (in, out, 4, 4)
        if place != kernels[-1]:
            kept = strongest(weight.transpose(0, 1).flatten(1).norm(dim=1))
            weight, bias = weight[:, kept], steps[place + 1]
            bias.bias = nn.Parameter(bias.bias[kept])
        steps[place].weight = nn.Parameter(weight)


def tuned(model: AvatarVAE, experiment: Experiment, steps: int) -> AvatarVAE:
    """Train a network further on the known frames, with Adam, and return it."""
    lesson, frames, batch = AvatarLesson(model), experiment.known, experiment.setup.batch
    rng = torch.Generator().manual_seed(experiment.setup.seed)
    optimizer = torch.optim.Adam(model.parameters(), experiment.setup.rate / 3)
    with torch.random.fork_rng():
        torch.manual_seed(experiment.setup.seed)
        for _ in range(steps):
            part = frames[torch.randint(len(frames), (batch,), generator=rng)]
            optimizer.zero_grad()
            lesson(part.average, part.texture, part.mask, part.mesh, part.view, part.camera).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Compute the cells; with --finish also times and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finish", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    set_quiet(True)
    plan = TINY if options.tiny else FULL
    if options.check:
        return privatar_claims.check()
    bench = Bench(plan)
    done = {
        "avatars": {k: bench.avatar(k) for k in plan.ks}, "losses": {k: bench.losses(k) for k in plan.ks},
        "attacks": {k: bench.attacks(k) for k in plan.ks}, "sequences": bench.sequences(plan.main),
        "baselines": bench.baselines(plan.main),
    }  # fmt: skip
    small = {"to_worker": 40, "to_device": 10} if options.tiny else {}
    done["fuzz"] = bench.cell("fuzz", lambda: load.fuzz(**small))
    if options.finish or options.tiny:
        torch.set_num_threads(1)
        done["load"] = bench.cell("load", lambda: load.load(*((1,) if options.tiny else ())))
        done["times"] = bench.timed
        privatar_claims.write(bench, done)
    else:
        privatar_claims.summarize(done)


if __name__ == "__main__":
    main()
