"""Statistics of activations, and how much each part of a model matters."""
