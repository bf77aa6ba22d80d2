"""The scripts behind every figure, by system. They run from the root of the repository, as modules:

    python -m benchmarks.sds.study --check

Each keeps its cells, with all samples, in runs/NAME, outside git, and writes claims and tables to results/NAME.json.
"""
