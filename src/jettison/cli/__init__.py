"""The command line, one file per command. Commands parse arguments, call the API and print; they hold no logic."""

from jettison.cli.app import main

__all__ = ["main"]
