"""The second round of SA-FSM: drop the matches whose depth disagrees with the model of the first round.

Source: arXiv:2407.10406 removes mismatches by the loss on matches, in two rounds. The threshold is our reconstruction.
"""

from collections.abc import Mapping

import torch

from jettison.domains.perception.surround.matching import Table

LEAST, SHARE = 0.3, 0.8  # the threshold is at least this error, and the error of this share of a pair's matches


def errors(depth: torch.Tensor, table: Table, sizes: torch.Tensor) -> torch.Tensor:
    """Return by how much a model disagrees with matches: |model − match| / match, (n,), the larger of both ends.

    depth: (slots, height, width) metres, of the model. sizes: (slots, 2), width and height of the images of matches.
    """
    height, width = depth.shape[-2:]
    both = []
    for side in (0, 1):
        slot = table.ends[:, side]
        x, y = ((table.pixels[:, side] + 0.5) * torch.tensor([width, height]) / sizes[slot] - 0.5).round().long().T
        made = depth[slot, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        both.append((made - table.depths[:, side]).abs() / table.depths[:, side])
    return torch.maximum(*both)


def agreeing(tables: Mapping[str, Table], off: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return which matches to keep, (n,) bool by key.

    off: the errors of all matches by key. For every pair of cameras the threshold is max(0.3, 80th percentile).
    """
    by_pair: dict[tuple[int, int], list[torch.Tensor]] = {}
    for key, table in tables.items():
        for pair in set(map(tuple, table.ends.tolist())):
            by_pair.setdefault(pair, []).append(off[key][(table.ends == torch.tensor(pair)).all(1)])
    most = {pair: max(LEAST, _quantile(torch.cat(parts))) for pair, parts in by_pair.items()}
    limit = lambda table: torch.tensor([most[tuple(pair)] for pair in table.ends.tolist()])
    return {key: off[key] <= limit(table) for key, table in tables.items()}


def _quantile(values: torch.Tensor) -> float:
    return float(values.sort().values[min(len(values) - 1, int(SHARE * len(values)))])
