"""Reports: one self-contained HTML page per run, and pages that compare runs, show a plan, or show runs of XRBench."""
