"""Options that the commands of ``jettison offload`` share."""

from pathlib import Path
from typing import Annotated

import typer

Delta = Annotated[
    float,
    typer.Option("--delta", help="Reuse a noised latent while the true one moved less than this share of its spread."),
]
Every = Annotated[int, typer.Option("--every", help="Allow a fresh draw at every so many frames.")]
Fps = Annotated[float, typer.Option("--fps", help="Frames per second.")]
DeadlineMs = Annotated[
    float | None, typer.Option("--deadline-ms", help="From a frame's arrival to its deadline; by default 1/fps.")
]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the worker before the first frame, at most.")]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", help="Use TLS, and trust this certificate (PEM) only.")]
