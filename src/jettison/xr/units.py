"""Real units: a process per unit, with threads of its own, that has loaded all models of a scenario."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Any

from jettison.core.errors import JettisonError
from jettison.core.numbers import check_number
from jettison.core.parallel import deaf_children, end_with
from jettison.core.progress import bar
from jettison.xr.costs import Cost, Costs, ends
from jettison.xr.offloaded import LINK, Remote
from jettison.xr.operators import count_operators, energy_of
from jettison.xr.variants import Variant, open_variant

WARM_UP = 3  # runs of every model before it is timed
LOAD_SECONDS = 300
BUSY_WATTS = 10.0  # assumed for a model whose operators cannot be counted (ONNX)


def check_units(count: int, threads: int) -> None:
    """Raise UsageError for an invalid number of units or of threads per unit."""
    check_number("units", count, 1, 64, whole=True)
    check_number("threads", threads, 1, 256, whole=True)


class Units:
    """Processes that run models. Use: ``with Units(variants, count=2, threads=1) as units``.

    variants: by model; every unit loads all of them.
    remotes: by model, those that are offloaded; each gets a unit of its own, after the others.
    threads: per unit. A unit is pinned to cores of its own where the system allows it and has enough cores.
    outcomes: by offloaded model, how many frames were computed ``remote`` and ``local``, those of measuring included;
        known after the end.
    Raises JettisonError if a unit fails.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        count: int = 1,
        threads: int = 1,
        remotes: Mapping[str, Remote] | None = None,
    ):
        check_units(count, threads)
        self.links, self.threads = dict(remotes or {}), threads
        self.loads: list[dict[str, Variant | Remote]] = [dict(variants) for _ in range(count)]  # by unit
        self.loads += [{name: remote} for name, remote in self.links.items()]
        self.count = len(self.loads)
        self.facts: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, dict[str, int]] = {}

    def __enter__(self) -> "Units":
        context = get_context("spawn")
        pairs = [context.Pipe() for _ in range(self.count)]
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.pipes = [parent_end for parent_end, _ in pairs]
        self.processes = []
        try:
            with deaf_children():
                for unit, (_, child_end) in enumerate(pairs):
                    own = cores[unit * self.threads : (unit + 1) * self.threads]
                    args = (child_end, self.loads[unit], self.threads, own if len(own) == self.threads else [])
                    process = context.Process(target=_serve, args=args, daemon=True)
                    process.start()
                    child_end.close()  # so that reading the other end fails when the child dies
                    self.processes.append(process)
            with bar("load", self.count) as progress:
                for unit in range(self.count):
                    if not self.pipes[unit].poll(LOAD_SECONDS):
                        raise JettisonError(f"unit {unit} has not loaded its models within {LOAD_SECONDS} s")
                    self.facts |= self._receive(unit)
                    progress.advance()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None = None, *_: Any) -> None:
        """End all units. After a failure or an interrupt they are killed without waiting for what they are doing."""
        for pipe in self.pipes if failure is None else ():
            try:
                pipe.send(None)
            except (OSError, ValueError):
                continue
        if failure is None:
            for unit in range(self.count - len(self.links), self.count):
                if self.pipes[unit].poll(2):
                    self.outcomes |= self._receive(unit)
        for process in self.processes:
            if failure is None:
                process.join(2)
            if process.is_alive():
                process.kill()
        for pipe in self.pipes:
            pipe.close()

    def start(self, unit: int, model: str) -> None:
        """Let a unit run one inference of a model. Returns at once; ``wait`` reports the end."""
        self.pipes[unit].send(model)

    def wait(self, seconds: float) -> list[tuple[int, float]]:
        """Wait until a unit has ended an inference, at most ``seconds``.

        Returns (unit, time of the end by time.perf_counter) for every inference that has ended.
        """
        ready = connection.wait(self.pipes, max(0.0, seconds))
        return [(unit, self._receive(unit)) for unit, pipe in enumerate(self.pipes) if pipe in ready]

    def _receive(self, unit: int) -> Any:
        try:
            message = self.pipes[unit].recv()
        except EOFError as error:
            raise JettisonError(f"unit {unit} died; a common cause is that memory ran out") from error
        if isinstance(message, Exception):
            raise message
        return message

    def measure(self, rounds: int = 15, models: Sequence[str] | None = None) -> Costs:
        """Measure the costs of all models on all units, while all units are at work.

        Every unit runs its models in turn, ``rounds`` times. Every unit starts one model further than the unit before.
        models: those to measure; None means all.
        Returns the costs: latency is the median from dispatch to end, energy follows the model of ``operators``.
        Raises UsageError for fewer rounds than one.
        """
        check_number("rounds", rounds, 1, 10_000, whole=True)
        rows = [[name for name in load if not models or name in models] for load in self.loads]
        samples: list[dict[str, list[float]]] = [{name: [] for name in names} for names in rows]
        first = [unit % max(1, len(names)) for unit, names in enumerate(rows)]
        turns = [names[start:] + names[:start] for names, start in zip(rows, first, strict=True)]
        left = [turn * rounds for turn in turns]  # by unit, the models still to run
        began: list[tuple[str, float] | None] = [None] * self.count  # by unit, the model that runs and its start
        with bar("measure", sum(map(len, left))) as progress:
            while any(left) or any(began):
                for unit in range(self.count):
                    if began[unit] is None and left[unit]:
                        name = left[unit].pop(0)
                        began[unit] = (name, time.perf_counter())
                        self.start(unit, name)
                for unit, end in self.wait(60):
                    name, start = began[unit]
                    began[unit] = None
                    samples[unit][name].append(1e3 * (end - start))
                    progress.advance()
        costs = tuple({name: self._cost(name, times) for name, times in of_unit.items()} for of_unit in samples)
        cores = f"{self.threads} core{'s' * (self.threads > 1)}"
        own = self.count - len(self.links)
        return Costs((cores,) * own + (LINK,) * len(self.links), costs, self._reaction())

    def _reaction(self) -> float:
        """Return by how many ms this process wakes too late from waiting, the median of 50 tries."""
        late = []
        for _ in range(50):
            due = time.perf_counter() + 0.002
            self.wait(0.002)
            late.append(1e3 * (time.perf_counter() - due))
        return max(0.0, statistics.median(late))

    def _cost(self, name: str, samples: list[float]) -> Cost:
        latency, fact = statistics.median(samples), self.facts[name]
        energy = latency * BUSY_WATTS if fact["energy_mj"] is None else fact["energy_mj"]
        return Cost(latency, energy, tuple(fact["layers"]), tuple(sorted(samples)))


