"""From a device and a budget to a recipe, and what carrying it out will take."""
