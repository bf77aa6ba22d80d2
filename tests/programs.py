"""Pipelines for the tests of programs, and a clock: a run takes as long as blocks are computed, and a fixed rest."""

import tiny_diffusion as tiny

from jettison.domains.diffusion.running import Handle

STEPS = 6
SEARCH = {"search_steps": 4, "width": 16, "rate": 1.0}
NAMES = ("dit", "sd", "sd3")  # a DiT, a UNet, and one of flow matching


def save(name, folder):
    """Write a pipeline with a VAE, and return its folder."""
    tiny.make(name)[0].save_pretrained(folder)
    return folder


def step(method="dip_go", **options):
    """Return a recipe with a program step."""
    own = {"dip_go": SEARCH, "greedy": {"runs": 1}}.get(method, {})
    options = {"method": method, "steps": STEPS, "guidance": 3.0} | own | options
    if "speedup" not in options:
        options.setdefault("ratio", 0.4)
    return {"steps": [{"program": options}]}


def replace_clock(patch, rest=0.0):
    """Let a program step read this clock: milliseconds are the blocks that a run computes, and ``rest`` of a full run.

    Returns a list that gets the blocks of every program that is timed.
    """
    timed = []

    def in_turns(runs, **_):
        counts = {}
        handles, plain = [], Handle.detach
        with patch.context() as inner:
            inner.setattr(Handle, "detach", lambda self: (handles.append(self.counts()), plain(self))[1])
            for name, run in runs.items():
                handles.clear()
                run()
                counts[name] = handles[-1] if handles else None
        full = sum(counts["program"].values())
        timed.append(counts["program"]["computed"])
        times = {"full": full * (1 + rest), "program": timed[-1] + full * rest}
        return {name: {"median_ms": time, "samples_ms": [time] * 6} for name, time in times.items()}

    patch.setattr("jettison.pipeline.program.in_turns", in_turns)
    return timed
