"""The command line: one file per command. Parse, call the API, print. No logic."""

from jettison.cli.app import main

__all__ = ["main"]
