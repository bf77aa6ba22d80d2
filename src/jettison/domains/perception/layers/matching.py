"""Hungarian matching of predictions and targets, as DETR does."""

import torch
from scipy.optimize import linear_sum_assignment

ABSURD = 1e6  # stands for a cost that is not a number, so that the loss, and not the matching, reports it


@torch.no_grad()
def match(costs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return for every target the prediction that it is matched with, so that the sum of the costs is least.

    costs: (batch, predictions, targets).
    valid: (batch, targets), true where there is a target; the others are padding.
    Returns (batch, targets) indices of predictions; −1 for padding, and for targets that get none because there are
    more targets than predictions. No prediction is used twice.
    Source: arXiv:2005.12872, section 3.1.
    """
    table = costs.detach().float().cpu().nan_to_num(ABSURD, ABSURD, -ABSURD).clamp(-ABSURD, ABSURD).numpy()
    there = valid.cpu().numpy()
    matched = torch.full(valid.shape, -1, dtype=torch.long)
    for place in range(len(table)):
        (targets,) = there[place].nonzero()
        rows, columns = linear_sum_assignment(table[place][:, targets])
        matched[place, torch.from_numpy(targets[columns])] = torch.from_numpy(rows)
    return matched.to(costs.device)
