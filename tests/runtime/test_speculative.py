"""Speculative decoding: the output of the target model does not change, whatever is drafted."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import Qwen3Config, Qwen3ForCausalLM

from jettison.core.errors import UsageError
from jettison.kernels import native
from jettison.runtime.load import load
from jettison.runtime.native_decoder import NativeDecoder
from jettison.runtime.record import Record, Round
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft, View
from jettison.runtime.speculative.lookup import Corpus, Lookup, Trie
from jettison.runtime.speculative.propose import Proposal, Proposer, Tally
from jettison.runtime.speculative.speculate import judge, speculate
from jettison.runtime.speculative.speedup import closed_speedup, loop_start, needed_acceptance, recut, rounds_speedup
from jettison.runtime.targets import NativeTarget

engine_only = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
PACKED = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "clip": False}}]}
PROMPTS = ("It was a dark night", "The captain said to the", "One, two, one, two, one,")
DRAFTS = {
    "skipped blocks": Draft(skip=("3", "5"), adaptive=False),
    "skipped halves": Draft(skip=("3.mlp", "4.attention"), length=3, adaptive=False),
    "fewer bits": Draft(view=View(2, 64, ("gate", "up")), length=5, acceptance=0.9),
    "skipped and fewer bits": Draft(skip=("4.mlp",), view=View(3, 32, ("o", "down", "head")), adaptive=False),
    "lookup": Draft(lookup=4, length=8, adaptive=False),
    "branches": Draft(lookup=3, length=6, branches=3),
    "lookup, then a model": Draft(skip=("3", "5"), lookup=3),
}


@pytest.fixture(scope="module")
def scribe(scribe_w4):
    return load(scribe_w4)


@engine_only
class TestGreedy:
    @pytest.mark.parametrize("name", DRAFTS)
    def test_the_text_is_that_of_plain_decoding(self, scribe, name):
        taken = 0
        for prompt in PROMPTS:
            plain = scribe.generate(prompt, tokens=40).text
            drafted = scribe.generate(prompt, tokens=40, draft=DRAFTS[name])
            assert drafted.text == plain
            rounds = drafted.speculation.rounds
            assert sum(1 + round_.taken for round_ in rounds) == 39
            taken += sum(round_.taken for round_ in rounds)
        assert taken > 0

    @pytest.mark.parametrize("cache", ["float32", "int8"])
    def test_with_every_cache_and_penalties(self, scribe, cache):
        options = {"tokens": 40, "cache": cache, "repetition_penalty": 1.2, "activation_bits": 8}
        plain = scribe.generate(PROMPTS[0], **options).text
        for name in ("skipped blocks", "branches"):
            assert scribe.generate(PROMPTS[0], draft=DRAFTS[name], **options).text == plain

    def test_up_to_the_last_position(self, scribe):
        """Draft tokens may not lie beyond the last position of the model."""
        prompt = "the sea and " * 250
        count = len(scribe.tokenizer(prompt).input_ids)
        options = {"tokens": 1024 - count}
        plain = scribe.generate(prompt, **options).text
        for name in ("branches", "skipped blocks"):
            assert scribe.generate(prompt, draft=DRAFTS[name], **options).text == plain

    def test_a_text_ends_where_it_would(self, scribe):
        plain = scribe.generate(PROMPTS[2], tokens=40, stop=["one"]).text
        assert scribe.generate(PROMPTS[2], tokens=40, stop=["one"], draft=DRAFTS["lookup"]).text == plain

    @pytest.mark.parametrize("family", ["mistral", "gemma3_text", "qwen3_moe", "phi3"])
    def test_families(self, tiny, family):
        loaded = load(tiny(family, num_hidden_layers=4, layer_types=None) if family != "gemma3_text" else tiny(family))
        skip = ("1",) if family != "gemma3_text" else ("1.mlp",)
        plain = loaded.generate("It was a", tokens=30).text
        for draft in (Draft(skip=skip, adaptive=False), Draft(lookup=2, branches=2, adaptive=False)):
            assert loaded.generate("It was a", tokens=30, draft=draft).text == plain


class TestInPyTorch:
    @pytest.mark.parametrize("family", ["qwen3", "opt", "gpt2", "gpt_oss"])
    def test_the_text_is_that_of_plain_decoding(self, tiny, family):
        """Speculative decoding also works in PyTorch, without the native decoder."""
        loaded = load(tiny(family), exact=True, dtype=torch.float32)
        plain = loaded.generate("It was a", tokens=20).text
        for draft in (Draft(skip=("1.mlp",), adaptive=False), Draft(skip=("1",), length=2), Draft(lookup=2, length=3)):
            drafted = loaded.generate("It was a", tokens=20, draft=draft)
            assert drafted.text == plain and drafted.speculation.rounds

    def test_views_need_the_engine(self, tiny):
        with pytest.raises(UsageError, match="views need the native decoder"):
            load(tiny("opt")).generate("It was", tokens=20, draft=Draft(view=View()))


@pytest.fixture(scope="module")
def small():
    """Return the native decoder of a random model with 7 tokens."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=7, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.25)
    return NativeDecoder(model)


