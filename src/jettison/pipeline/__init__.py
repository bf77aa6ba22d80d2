"""What is done to a folder: compress, prune, recover, evaluate, verify; unit by unit, with a journal."""
