"""The commands ``jettison devices``, ``jettison devices measure`` and ``jettison devices show``."""

from typing import Annotated

import typer

from jettison.cli import common

UNVERIFIED = "* some figures are from memory and not verified; `jettison devices show NAME` says which"


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program."""
    devices = typer.Typer()
    examples = ("jettison devices", "jettison devices measure", "jettison devices show strix-halo")
    devices.callback(invoke_without_command=True, epilog=common.example(*examples))(list_devices)
    devices.command("measure", epilog=common.example("jettison devices measure"))(measure)
    devices.command("show", epilog=common.example("jettison devices show strix-halo"))(show)
    app.add_typer(devices, name="devices")


def list_devices(context: typer.Context, json: common.Json = None, quiet: common.Quiet = False) -> None:
    """List the devices that a plan can be made for, and this machine."""
    if context.invoked_subcommand:
        return
    from jettison.core.bytesize import format_bytes
    from jettison.devices.device import device_names, find_device

    common.begin(quiet, json)
    listed = [find_device(name) for name in ("this", *device_names())]
    rows = [
        [
            device.name,
            f"{format_bytes(device.bandwidth)}/s",
            format_bytes(device.memory),
            *(_tera(device.flops[kind]) if kind in device.flops else "" for kind in ("fp16", "int8")),
            _microseconds(device.overhead),
            "*" if device.unverified else "",
            device.title,
        ]
        for device in listed
    ]
    columns = ("device", "reads", "memory", "fp16\nTflop/s", "int8\nTflop/s", "overhead", "", "what it is")
    common.table(*columns, rows=rows, text=("what it is",))
    common.out.print(f"\n{UNVERIFIED}", style="dim", markup=False)
    common.finish([vars(device) for device in listed], json)


def measure(json: common.Json = None, quiet: common.Quiet = False) -> None:
    """Measure this machine again: memory reads by threads and streams, matrix products, the overhead of an operator."""
    from jettison.core.bytesize import format_bytes
    from jettison.devices.device import find_device
    from jettison.devices.machine import measure as measure_this

    common.begin(quiet, json)
    result = measure_this(again=True)
    rows = [
        [str(row["threads"]), str(row["streams"]), f"{format_bytes(row['bandwidth'])}/s"] for row in result["measured"]
    ]
    if rows:
        common.table("threads", "streams of each", "reads", rows=rows)
        common.out.print()
    _print_figures(find_device("this"))
    common.finish(result, json)


def show(
    name: Annotated[
        str, typer.Argument(help="Device: a name from `jettison devices`, this (this machine), or a .yaml file.")
    ],
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Show the figures of a device and the source of each figure."""
    from jettison.devices.device import find_device

    common.begin(quiet, json)
    device = find_device(name)
    _print_figures(device)
    common.finish(vars(device), json)


def _print_figures(device) -> None:
    from jettison.core.bytesize import format_bytes

    peak = f"\n{device.share:.0%} of {format_bytes(device.bandwidth / device.share)}/s" if device.share < 1 else ""
    figures = [
        ("reads", f"{format_bytes(device.bandwidth)}/s{peak}", "bandwidth"),
        ("memory", format_bytes(device.memory), "memory"),
        ("\n".join(device.flops), "\n".join(f"{_tera(rate)} Tflop/s" for rate in device.flops.values()), "flops"),
        ("cache", format_bytes(device.cache), "cache"),
        ("overhead", _microseconds(device.overhead), "overhead"),
    ]
    common.out.print(device.title, style="bold", markup=False)
    rows = [[label, value, device.sources.get(figure, "not stated")] for label, value, figure in figures]
    common.table("figure", "value", "source", rows=rows, text=("source",))


def _tera(count: float) -> str:
    from jettison.core.numbers import figures

    return figures(count / 1e12)


def _microseconds(seconds: float) -> str:
    from jettison.core.numbers import figures

    return f"{figures(1e6 * seconds)} µs"
