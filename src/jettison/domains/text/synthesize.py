"""Training text that the teacher alone writes: hybrid sampling.

- Source: LLM-QAT (arXiv:2305.17888, section 3.1). Recover-LoRA's "synthetic hybrid sampling" (arXiv:2510.08600) names
  it as its source; that the two are the same in detail is our reconstruction.
- Each sequence starts at a random token of the vocabulary. It continues greedily to a length of 3, 4 or 5, then by
  sampling to its full length or to the teacher's end token.
- Our addition: every second batch is sampled at temperature 1.5 instead of 1, so that the student also follows the
  teacher in text that the teacher would rarely write.
- Our addition: if the tokenizer has a chat template, half of the batches are conversations. The teacher writes the
  user's turn in the same way and then answers it.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import StaticCache

from jettison.core.caches import cache_folder
from jettison.core.errors import JettisonError, guarded
from jettison.core.files import digest
from jettison.core.progress import bar, say
from jettison.core.sealed import read_sealed, write_sealed
from jettison.domains.text.data import encode
from jettison.graph.dense import compute_device, load_dense
from jettison.graph.folder import ModelFolder

VERSION = 2  # part of the cache key: raise it when the text for the same seed changes
BATCH = 64  # sequences
GREEDY_LENGTHS = (3, 4, 5)
TEMPERATURES = (1.0, 1.5)
SHORTEST = 16  # tokens; shorter sequences are dropped
PATIENCE = 16  # batches in a row without a usable sequence, after which synthesize gives up
LONGEST_LOOP, LOOP_TOKENS = 64, 32  # see ``loops``
MARK = "\u2063\u2063"  # stands for the user's turn in a rendered chat template


def synthesize(
    source: ModelFolder,
    *,
    samples: int,
    length: int,
    seed: int = 0,
    temperatures: Sequence[float] = TEMPERATURES,
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Return token ids (samples, length) that the model itself writes.

    Batches are stored in the cache folder under a hash of everything that determines them. A killed run continues with
    its current batch, and a later run with more samples adds batches. Damaged batches are written again. A single
    process also works without the cache folder. Several processes share the folder, and each writes its share.

    temperatures: of the batches, in turn.
    process: rank of this process, and the number of processes.
    wait: returns when all processes have called it.
    Raises JettisonError for a teacher that writes no usable text, and if processes do not see each other's batches.
    Raises UsageError if ``length`` is more than the model can read.
    """
    source.check_window(length, "length of synthetic text")
    key = digest("synthetic", VERSION, source.fingerprint(), length, seed, list(temperatures), BATCH)
    folder = cache_folder() / "synthetic" / key
    rank, world = process
    teacher = None
    text, idle = _Windows(length), 0  # idle: batches in a row that added no window
    with bar("synthesize", samples) as progress:
        for first in itertools.count(step=world):
            if len(text.windows) >= samples:
                return torch.stack(text.windows[:samples])
            files = [folder / f"batch-{number:05d}.safetensors" for number in range(first, first + world)]
            own = _read_batch(files[rank])
            if own is None:
                teacher = teacher or load_dense(source).to(compute_device())
                own = write_batch(source, teacher, first + rank, length, seed, temperatures)
                _keep_batch(files[rank], own, alone=world == 1)
            wait()
            before = len(text.windows)
            for number, file in enumerate(files):
                batch = own if number == rank else _read_batch(file)
                if batch is None:
                    raise JettisonError(
                        f"{file} of another process is missing: all processes need the same cache folder, which "
                        "$JETTISON_CACHE names"
                    )
                text.add(batch)
            progress.advance(min(len(text.windows), samples) - before)
            idle = 0 if len(text.windows) > before else idle + world
            if idle >= PATIENCE:
                raise JettisonError(
                    f"{source.name} writes nothing to learn from: {idle * BATCH} sequences in a row were short, "
                    "looping or repeated. Give a text instead: calibration.text or recover.data"
                )


def _read_batch(file: Path) -> torch.Tensor | None:
    """A batch that ``_keep_batch`` wrote; None if it is missing or damaged. A note reports damage."""
    sealed = read_sealed(file) if file.is_file() else None
    if sealed and _name(file) in sealed[0]:
        return sealed[0][_name(file)]
    if file.exists():
        say(f"note: {file} is damaged, so it is written again")
    return None


def _keep_batch(file: Path, ids: torch.Tensor, alone: bool) -> None:
    try:
        write_sealed(file, {_name(file): ids})
    except JettisonError as error:
        if not alone:
            raise
        say(f"note: if this run is killed, the next one writes this text again: {error}")


def _name(file: Path) -> str:
    """Name of the tensor in a file. It holds the path, so a file that was moved is not a batch."""
    return f"{file.parent.name}/{file.stem}"


class _Windows:
    """Collects batches into windows of equal length. Full sequences become windows; shorter ones are joined first.

    Repeated, very short and looping sequences are dropped. Adding batches never changes earlier windows.
    """

    def __init__(self, length: int):
        self.length = length
        self.windows: list[torch.Tensor] = []
        self._rest = torch.empty(0, dtype=torch.int64)
        self._seen: set[tuple[int, ...]] = set()

    def add(self, rows: torch.Tensor) -> None:
        """Add a batch. rows: token ids (batch, length), -1 after the end of a sequence."""
        for row, looping in zip(rows, loops(rows), strict=True):
            ids = row[row >= 0]
            name = tuple(ids.tolist())
            if looping or len(ids) < min(SHORTEST, self.length) or name in self._seen:
                continue
            self._seen.add(name)
            if len(ids) == self.length:
                self.windows.append(ids)
                continue
            self._rest = torch.cat([self._rest, ids])
            if len(self._rest) >= self.length:
                self.windows.append(self._rest[: self.length])
                self._rest = self._rest[self.length :]