PROMPT = [1, 2, 3, 1, 2]


def exact(decoder: NativeDecoder, sampling: Sampling) -> np.ndarray:
    """Return the exact joint probabilities of the three tokens after the prompt, (7, 7, 7)."""
    joint = np.zeros((7, 7, 7))
    for first, second in itertools.product(range(7), repeat=2):
        session = decoder.session(16, "float32")
        logits = torch.cat([session.append(PROMPT), session.append([first, second], every=True, activation_bits=15)])
        probabilities = [sampling.chances(row, []).double() for row in logits]
        p, q, r = (row / row.sum() for row in probabilities)
        joint[first, second] = p[first] * q[second] * r
    return joint


@engine_only
@pytest.mark.parametrize(
    ("draft", "settings"),
    [
        (Draft(skip=("1", "2"), length=2, adaptive=False), {"temperature": 1.0}),
        (Draft(skip=("1.mlp", "2"), length=3), {"temperature": 0.8, "top_p": 0.9}),
        (Draft(lookup=2, branches=3, length=2, adaptive=False), {"temperature": 1.3, "top_k": 5}),
        (Draft(skip=("2",), lookup=2, length=3), {"temperature": 1.0}),
    ],
)
def test_sampling_keeps_the_distribution(small, draft, settings):
    """Joint frequencies of three tokens agree with the exact ones. benchmarks/drafting/self_draft.py draws 100,000."""
    drawn = draw(small, draft, settings, 2500)
    expected = exact(small, Sampling(**settings))
    p = chi_squared(drawn, expected)
    assert p > 1e-4, f"p = {p:.2g}"


def draw(decoder: NativeDecoder, draft: Draft, settings: dict, times: int) -> Counter:
    """Count the texts of three tokens in ``times`` speculative runs with different seeds."""
    counts, tally = Counter(), Tally()
    for number in range(times):
        target = NativeTarget(decoder, 24, "float32", skip=draft.skip)
        proposer = Proposer(draft, Lookup(draft.lookup) if draft.lookup else None, tally)
        sampling = Sampling(seed=number, **settings)
        counts[tuple(speculate(target, proposer, PROMPT, sampling, 3, set(), Record([None])))] += 1
    return counts


def chi_squared(drawn: Counter, expected: np.ndarray) -> float:
    """Return the p-value of the draws under the probabilities ``expected``.

    Cells with fewer than 5 expected draws are combined into one. Impossible texts must not occur.
    """
    total = drawn.total()
    cells, rest = [], [0.0, 0.0]
    for text, probability in np.ndenumerate(expected):
        count = drawn.get(text, 0)
        assert probability > 0 or not count, f"{text} cannot be"
        if probability * total >= 5:
            cells.append((count, probability * total))
        else:
            rest = [rest[0] + count, rest[1] + probability * total]
    cells += [tuple(rest)] if rest[1] >= 1 else []
    observed, predicted = map(np.array, zip(*cells, strict=True))
    return float(stats.chisquare(observed, predicted * observed.sum() / predicted.sum()).pvalue)


