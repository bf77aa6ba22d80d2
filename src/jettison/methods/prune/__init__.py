"""Methods of one-shot pruning, one file each."""
