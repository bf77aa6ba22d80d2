"""What the times of fresh draws tell about a secret, measured: how well a guesser does who sees only the times."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jettison.core.errors import UsageError
from jettison.numerics.information import success_information
from jettison.offload.accounting import Account, Terms
from jettison.offload.attacks import Success, nearest
from jettison.offload.noise import Noise


@dataclass(frozen=True)
class Timing:
    """What the pattern of draws tells.

    success: of a guesser who knows patterns of other recordings of the same secrets.
    least: nats that the pattern tells at least, from the lower end of the interval of the success; 0 if the guesser is
        not surely better than without the pattern.
    most: nats that it can tell at most, see ``Terms.timing_bound``.
    """

    success: Success
    least: float
    most: float


def draw_patterns(terms: Terms, noise: Noise, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return at which frames something new happens, (sequences, frames) float32: a fresh draw 1, a stay at home −1.

    sequences: true latents of one secret each, (frames, d), all of one length.
    """
    patterns = []
    for latents in sequences:
        account = Account(terms, noise, torch.Generator().manual_seed(0))  # the noise does not change the pattern
        kinds = [account.frame(latent).kind for latent in latents]
        patterns.append(torch.tensor([{"fresh": 1.0, "reused": 0.0, "local": -1.0}[kind] for kind in kinds]))
    if len({len(pattern) for pattern in patterns}) != 1:
        raise UsageError("sequences of several lengths, or none: the patterns have to be of one length")
    return torch.stack(patterns)


def measure_timing(
    terms: Terms, noise: Noise, sequences: Sequence[torch.Tensor], secrets: torch.Tensor, seed: int = 0
) -> Timing:
    """Measure what the pattern of draws tells about the secrets.

    sequences: as in ``draw_patterns``. secrets: the secret of every sequence, (sequences,), from 0; every secret needs
        several sequences: half are known to the guesser, half are guessed.
    A guesser sees how many draws there were up to each frame, and names the secret whose known pattern is nearest.
    """
    counts = draw_patterns(terms, noise, sequences).cumsum(1)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    known, guessed = order[: len(order) // 2], order[len(order) // 2 :]
    success = nearest(counts[guessed], secrets[guessed], counts[known], secrets[known])
    prior = 1 / terms.secrets
    least = success_information(success.low, prior) if success.low > prior else 0.0
    return Timing(success, least, terms.timing_bound)
