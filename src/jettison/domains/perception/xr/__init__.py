"""The eleven unit models of XRBench."""