def loops(rows: torch.Tensor) -> torch.Tensor:
    """Find the rows that repeat a passage of up to 64 tokens at least twice, over 32 tokens or more.

    rows: token ids (batch, length), -1 is padding.
    Returns bool (batch,).
    """
    looping = torch.zeros(len(rows), dtype=torch.bool)
    for period in range(1, LONGEST_LOOP + 1):
        needed = max(LOOP_TOKENS, 2 * period)
        if rows.shape[1] - period < needed:
            break
        # A token that equals the one a period before; enough of them in a row are a loop.
        same = (rows[:, period:] == rows[:, :-period]) & (rows[:, period:] >= 0)  # (batch, length - period)
        total = torch.nn.functional.pad(same.cumsum(1), (1, 0))  # (batch, length - period + 1)
        looping |= (total[:, needed:] - total[:, :-needed]).amax(1) == needed
    return looping


@torch.no_grad()
def write_batch(
    source: ModelFolder, teacher: nn.Module, number: int, length: int, seed: int, temperatures: Sequence[float]
) -> torch.Tensor:
    """Return a batch of token ids (BATCH, length) int64, -1 after the end of a sequence.

    The result depends on the arguments alone. number: of the batch.
    """
    tokenizer = source.tokenizer
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    known = range(min(len(tokenizer), source.vocabulary))  # a tokenizer may have more tokens than the model
    ordinary = torch.tensor(sorted(set(known) - set(tokenizer.all_special_ids)))
    starts = ordinary[torch.randint(len(ordinary), (BATCH, 1), generator=generator)]
    greedy = GREEDY_LENGTHS[number % len(GREEDY_LENGTHS)]
    temperature = temperatures[number % len(temperatures)]
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        if tokenizer.chat_template and number // 2 % 2:  # two of four batches, so that both temperatures occur
            return _converse(source, teacher, starts, greedy, length, temperature)
        return _continue(teacher, list(starts), greedy, length, temperature)


def _continue(
    teacher: nn.Module, prompts: list[torch.Tensor], greedy: int, length: int, temperature: float
) -> torch.Tensor:
    """Continue every prompt: ``greedy`` − 1 tokens greedily, the rest sampled, to ``length`` in all.

    Returns ids (prompts, length), -1 after the end.
    """
    ends = _end_tokens(teacher)
    pad = ends[0] if ends else 0
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all continue at the same position
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    for steps, sample in ((greedy - 1, False), (length - longest - greedy + 1, True)):  # greedy, then sampled
        if steps < 1:
            continue
        ids = teacher.generate(
            ids.to(teacher.device),
            attention_mask=mask.to(teacher.device),
            max_new_tokens=steps,
            do_sample=sample,
            pad_token_id=pad,
            use_cache=True,
            past_key_values=_new_cache(teacher, ids.shape[1] + steps),
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {}),
        ).cpu()
        # (prompts, tokens so far)
        mask = torch.cat([mask, torch.ones(len(ids), ids.shape[1] - mask.shape[1], dtype=mask.dtype)], 1)
    rows = torch.full((len(prompts), length), -1)
    for row, prompt in enumerate(prompts):
        tokens = ids[row, longest - len(prompt) :]
        end = [place for place in range(len(prompt), len(tokens)) if int(tokens[place]) in ends]
        tokens = tokens[: end[0] + 1] if end else tokens
        rows[row, : len(tokens)] = tokens[:length]
    return rows


def _new_cache(teacher: nn.Module, length: int) -> StaticCache | None:
    """A static cache on a CPU, where it is faster; None on other devices.

    Every call needs a new one. ``generate`` would reuse the last cache whatever its length. The order of its sums, and
    so the text, would then depend on the texts before.
    """
    return StaticCache(teacher.config, max_cache_len=length) if teacher.device.type == "cpu" else None


def _converse(
    source: ModelFolder, teacher: nn.Module, starts: torch.Tensor, greedy: int, length: int, temperature: float
) -> torch.Tensor:
    """Write the user's turn, then the answer, inside the tokenizer's chat template."""
    tokenizer = source.tokenizer
    with guarded(f"the chat template of {tokenizer.name_or_path} fails"):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True
        )
    before, _, after = rendered.partition(MARK)
    before, after = (
        torch.tensor(encode(tokenizer, part, special=False), dtype=torch.int64) for part in (before, after)
    )
    source.check_tokens(torch.cat([before, after]), f"the chat template of {source.name}")
    ends = _end_tokens(teacher)
    turns = _continue(
        teacher, [torch.cat([before, start]) for start in starts], greedy, len(before) + length // 3, temperature
    )
    prompts = []
    for row in turns:
        turn = row[row >= 0]
        if int(turn[-1]) in ends:
            turn = turn[:-1]
        prompts.append(torch.cat([turn, after])[: length - 1])
    return _continue(teacher, prompts, 1, length, temperature)


def _end_tokens(teacher: nn.Module) -> list[int]:
    ends = teacher.generation_config.eos_token_id
    if ends is None:
        ends = teacher.config.get_text_config().eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
