"""How a language model learns from its original: KL over all tokens, without the logits of a whole batch."""

from collections.abc import Mapping

import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.graph.dense import has_fast_bfloat16
from jettison.training.losses import chunked_kl, head_of, kl, square_head

TRIED = 16  # tokens that show what the model does after its head


class Lesson(nn.Module):
    """One batch to its loss. Only the student is a submodule, so that nobody trains or synchronizes the teacher."""

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
        """ids: (windows, length) -> mean KL per token."""
        teacher, fast = self._teacher[0], has_fast_bfloat16(ids.device)
        asked = {"use_cache": False, "output_hidden_states": bool(self._features)}
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=fast):
            with torch.no_grad():
                taught = teacher.base_model(ids, **asked)
            found = self.student.base_model(ids, **asked)
            target, guess = (each.last_hidden_state.flatten(0, 1) for each in (taught, found))
            heads = head_of(self.student), head_of(teacher)
            vocabulary = teacher.config.get_text_config().vocab_size
            loss = chunked_kl(guess, target, *heads, self._of_head, vocabulary, self._temperature)
            if self._features:
                loss = loss + self._features * square_head(found.hidden_states[1:], taught.hidden_states[1:])
        # Zero, not none, is the gradient of an expert that no token reached: optimizer and processes stay in step.
        return loss + 0.0 * sum(parameter.sum() for parameter in self._trained)


@torch.no_grad()
def check_head(model: nn.Module, ids: torch.Tensor) -> None:
    """Raises JettisonError if the model does something to its logits that ``head_of`` does not know."""
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    gap = float(kl(model(ids, use_cache=False).logits, head_of(model)(hidden))) / ids.numel()
    if gap > 1e-3:
        raise JettisonError(f"{type(model).__name__} changes its logits after the head in a way that is not known here")
