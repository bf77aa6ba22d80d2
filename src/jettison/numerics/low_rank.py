"""Correct the error of a matrix by a low-rank matrix, for the inputs that occur."""

import torch
from torch import nn

from jettison.numerics.columns import dampings, never_active

DAMP = 0.01  # first damping of the Hessian, as a share of its mean diagonal


def best_correction(error: torch.Tensor, hessian: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find A and B with the least mean ‖(error − B A) x‖² over the calibration inputs x.

    error: (out, in).
    hessian: (in, in), the second moment of x, H.
    Returns A (rank, in) and B (out, rank). If error has fewer rows or columns than ``rank``, the rest of A and B is
    zero. Raises JettisonError if H cannot be factored.
    Source: truncated SVD of error · H^½ with H damped (EoRA, arXiv:2410.21271, section 3).
    """
    if never_active(hessian):  # an expert that no token reached: all directions weigh the same
        hessian = torch.eye(len(hessian))
    mean = hessian.diagonal().mean().double()
    for share in dampings(DAMP):
        lower, failed = torch.linalg.cholesky_ex(
            hessian.double() + share * mean * torch.eye(len(hessian), dtype=torch.float64)
        )
        if not failed:
            break
    weighted = error.double() @ lower  # (out, in); ‖weighted‖² is the mean ‖error x‖²
    # The singular vectors come from the smaller Gram matrix: a full SVD of a large layer takes minutes.
    tall = weighted.shape[0] > weighted.shape[1]
    directions = torch.linalg.eigh(weighted.T @ weighted if tall else weighted @ weighted.T)[1][:, -rank:].flip(1)
    b, a = (weighted @ directions, directions.T) if tall else (directions, directions.T @ weighted)
    # Share the singular values equally between a and b.
    size = torch.linalg.vector_norm(b if tall else a.T, dim=0).clamp(min=1e-30).sqrt()
    b, a = (b / size, a * size.unsqueeze(1)) if tall else (b * size, a / size.unsqueeze(1))
    # a · lower⁻¹ undoes the weighting.
    a, missing = torch.linalg.solve_triangular(lower, a, upper=False, left=False).float(), rank - len(a)
    return nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b.float(), (0, missing))
