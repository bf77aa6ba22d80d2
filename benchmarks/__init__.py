"""The scripts behind every figure, in one folder per system. Run them from the root of the repository, as modules:

    python -m benchmarks.sds.study --check

Each script keeps its cells (computed parts, with all samples) in runs/NAME, outside git, and writes claims and tables
to results/NAME.json.
"""
