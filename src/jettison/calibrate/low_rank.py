"""What a matrix of low rank can do about an error, for the inputs that occur."""

import torch

DAMP = 0.01


def best_correction(error: torch.Tensor, hessian: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) with the least mean ‖(error − B A) x‖² over inputs with second moment hessian.

    The truncated SVD of error · H^½, H damped (EoRA, arXiv:2410.21271, section 3). error: (out, in).
    """
    if not hessian.any():  # an expert that no token reached: every direction counts alike
        hessian = torch.eye(len(hessian))
    damped = hessian.double() + DAMP * hessian.diagonal().mean().double() * torch.eye(len(hessian), dtype=torch.float64)
    lower = torch.linalg.cholesky(damped)
    seen = error.double() @ lower
    # Directions from the smaller Gram matrix: a full SVD of a large layer takes minutes.
    tall = seen.shape[0] > seen.shape[1]
    directions = torch.linalg.eigh(seen.T @ seen if tall else seen @ seen.T)[1][:, -rank:].flip(1)
    b, a = (seen @ directions, directions.T) if tall else (directions, directions.T @ seen)
    size = torch.linalg.vector_norm(b if tall else a.T, dim=0).clamp(min=1e-30).sqrt()
    b, a = (b / size, a * size.unsqueeze(1)) if tall else (b * size, a / size.unsqueeze(1))
    return torch.linalg.solve_triangular(lower, a, upper=False, left=False).float(), b.float()
