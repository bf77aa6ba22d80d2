"""Which step of which run a call of the denoiser is.

With a scheduler, a run begins when its steps are set, which every pipeline of diffusers does once per run; the calls
of a run are as many as ``scheduler.timesteps``. Without one, a run begins where the time rises.
"""

from collections.abc import Callable
from typing import Any

import torch

from jettison.domains.diffusion.patches import Patches
from jettison.policies.step_cache import Trajectory, Unit


class Clock:
    """Counts the calls of a denoiser. Guidance is expected in the batch: one call per step.

    scheduler: returns the scheduler in use, or None. A pipeline may get another one later.
    """

    def __init__(self, scheduler: Callable[[], Any], units: tuple[Unit, ...]):
        self._scheduler, self._units, self._patches = scheduler, units, Patches()
        self._watched: Any = None
        self._fresh, self._last, self.calls, self.step = True, float("inf"), None, -1
        self._watch()

    def _watch(self) -> None:
        """Notice when the steps of the scheduler in use are set."""
        if (scheduler := self._scheduler()) is self._watched:
            return
        self._patches.undo()
        self._watched, self._fresh = scheduler, True
        if scheduler is not None:
            self._patches.replace(scheduler, "set_timesteps", self._notice)

    def _notice(self, original: Callable) -> Callable:
        def set_timesteps(*args, **kwargs):
            self._fresh = True
            return original(*args, **kwargs)

        return set_timesteps

    def tick(self, time: Any) -> Trajectory | None:
        """Count a call. Returns the run that begins with it, or None if the last run goes on.

        time: the timestep that the denoiser was called with.
        """
        self._watch()
        if self._watched is None:
            now = float(torch.as_tensor(time).max())
            self._fresh, self._last = self._fresh or now >= self._last, now
        elif self.calls is not None and self.step + 1 >= self.calls:
            self._fresh = True
        if not self._fresh:
            self.step += 1
            return None
        self._fresh, self.step = False, 0
        scheduler = self._watched
        timesteps = getattr(scheduler, "timesteps", None)
        self.calls = None if timesteps is None else len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)
        steps = getattr(scheduler, "num_inference_steps", None)
        sampler = None if scheduler is None else type(scheduler).__name__
        return Trajectory(self._units, self.calls, None if steps is None else int(steps), sampler)

    def stop(self) -> None:
        """Leave the scheduler as it was."""
        self._patches.undo()
