"""The commands of ``jettison offload``: serve, join and capacity; others are in files of their own."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common, offload_play_command, offload_privacy_command
from jettison.cli import offload_options as options
from jettison.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Offload a part of a network to a machine that is not trusted: only noised latents leave the device.",
        epilog=common.example(
            "jettison offload serve decoder --port 7007 --token-file token.txt",
            "jettison offload join 127.0.0.1:7007 frames.safetensors --fallback decoder --token-file token.txt",
        ),
    )
    for function, *examples in (
        (serve, "jettison offload serve decoder --port 7007 --token-file token.txt",
         "jettison offload serve decoder --host 0.0.0.0 --expose --tls-cert cert.pem --tls-key key.pem -t token.txt"),
        (join, "jettison offload join 127.0.0.1:7007 frames.safetensors --fallback decoder --token-file token.txt"),
        (capacity, "jettison offload capacity", "jettison offload capacity --report joined.json --fps 30"),
        *offload_play_command.COMMANDS,
        *offload_privacy_command.COMMANDS,
    ):  # fmt: skip
        group.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(group, name="offload")


def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a described model (modules.json): the offloaded half.")],
    token_file: Annotated[
        Path, typer.Option("--token-file", "-t", help="File with the token; it is made if it is missing.")
    ],
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes any free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    expose: Annotated[bool, typer.Option("--expose", help="Allow a --host that other machines can reach.")] = False,
    latent: Annotated[
        int | None,
        typer.Option("--latent", help="Numbers in a latent; by default those that the model's first linear reads."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Frames that are computed at once, at most.")] = 16,
    window: Annotated[int, typer.Option("--window", help="Frames that a device may have without an answer.")] = 4,
    devices: Annotated[int, typer.Option("--devices", help="Devices that are served at once, at most.")] = 64,
    threads: Annotated[int, typer.Option("--threads", help="Threads that the model may use; 0 for all cores.")] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="Use TLS with this certificate (PEM); needs --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Key of the certificate (PEM).")] = None,
    announce: Annotated[
        Path | None, typer.Option("--announce", help="Write HOST:PORT to this file while the worker listens.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="End after so many seconds; by default when it is stopped.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Be the worker: compute the offloaded half for devices that know the token, in batches, until stopped."""
    from jettison.core.numbers import check_number
    from jettison.offload.service.endpoint import check_host, check_port, is_loopback, make_token, worker_tls
    from jettison.offload.service.limits import Limits

    common.begin(quiet, json, announce)
    check_host(host, expose)
    check_port(port)
    check_number("threads", threads, 0, 256, whole=True)
    if seconds is not None:
        check_number("seconds", seconds, 0, 1e7)
    limits, tls = Limits(devices=devices, window=window, batch=batch), worker_tls(tls_cert, tls_key)
    from jettison.graph.described_files import is_described
    from jettison.offload.avatar import HALF

    if not is_described(model) and is_described(model / HALF):
        raise UsageError(f"{model} holds a whole avatar, which a worker must not have: serve {model / HALF}")
    token = make_token(token_file)
    from jettison.core.progress import say
    from jettison.offload.service.half import Half
    from jettison.offload.service.serving import serve as run

    if threads:
        import torch

        torch.set_num_threads(threads)
    half = Half.load(model, latent)
    if tls is None and not is_loopback(host):
        say("note: without TLS, everyone on the network can read the noised latents and the answers")
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in half.outputs.items())

    def started(worker) -> None:
        common.out.print(f"listening on {worker.address}", markup=False, soft_wrap=True)
        say(f"latents of {half.latent} numbers; outputs {shapes}; stop with Ctrl-C")

    counts = run(half, token, announce=announce, seconds=seconds, started=started, host=host, port=port, expose=expose,
                 tls=tls, limits=limits)  # fmt: skip
    common.table("count", "", rows=[[name, str(number)] for name, number in sorted(counts.items())])
    common.finish(counts, json)


