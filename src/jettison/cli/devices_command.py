"""jettison devices"""

from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    app.command("devices", epilog=common.example("jettison devices", "jettison devices --measure"))(devices)


def devices(
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine anew.")] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """List the devices a plan can be made for, and this machine."""
    from jettison.devices import device_names, find_device
    from jettison.devices import measure as measure_this
    from jettison.units import format_bytes

    common.begin(quiet)
    measure_this(again=measure)
    found = [find_device(name) for name in ("this", *device_names())]
    rows = [
        [
            device.name,
            f"{format_bytes(device.bandwidth)}/s",
            format_bytes(device.memory),
            f"{device.flops / 1e12:.3g} T",
            device.title,
        ]
        for device in found
    ]
    common.table("device", "reads", "memory", "flop/s", "what it is", rows=rows, text=("what it is",))
    common.finish([vars(device) for device in found], json)
