"""What a device can carry: its figures, how they are measured, and what a model costs on it."""
