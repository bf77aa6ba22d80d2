"""Methods of depth pruning, one file each."""
