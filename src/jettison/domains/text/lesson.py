"""The distillation loss of a language model: KL from its original over all tokens.

The logits of a whole batch are never in memory.
"""

from collections.abc import Mapping

import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.graph.dense import has_fast_bfloat16
from jettison.training.losses import chunked_kl, head_of, kl, square_head

TRIED = 16  # tokens of the test whether the model changes its logits after the head


class Lesson(nn.Module):
    """Maps a batch to its loss. Only the student is a submodule, so the teacher is neither trained nor synchronized."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        trained: Mapping[str, nn.Parameter],
        temperature: float,
        features: float,
    ):
        super().__init__()
        check_head(teacher, torch.arange(TRIED).unsqueeze(0) % teacher.config.get_text_config().vocab_size)
        self.student, self._teacher, self._temperature, self._features = student, [teacher], temperature, features
        head = {id(parameter) for parameter in student.get_output_embeddings().parameters()}
        self._trained = list(trained.values())
        self._of_head = [parameter for parameter in trained.values() if id(parameter) in head]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean KL per token. ids: (windows, length)."""
        teacher, fast = self._teacher[0], has_fast_bfloat16(ids.device)
        options = {"use_cache": False, "output_hidden_states": bool(self._features)}
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=fast):
            with torch.no_grad():
                expected = teacher.base_model(ids, **options)
            actual = self.student.base_model(ids, **options)
            # (windows * length, hidden)
            target, guess = (outputs.last_hidden_state.flatten(0, 1) for outputs in (expected, actual))
            heads = head_of(self.student), head_of(teacher)
            vocabulary = teacher.config.get_text_config().vocab_size
            loss = chunked_kl(guess, target, *heads, self._of_head, vocabulary, self._temperature)
            if self._features:
                loss = loss + self._features * square_head(actual.hidden_states[1:], expected.hidden_states[1:])
        # An expert that no token reached gets a gradient of zero, not None: optimizer and processes stay in step.
        return loss + 0.0 * sum(parameter.sum() for parameter in self._trained)


@torch.no_grad()
def check_head(model: nn.Module, ids: torch.Tensor) -> None:
    """Check the logits of ``head_of`` against the model's own. Raises JettisonError if they differ.

    ids: (windows, length) of a short text.
    """
    hidden = model.base_model(ids, use_cache=False).last_hidden_state  # (windows, length, hidden)
    gap = float(kl(model(ids, use_cache=False).logits, head_of(model)(hidden))) / ids.numel()
    if gap > 1e-3:
        raise JettisonError(f"{type(model).__name__} changes its logits after the head in a way that is not supported")
