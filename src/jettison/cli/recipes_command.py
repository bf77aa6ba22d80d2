"""The command ``jettison recipes``."""

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("recipes", epilog=common.example("jettison recipes"))(recipes)


def recipes(json: common.Json = None) -> None:
    """List the bundled recipes, when to use each of them, and the methods that a recipe can name."""
    from jettison.recipe import registry
    from jettison.recipe.recipe import load_recipe, preset_names

    common.begin(False, json)
    presets = [load_recipe(name) for name in preset_names()]
    for preset in presets:
        common.out.print(f"[bold]{preset.name}[/bold]  {preset.use}")
        for step in preset.steps:
            common.out.print(f"    {step}", markup=False)
    common.out.print()
    methods = [method for verb in registry.verbs() for method in registry.methods(verb).values()]
    for method in methods:
        options = ", ".join(f"{name}={value}" for name, value in method.defaults.items())
        common.out.print(f"[bold]{method.verb} {method.name}[/bold]  {method.summary}  [dim]{method.paper}[/dim]")
        common.out.print(f"    {options}", markup=False)
    common.finish(
        {
            "recipes": [preset.to_dict() for preset in presets],
            "methods": [
                {"verb": method.verb, "name": method.name, "paper": method.paper, "options": method.defaults}
                for method in methods
            ],
        },
        json,
    )
