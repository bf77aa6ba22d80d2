"""Planning: from a device and a budget to a recipe, and estimates of the time, memory and disk that a run needs."""
