"""Print every claim of the project and how many fall short: ``python -m benchmarks.claims``."""

import json

from benchmarks.witness import RESULTS, show


def main() -> None:
    """Print the claims of all result files, and how many do not hold."""
    short = 0
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        print(f"{file.stem}: {result['command']}, commit {result['commit'][:8]}{' (dirty)' if result['dirty'] else ''}")
        show(result["claims"])
        short += sum(not claim["holds"] for claim in result["claims"])
    print(f"{short} fall short" if short else "all hold")


if __name__ == "__main__":
    main()