def _serve(pipe: connection.Connection, load: Mapping[str, Variant | Remote], threads: int, cores: list[int]) -> None:
    """Work as a unit: load all models, send their facts, then run a model per name received, until None arrives.

    Every answer is the time at which the inference ended, or an exception. The link to a worker sends its outcomes
    at the end.
    """
    end_with(parent_process().sentinel)
    import torch

    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    try:
        runs, facts = {}, {}
        for name, source in load.items():
            run = runs[name] = source.open() if isinstance(source, Remote) else open_variant(source)
            facts[name] = {"energy_mj": None, "layers": [1.0]}
            if not isinstance(source, Remote) and run.module is not None:
                operators = count_operators(run)
                facts[name] = {"energy_mj": energy_of(operators), "layers": list(ends(op.macs for op in operators))}
            with torch.inference_mode():
                for _ in range(WARM_UP):
                    run()
            if isinstance(source, Remote):
                facts[name]["energy_mj"] = run.energy_mj()
        pipe.send(facts)
        with torch.inference_mode():
            while (name := pipe.recv()) is not None:
                runs[name]()
                pipe.send(time.perf_counter())
        outcomes = {name: dict(run.outcomes) for name, run in runs.items() if isinstance(load[name], Remote)}
        if outcomes:
            pipe.send(outcomes)
    except EOFError:
        return
    except JettisonError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(JettisonError(f"a unit failed: {type(error).__name__}: {error}"))
