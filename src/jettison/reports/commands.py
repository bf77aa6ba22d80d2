"""How to make a run again: the commands that were given, as a shell takes them."""

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
    """``jettison fit``, or ``compress`` and ``recover``, with the options that were given. The folder goes by its name,
    wherever it is now."""
    manifest, out = run.manifest, run.folder.resolve().name
    asked = (manifest.get("request") or {}).get("command")
    made = manifest.get("command") or ["jettison", "compress", manifest["teacher"]["name"], "--recipe", "recipe.yaml"]
    found = [[*(asked or made), "--out", out]]
    changes = recovery_changes(manifest)
    if manifest.get("recovery") and (changes or not asked):  # fit recovers by itself, as its recipe says
        found.append(["jettison", "recover", out, *(word for change in changes for word in ("--set", change))])
    return [shlex.join(words) for words in found]


def recovery_changes(manifest: dict[str, Any]) -> list[str]:
    """What the recovery was told beyond the recipe, as ``recover.option=value``."""
    made = manifest.get("recovery") or {}
    try:
        step = recovery_step(load_recipe(manifest["recipe"]))
    except UsageError:  # of another version of Jettison, which knows other methods
        return []
    meant = json.loads(json.dumps({"method": step.method} | step.options))
    return [f"recover.{name}={_yaml(made[name])}" for name in meant if name in made and made[name] != meant[name]]


def _yaml(value: Any) -> str:
    """On one line, read back as it is."""
    with suppress(yaml.YAMLError):
        if isinstance(value, str) and yaml.safe_load(value) == value:
            return value
    return json.dumps(value)
