"""What to do: recipes, their presets, and the methods that they may name."""
