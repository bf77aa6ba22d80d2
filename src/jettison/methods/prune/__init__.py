"""One-shot pruning: a method, a file."""
