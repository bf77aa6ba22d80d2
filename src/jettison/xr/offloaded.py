"""A scenario whose model is offloaded: its cost by measured times, and its place in a live run.

An offloaded model gets a unit of its own, the link to the worker. While a frame is on the link, the device's units are
free for other models. The half that stays on the device is a task of its own in the scenario, if there is one.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from jettison.core.errors import JettisonError, UsageError
from jettison.offload.capacity import Radio, Times, find_constants, radio_energy
from jettison.offload.noised import noise_alone
from jettison.xr.costs import Cost, Costs
from jettison.xr.definitions import Scenario
from jettison.xr.variants import Variant

LINK = "offload"  # name of the unit
CONNECT_SECONDS = 10.0


def offload_costs(costs: Costs, model: str, times: Times, radio: Radio | None = None) -> Costs:
    """Return costs in which ``model`` runs on a link of its own, and on no other unit.

    times: of one frame, as ``capacity.read_times`` reads them. A frame is on the link for transfer_s + worker_s.
    radio: constants of the energy that the transfer needs on the device; None means wifi.
    """
    radio = radio or find_constants()[0]
    rows = tuple({name: cost for name, cost in row.items() if name != model} for row in costs.rows)
    link = Cost(1e3 * (times.transfer_s + times.worker_s), radio_energy(times, radio))
    return replace(costs, units=(*costs.units, LINK), rows=(*rows, {model: link}))


def local_part(scenario: Scenario, offloaded: Mapping[str, Any]) -> Scenario:
    """Return the scenario with only those tasks that are not offloaded, to find their costs.

    Raises UsageError for an offloaded model that the scenario does not have.
    """
    for name in offloaded:
        scenario.task(name)
    return replace(scenario, tasks=tuple(task for task in scenario.tasks if task.name not in offloaded))


@dataclass(frozen=True)
class Remote:
    """An offloaded model of a live run.

    address, token: of the worker, as ``RemoteHalf`` takes them.
    fallback: folder of a described model, which computes a frame that the worker does not answer.
    deadline_s: seconds that an answer may take.
    seed: of the latents, which are noise alone: a live run of XRBench has no data.
    """

    model: str
    address: str
    token: bytes
    fallback: str
    deadline_s: float
    seed: int = 0

    def open(self) -> "RemoteRun":
        """Connect to the worker. Raises JettisonError if there is none, UsageError for a wrong address or model."""
        return RemoteRun(self)


class RemoteRun:
    """A connection that runs one frame per call. outcomes: how many frames were computed ``remote`` and ``local``."""

    def __init__(self, source: Remote):
        from jettison.offload.service.blocking import BlockingRemoteHalf
        from jettison.offload.service.half import Half

        self.source, self.outcomes = source, Counter()
        self.fallback = Half.load(source.fallback)
        self.link = BlockingRemoteHalf(source.address, source.token, half=self.fallback).__enter__()
        if not self.link.connected(CONNECT_SECONDS):
            trouble = self.link.remote.trouble or "it does not answer"
            self.close()
            raise JettisonError(f"model {source.model!r}: no worker at {source.address}: {trouble}")

    def __call__(self) -> None:
        """Run one frame: on the worker, or here if no answer comes."""
        noised = noise_alone(self.fallback.latent, self.outcomes.total(), self.source.seed)
        outputs = self.link.submit(noised, time.monotonic() + self.source.deadline_s)
        if outputs is None:
            self.fallback.run(noised.latent[None])
        self.outcomes["local" if outputs is None else "remote"] += 1

    def energy_mj(self) -> float | None:
        """Return the energy of a frame's transfer, by the constants of wifi; None before the first answer."""
        remote = self.link.remote
        if not remote.round_trips:
            return None
        transfer = median(took - worker for took, worker in list(remote.round_trips))
        times = Times(local_s=0.0, worker_s=0.0, whole_s=1.0, transfer_s=max(0.0, transfer),
                      bytes_up=remote.bytes_up, bytes_down=remote.bytes_down)  # fmt: skip
        return radio_energy(times, find_constants()[0])

    def close(self) -> None:
        """End the connection."""
        self.link.__exit__()


def find_remotes(
    scenario: Scenario, offload: Mapping[str, str], token: bytes, variants: Mapping[str, Variant], seed: int = 0
) -> dict[str, Remote]:
    """Return the offloaded models of a live run, by model.

    offload: model -> address of its worker.
    variants: of ``live.scenario_variants``; an offloaded model's source is its fallback.
    Raises UsageError for a model that the scenario does not have, and for one without a described model.
    """
    remotes = {}
    for name, address in offload.items():
        task = scenario.task(name)
        source = str(variants[name].source)
        if source == "native":
            raise UsageError(
                f"model {name!r} is offloaded and needs a described model for frames that stay local: "
                f"--model {name}=FOLDER, or its file in the scenario"
            )
        remotes[name] = Remote(name, address, token, source, 1e-3 * task.period_ms, seed)
    return remotes