def join(
    address: Annotated[str, typer.Argument(help="The worker: HOST:PORT, or the file that `serve --announce` wrote.")],
    frames: Annotated[
        Path, typer.Argument(help="Noised latents, as jettison.offload.noised.write_noised writes them.")
    ],
    token_file: Annotated[Path, typer.Option("--token-file", "-t", help="File with the worker's token.")],
    fallback: Annotated[
        Path,
        typer.Option(
            "--fallback", help="Described model that computes the offloaded half here, where no answer comes."
        ),
    ],
    local: Annotated[
        Path | None, typer.Option("--local", help="Described model of the half that stays; it runs on every frame.")
    ] = None,
    fps: options.Fps = 30.0,
    deadline_ms: options.DeadlineMs = None,
    wait: options.Wait = 5.0,
    tls_ca: options.TlsCa = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Be the device: send a stream of noised latents by the clock, and compute here what does not come back in time."""
    from jettison.core.numbers import check_number
    from jettison.offload.service.endpoint import device_tls, parse_address, read_token
    from jettison.offload.service.limits import check_clock

    common.begin(quiet, json)
    check_number("wait", wait, 0, 3600)
    check_clock(fps, deadline_ms)
    parse_address(address)
    token, tls = read_token(token_file), device_tls(tls_ca)
    import asyncio

    from jettison.core.progress import say
    from jettison.offload.noised import read_noised
    from jettison.offload.service.device import RemoteHalf
    from jettison.offload.service.half import Half
    from jettison.offload.service.stream import run_stream

    stream, inputs = read_noised(frames)
    if local is not None and inputs is None:
        raise UsageError(f"--local {local}: {frames} has no tensor for the half that stays")
    half = None if local is None else Half.load(local, inputs.shape[-1])
    own = Half.load(fallback, stream[0].latent.size)

    async def work() -> dict:
        async with RemoteHalf(address, token, half=own, tls=tls) as remote:
            if not await remote.connected(wait):
                say(f"note: no worker at {address}, so frames stay local: {remote.trouble or 'it does not answer'}")
            return await run_stream(remote, stream, own, fps=fps, deadline_ms=deadline_ms, half=half, local=inputs)

    report = asyncio.run(work())
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["reasons"].items())
    common.out.print(f"{report['frames']} frames: {report['remote']} remote, {report['local']} local"
                     f"{f' ({reasons})' if reasons else ''}, {report['late']} late")  # fmt: skip
    rows = [
        [name.replace("_", " "), *(f"{value:.2f}" for value in shares.values())]
        for name, shares in report["latency_ms"].items()
        if shares
    ]
    common.table("milliseconds", "median", "95 %", "99 %", rows=rows)
    common.finish(report, json)


def capacity(
    report: Annotated[
        Path | None, typer.Option("--report", help="Use the times that `jettison offload join --json` measured.")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames per second that every user needs, with --report.")] = 30.0,
    radio: Annotated[
        str, typer.Option("--radio", help="Radio of the device: wifi, lte, or one of --constants.")
    ] = "wifi",
    processor: Annotated[
        str, typer.Option("--processor", help="Processor of the device: headset, or one of --constants.")
    ] = "headset",
    constants: Annotated[
        Path | None, typer.Option("--constants", help="YAML file with other radios and processors.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Compute users per device and energy per frame; without --report, the paper's table from its own figures."""
    from jettison.core.numbers import check_number
    from jettison.offload import capacity as model

    common.begin(quiet, json)
    check_number("fps", fps, 0.001, 10_000)
    chosen = model.find_constants(radio, processor, constants)
    if report is None:
        rows, claims = model.paper_table(), model.headlines()
        figures = lambda row: [f"{row[name]:.3f}" for name in ("local_s", "transfer_s", "worker_s")]
        lines = [[str(row["k"]), *figures(row), f"{row['offloaded']:.2f}", f"{row['extra']:.2f}", f"{row['total']:.2f}",
                  f"{row['ratio']:.2f}x", f"{row['loss_rise']['1']:+.1%}"] for row in rows]  # fmt: skip
        columns = ("offloaded", "local s", "transfer s", "worker s", "users", "extra", "in all", "ratio", "loss, v = 1")
        common.table(*columns, rows=lines)
        for name, claim in claims.items():
            if name != "both":
                from_rows = ", ".join(f"k = {k}" for k in claim["rows"])
                common.out.print(f"{name.replace('_', ' ')}: published {claim['published']}, that of {from_rows}")
        common.out.print(f"both at once: {', '.join(map(str, claims['both'])) or 'no row'}")
        return common.finish({"table": rows, "headlines": claims}, json)
    times = model.read_times(report)
    served = model.users(times, 1 / fps)
    spent = model.energy(times, *chosen)
    split = f"{served.offloaded:.2f} offloaded, {served.extra:.2f} entirely local"
    common.out.print(f"{served.total:.2f} users at {fps:g} Hz ({split}); {served.whole:.2f} without offloading: "
                     f"{served.ratio:.2f}x")  # fmt: skip
    common.out.print(f"{spent.total_mj:.3f} mJ a frame ({spent.compute_mj:.3f} compute, {spent.radio_mj:.3f} radio); "
                     f"{spent.whole_mj:.3f} without offloading: {spent.ratio:.2f}x")  # fmt: skip
    common.finish({"times": times.model_dump(), "fps": fps, **served.to_dict(), "energy": spent.to_dict()}, json)
