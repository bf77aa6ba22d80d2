"""Statistics of activations, and the importance of the parts of a model."""
