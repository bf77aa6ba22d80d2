"""The command ``play`` of ``jettison offload``: an avatar whose half runs on a worker, frame by frame."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli import offload_options as options
from jettison.core.errors import UsageError

MOST_FRAMES = 100_000


def play(
    avatar: Annotated[Path, typer.Argument(help="Folder of a synthetic avatar, as `offload attack --out` trains it.")],
    worker: Annotated[
        str | None,
        typer.Option("--worker", help="HOST:PORT, or the file of `serve --announce`; by default one is started here."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", "-t", help="File with the worker's token; needed with --worker.")
    ] = None,
    limit: Annotated[
        float, typer.Option("--limit", help="Nats that everything sent about one expression may tell.")
    ] = 1.0,
    draws: Annotated[int, typer.Option("--draws", help="Fresh draws of noise that share the limit.")] = 30,
    delta: options.Delta = 0.0,
    every: options.Every = 1,
    rule: Annotated[
        str, typer.Option("--rule", help="Noise: exact, waterfilling, linear, isotropic, released.")
    ] = "exact",
    count: Annotated[int, typer.Option("--count", help="Frames to play.")] = 300,
    hold: Annotated[int, typer.Option("--hold", help="Frames that an expression lasts.")] = 30,
    drift: Annotated[float, typer.Option("--drift", help="How far the statistics of the frames move meanwhile.")] = 0.3,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Whether the noise follows the covariance as it moves.")
    ] = True,
    fps: options.Fps = 30.0,
    deadline_ms: options.DeadlineMs = None,
    wait: options.Wait = 5.0,
    tls_ca: options.TlsCa = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Play a synthetic sequence whose offloaded half a worker computes, and say what was sent and what it may tell.

    A frame that may not be sent, or whose answer does not come in time, is made of the local part alone.
    """
    from jettison.core.numbers import check_number, check_seed
    from jettison.offload.service.endpoint import device_tls, parse_address, read_token
    from jettison.offload.service.limits import check_clock

    common.begin(quiet, json)
    check_seed(seed)
    check_number("wait", wait, 0, 3600)
    check_number("count", count, 1, MOST_FRAMES, whole=True)
    check_clock(fps, deadline_ms)
    tls = device_tls(tls_ca)
    if worker is None and (token_file is not None or tls is not None):
        raise UsageError("--token-file and --tls-ca are for a worker that runs already: name it with --worker")
    if worker is not None:
        parse_address(worker)
        if token_file is None:
            raise UsageError(f"--worker {worker} needs --token-file, the file with its token")
        token = read_token(token_file)
    from jettison.core.numbers import figures
    from jettison.core.progress import say
    from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
    from jettison.offload.accounting import Terms, describe
    from jettison.offload.avatar import HALF, load_half
    from jettison.offload.experiment import open_synthetic
    from jettison.offload.service.blocking import BlockingRemoteHalf
    from jettison.offload.service.device import REASONS
    from jettison.offload.service.serving import WorkerProcess
    from jettison.offload.training import measure

    experiment = open_synthetic(avatar)
    setup, model = experiment.setup, experiment.model
    half = load_half(avatar, model)
    terms = Terms(limit, draws, experiment.secrets, delta, every)
    noise = experiment.noise(terms.budget, rule)
    avatars = SyntheticAvatars(setup.texture, setup.grid, setup.expressions, seed=setup.seed)
    sequence = avatars.sequence(count, 3 + seed, hold=hold, drift=drift)
    with ExitStack() as stack:
        if worker is None:
            from secrets import token_bytes

            token = token_bytes(32).hex().encode()
            worker = stack.enter_context(WorkerProcess(avatar / HALF, token)).address
        link = stack.enter_context(BlockingRemoteHalf(worker, token, half=half, tls=tls))
        if not link.connected(wait):
            say(f"note: no worker at {worker}, so frames stay local: {link.remote.trouble or 'it does not answer'}")
        played = experiment.play(
            terms, sequence, rule, follow, answers=link, fps=fps,
            deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
        )  # fmt: skip
        trouble, counts = link.remote.trouble, dict(link.remote.counts)
    bounds = {
        "local part alone": measure(model, sequence, local=True)["loss"], "no noise": measure(model, sequence)["loss"]
    }  # fmt: skip
    report = played.to_dict() | {"bounds": bounds, "limit": limit, "counts": counts, "trouble": trouble}
    reasons = ", ".join(f"{counts[reason]} {reason}" for reason in REASONS if counts.get(reason))
    common.out.print(
        f"{report['frames']} frames: {report['fresh']} fresh, {report['reused']} reused, {report['local']} local, "
        f"{report['late']} late{f' ({reasons})' if reasons else ''}", markup=False, soft_wrap=True,
    )  # fmt: skip
    if played.behind:
        common.out.print(f"this machine fell behind the clock at {played.behind} frames, and the clock waited")
    losses = ", ".join(f"{figures(loss)} {name}" for name, loss in bounds.items())
    common.out.print(f"loss {figures(played.loss)} ({losses})", markup=False, soft_wrap=True)
    common.out.print(
        f"spent: at most {figures(report['spent_most'])} of {figures(limit)} nats per expression, by "
        f"{report['draws']} draws for {report['secrets']} expressions", markup=False, soft_wrap=True,
    )  # fmt: skip
    if played.returned:
        common.out.print(
            f"{played.returned} of these came back: what each told adds up for somebody who sees that they did.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if (played.overspent or 0) > 0.01 * terms.budget:
        common.out.print(
            f"The latents vary more than the noise was made for: a draw tells {figures(played.overspent)} nats beyond "
            f"its {figures(terms.budget)}.", markup=False, soft_wrap=True,
        )  # fmt: skip
    common.out.print(describe(terms, noise), markup=False, soft_wrap=True)
    common.finish(report, json)


COMMANDS = (
    (play, "jettison offload play runs/avatar --limit 1 --draws 30 --drift 0.3",
     "jettison offload play runs/avatar --worker 127.0.0.1:7007 --token-file token.txt"),
)  # fmt: skip
