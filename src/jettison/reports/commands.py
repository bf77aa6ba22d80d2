"""How to reproduce a run: the commands that made it, quoted for a shell."""

import json
import shlex
from contextlib import suppress
from typing import Any

import yaml

from jettison.core.errors import UsageError
from jettison.pipeline.recovery import recovery_step
from jettison.recipe.recipe import load_recipe
from jettison.reports.run import Run


def commands(run: Run) -> list[str]:
    """Return the commands that make the run again: ``jettison fit``, or ``compress`` and ``recover``, with options.

    The folder is named by its own name only, not by the path where it is now.
    """
    manifest, out = run.manifest, run.folder.resolve().name
    fit = (manifest.get("request") or {}).get("command")
    command = manifest.get("command") or [
        "jettison",
        "compress",
        manifest["teacher"]["name"],
        "--recipe",
        "recipe.yaml",
    ]
    lines = [[*(fit or command), "--out", out]]
    changes = recovery_changes(manifest)
    if manifest.get("recovery") and (changes or not fit):  # fit itself recovers, as its recipe says
        lines.append(["jettison", "recover", out, *(word for change in changes for word in ("--set", change))])
    return [shlex.join(words) for words in lines]


def recovery_changes(manifest: dict[str, Any]) -> list[str]:
    """Return the options of the recovery that differ from the recipe, each as ``recover.option=value``."""
    used = manifest.get("recovery") or {}
    try:
        step = recovery_step(load_recipe(manifest["recipe"]))
    except UsageError:  # the recipe is of another version of Jettison, which has other methods
        return []
    planned = json.loads(json.dumps({"method": step.method} | step.options))
    return [f"recover.{name}={_yaml(used[name])}" for name in planned if name in used and used[name] != planned[name]]


def _yaml(value: Any) -> str:
    """Write a value as YAML on one line, such that it is read back as the same value."""
    with suppress(yaml.YAMLError):
        if isinstance(value, str) and yaml.safe_load(value) == value:
            return value
    return json.dumps(value)
