"""Units that are real: one process each, with its threads and all models of a scenario loaded, waiting for frames."""

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
from jettison.xr.operators import count_operators, energy_of
from jettison.xr.variants import Variant, open_variant

WARM_UP = 3
LOAD_SECONDS = 300
BUSY_WATTS = 10.0  # of a model whose operators cannot be seen (ONNX): an assumption


def check_units(count: int, threads: int) -> None:
    """Raises UsageError for numbers that are not valid."""
    check_number("units", count, 1, 64, whole=True)
    check_number("threads", threads, 1, 256, whole=True)


class Units:
    """``with Units(variants, count=2, threads=1) as units``. variants: by model. Each unit keeps to cores of its own
    where the system lets it. Raises JettisonError where a unit fails."""

    def __init__(self, variants: Mapping[str, Variant], count: int = 1, threads: int = 1):
        check_units(count, threads)
        self.variants, self.count, self.threads = dict(variants), count, threads
        self.facts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Units":
        context = get_context("spawn")
        pairs = [context.Pipe() for _ in range(self.count)]
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.pipes = [ours for ours, _ in pairs]
        self.processes = []
        try:
            with deaf_children():
                for unit, (_, theirs) in enumerate(pairs):
                    own = cores[unit * self.threads : (unit + 1) * self.threads]
                    given = (theirs, self.variants, self.threads, own if len(own) == self.threads else [])
                    process = context.Process(target=_serve, args=given, daemon=True)
                    process.start()
                    theirs.close()
                    self.processes.append(process)
            with bar("load", self.count) as progress:
                for unit in range(self.count):
                    if not self.pipes[unit].poll(LOAD_SECONDS):
                        raise JettisonError(f"unit {unit} has not loaded its models within {LOAD_SECONDS} s")
                    self.facts = self._receive(unit)
                    progress.advance()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None = None, *_: Any) -> None:
        """After a failure, an interrupt among them, nobody waits for what a unit is doing."""
        for pipe in self.pipes if failure is None else ():
            try:
                pipe.send(None)
            except (OSError, ValueError):
                continue
        for process in self.processes:
            if failure is None:
                process.join(2)
            if process.is_alive():
                process.kill()
        for pipe in self.pipes:
            pipe.close()

    def start(self, unit: int, model: str) -> None:
        self.pipes[unit].send(model)

    def wait(self, seconds: float) -> list[tuple[int, float]]:
        """(unit, the moment it ended by time.perf_counter) of the frames that have ended by then."""
        ready = connection.wait(self.pipes, max(0.0, seconds))
        return [(unit, self._receive(unit)) for unit, pipe in enumerate(self.pipes) if pipe in ready]

    def _receive(self, unit: int) -> Any:
        try:
            found = self.pipes[unit].recv()
        except EOFError as error:
            raise JettisonError(f"unit {unit} died, as happens where memory runs out") from error
        if isinstance(found, Exception):
            raise found
        return found

    def measure(self, rounds: int = 15, models: Sequence[str] | None = None) -> Costs:
        """Latency from dispatch to end, the median of each model on each unit, while all units work: each goes through
        the models, one place further than its neighbour. Energy by the model of ``operators``. Raises UsageError for
        fewer rounds than one."""
        check_number("rounds", rounds, 1, 10_000, whole=True)
        names = list(models or self.variants)
        samples: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in range(self.count)]
        turns = [names[unit % len(names) :] + names[: unit % len(names)] for unit in range(self.count)]
        left = [turn * rounds for turn in turns]
        began: list[tuple[str, float] | None] = [None] * self.count
        with bar("measure", rounds * len(names) * self.count) as progress:
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
        rows = tuple({name: self._cost(name, found[name]) for name in names} for found in samples)
        names = tuple(f"{self.threads} core{'s' * (self.threads > 1)}" for _ in samples)
        return Costs(names, rows, self._reaction())

    def _reaction(self) -> float:
        """ms that this process wakes too late, the median."""
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


def _serve(pipe: connection.Connection, variants: Mapping[str, Variant], threads: int, cores: list[int]) -> None:
    end_with(parent_process().sentinel)
    import torch

    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    try:
        runs, facts = {}, {}
        for name, variant in variants.items():
            run = runs[name] = open_variant(variant)
            facts[name] = {"energy_mj": None, "layers": [1.0]}
            if run.module is not None:
                operators = count_operators(run)
                facts[name] = {"energy_mj": energy_of(operators), "layers": list(ends(op.macs for op in operators))}
            with torch.inference_mode():
                for _ in range(WARM_UP):
                    run()
        pipe.send(facts)
        with torch.inference_mode():
            while (name := pipe.recv()) is not None:
                runs[name]()
                pipe.send(time.perf_counter())
    except EOFError:
        return
    except JettisonError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(JettisonError(f"a unit failed: {type(error).__name__}: {error}"))