class TestJudging:
    def test_a_chain_is_taken_as_far_as_it_is_right(self):
        proposal = Proposal("model")
        for row, token in enumerate((4, 2, 6)):
            proposal.add(token, row, "key")
        logits = torch.full((4, 8), 0.0)
        logits[0, 4] = logits[1, 2] = logits[2, 5] = logits[3, 1] = 1.0
        assert judge(logits, proposal, [0], Sampling(), None) == ([0, 1, 2], 5)

    def test_a_branch_may_be_right_where_the_first_is_not(self):
        proposal = Proposal("lookup")
        proposal.add(4, 0, "key")
        proposal.add(3, 1, "key")
        proposal.add(2, 0, "key")
        proposal.add(7, 3, "key")
        logits = torch.zeros(5, 8)
        logits[0, 2] = logits[3, 7] = logits[4, 0] = 1.0
        assert judge(logits, proposal, [0], Sampling(), None) == ([0, 3, 4], 0)

    def test_wrong_acceptance_is_found(self, small):
        """The test of the distribution can fail: it does if every draft token is accepted."""

        class Credulous(Proposer):
            """States tiny probabilities for its draft tokens, so that they are always accepted."""

            def propose(self, *arguments):
                proposal = super().propose(*arguments)
                proposal.chances = [torch.full_like(row, 1e-9) for row in proposal.chances]
                return proposal

        drawn, draft = Counter(), Draft(skip=("1", "2"), length=2, adaptive=False)
        for number in range(2500):
            target = NativeTarget(small, 24, "float32", skip=draft.skip)
            sampling = Sampling(temperature=1.0, seed=number)
            tokens = speculate(target, Credulous(draft), PROMPT, sampling, 3, set(), Record([None]))
            drawn[tuple(tokens)] += 1
        assert chi_squared(drawn, exact(small, Sampling(temperature=1.0))) < 1e-6


class TestLookup:
    def test_the_longest_match_and_the_most_frequent_continuation(self):
        trie = Trie(3)
        trie.learn([1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4])
        assert trie.after([7, 1, 2]) == (2, [4, 3])
        assert trie.after([9, 1, 2]) == (3, [4])
        assert trie.after([5]) == (0, [])

    @pytest.mark.parametrize("seed", range(4))
    def test_a_corpus_finds_what_a_trie_finds(self, seed):
        rng = np.random.default_rng(seed)
        text = rng.integers(0, 6, 200)
        trie, corpus = Trie(4), Corpus(text, 4)
        trie.learn(text.tolist())
        for _ in range(100):
            context = rng.integers(0, 7, rng.integers(0, 6)).tolist()
            size, followed = trie.after(context)
            corpus_size, tokens = corpus.after(context)
            assert (corpus_size, set(tokens)) == (size, set(followed))
            if tokens:
                count = lambda token, size=size, context=context: sum(
                    text[at : at + size + 1].tolist() == [*context[len(context) - size :], token]
                    for at in range(len(text) - size)
                )
                assert count(tokens[0]) == max(map(count, tokens))

    def test_an_empty_corpus(self):
        assert Corpus(np.array([], dtype=np.int64), 3).after([1, 2]) == (0, [])
        assert Corpus(np.array([5]), 3).after([5]) == (0, [])


class TestSpeedup:
    def test_the_closed_formula(self):
        assert closed_speedup(0.9, 4, 0.55, 1.0) == pytest.approx(1.28, abs=0.005)  # the reconstruction's example
        assert closed_speedup(0.0, 4, 0.5, 1.2) == pytest.approx(1 / 3.2)
        assert closed_speedup(1.0, 4, 0.5, 1.0) == pytest.approx(5 / 3)
        alpha = needed_acceptance(1.32, 4, 0.55, 1.1)
        assert closed_speedup(alpha, 4, 0.55, 1.1) == pytest.approx(1.32, abs=1e-6)
        assert needed_acceptance(2.0, 4, 0.9, 1.2) is None

    def test_rounds_agree_with_it(self):
        """If all tokens have the same acceptance, rounds recut to any length agree with the formula."""
        rng = np.random.default_rng(0)
        rounds = []
        for _ in range(6000):
            refused = rng.random(6) >= 0.7
            taken = int(refused.argmax()) if refused.any() else 6
            rounds.append(Round("model", 6, 6, taken))
        for length in (1, 2, 4, 6):
            verify = [1.0 + 0.05 * count for count in range(7)]
            speedup = rounds_speedup(recut(rounds, length), 0.4, verify)
            assert speedup == pytest.approx(closed_speedup(0.7, length, 0.4, verify[length]), rel=0.02)

    def test_loops(self):
        assert loop_start([1, 2, 3, 4, 5, 6, 7, 8] * 3) == 8
        assert loop_start(list(range(60))) is None
        assert loop_start([*range(100, 140), *[1, 2, 3, 4] * 3]) == 44
