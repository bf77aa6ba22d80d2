"""What a matrix of low rank can do about an error, for the inputs that occur."""

import torch
from torch import nn

from jettison.numerics.columns import dampings, never_active

DAMP = 0.01


def best_correction(error: torch.Tensor, hessian: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) with the least mean ‖(error − B A) x‖² over inputs with second moment hessian.

    The truncated SVD of error · H^½, H damped (EoRA, arXiv:2410.21271, section 3). error: (out, in). Where error has
    fewer rows or columns than ``rank``, the rest of A and B is zero. Raises JettisonError if H cannot be factored.
    """
    if never_active(hessian):  # an expert that no token reached: every direction counts alike
        hessian = torch.eye(len(hessian))
    mean = hessian.diagonal().mean().double()
    for share in dampings(DAMP):
        lower, failed = torch.linalg.cholesky_ex(
            hessian.double() + share * mean * torch.eye(len(hessian), dtype=torch.float64)
        )
        if not failed:
            break
    seen = error.double() @ lower
    # Directions from the smaller Gram matrix: a full SVD of a large layer takes minutes.
    tall = seen.shape[0] > seen.shape[1]
    directions = torch.linalg.eigh(seen.T @ seen if tall else seen @ seen.T)[1][:, -rank:].flip(1)
    b, a = (seen @ directions, directions.T) if tall else (directions, directions.T @ seen)
    size = torch.linalg.vector_norm(b if tall else a.T, dim=0).clamp(min=1e-30).sqrt()
    b, a = (b / size, a * size.unsqueeze(1)) if tall else (b * size, a / size.unsqueeze(1))
    a, missing = torch.linalg.solve_triangular(lower, a, upper=False, left=False).float(), rank - len(a)
    return nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b.float(), (0, missing))
