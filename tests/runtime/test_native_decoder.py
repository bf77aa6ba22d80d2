"""The native (C++) decoder against transformers, and the texts written with it."""

import ctypes
import math

import fuzz_engine
import pytest
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.kernels import native
from jettison.kernels.specs import ModelSpec
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load
from jettison.runtime.native_decoder import FAMILIES, NativeDecoder, Unsupported
from jettison.runtime.sampling import Sampling
from jettison.runtime.write import NativeReader, TorchReader

pytestmark = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
TESTED = sorted({*FAMILIES} - {"ministral"})  # the same model as mistral
PLAIN = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]}
PROMPT = "It was a dark and stormy night"


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 4096, (1, 40), generator=torch.Generator().manual_seed(0))


class TestAgainstTransformers:
    @pytest.mark.parametrize("family", TESTED)
    def test_the_same_logits_in_float32(self, tiny, family, ids):
        """Dense weights and a float32 cache are not rounded, so the logits agree, in parts and token by token."""
        model = load(tiny(family), dtype=torch.float32).model
        session = NativeDecoder(model).session(40, cache="float32")
        tokens = ids[0].tolist()
        parts = [session.append(tokens[:17], every=True), session.append(tokens[17:30], every=True)]
        logits = torch.cat([*parts, *(session.append([token]) for token in tokens[30:])])
        with torch.no_grad():
            expected = model(ids).logits[0]
        assert (logits - expected).norm() < 2e-5 * expected.norm()
        assert session.length == 40

    @pytest.mark.parametrize("family", TESTED)
    def test_packed_weights(self, tiny, family, ids, tmp_path):
        """Both use the same kernels. Only the order of sums differs, so int8 activations may round differently."""
        compress(tiny(family), load_recipe(PLAIN), tmp_path / "out")
        loaded = load(tmp_path / "out", dtype=torch.float32)
        logits = NativeDecoder(loaded.model).session(40, cache="float32").append(ids[0].tolist(), every=True)
        expected = loaded.logits(ids)[0]
        assert (logits - expected).norm() < 2e-2 * expected.norm()

    def test_adapted_modules(self, tiny, ids, tmp_path):
        """LoRA adapters with values as large as the weights, on a dense base, so that nothing is rounded."""
        from jettison.graph.modules import Adapted

        model, rng = load(tiny("llama"), dtype=torch.float32).model, torch.Generator().manual_seed(1)
        plain = NativeDecoder(model).session(40, cache="float32").append(ids[0].tolist())
        for block in model.model.layers:
            for part, name in ((block.mlp, "gate_proj"), (block.mlp, "down_proj"), (block.self_attn, "k_proj")):
                base = getattr(part, name)
                a = torch.randn(3, base.in_features, generator=rng) / 8
                setattr(part, name, Adapted(base, a, torch.randn(base.out_features, 3, generator=rng) / 8, 0.5))
        logits = NativeDecoder(model).session(40, cache="float32").append(ids[0].tolist())
        with torch.no_grad():
            expected = model(ids).logits[0, -1:]
        assert (logits - expected).norm() < 2e-5 * expected.norm()
        assert (logits - plain).norm() > 0.05 * plain.norm()

    @pytest.mark.parametrize(("cache", "limit"), [("bfloat16", 2e-2), ("int8", 6e-2)])
    def test_shorter_caches_are_close(self, tiny, ids, cache, limit):
        decoder = NativeDecoder(load(tiny("qwen3"), dtype=torch.float32).model)
        exact, short = (decoder.session(40, kind).append(ids[0].tolist(), every=True) for kind in ("float32", cache))
        assert 0 < (short - exact).norm() / exact.norm() < limit

    def test_scribe(self, scribe_w4):
        """Greedy tokens are those of PyTorch on the same kernels, except where two tokens are almost equally likely."""
        loaded = load(scribe_w4, dtype=torch.float32)
        text = torch.tensor([loaded.tokenizer(PROMPT + loaded.generate(PROMPT, tokens=120).text).input_ids])
        logits = loaded.decoder.session(200).append(text[0].tolist(), every=True).log_softmax(-1)
        expected = loaded.logits(text)[0].float().log_softmax(-1)
        assert (expected.exp() * (expected - logits)).sum(-1).mean() < 1e-3
        first, second = expected.topk(2).values.T
        same = logits.argmax(-1) == expected.argmax(-1)
        assert (same | (first - second < 0.05)).all() and same.float().mean() > 0.97


def test_random_configurations():
    """Random heads, groups, vocabularies and windows, and batches of several sequences that are sometimes cut back."""
    fuzz_engine.main(6.0, seed=1000)


class TestSessions:
    @pytest.fixture(scope="class")
    def decoder(self, tiny):
        return NativeDecoder(load(tiny("qwen3"), dtype=torch.float32).model)

    def test_a_batch_is_its_sequences(self, decoder, ids):
        """One call may have sequences of different lengths, and several rows of the same sequence."""
        tokens = ids[0].tolist()
        alone = [decoder.session(40) for _ in range(3)]
        first = [session.append(tokens[: 5 * (i + 1)]) for i, session in enumerate(alone)]
        together = [decoder.session(40) for _ in range(3)]
        rows = [(session, token) for i, session in enumerate(together) for token in tokens[: 5 * (i + 1)]]
        is_last = [i in (4, 14, 29) for i in range(len(rows))]
        logits = decoder.forward([token for _, token in rows], [session for session, _ in rows], is_last)
        assert torch.allclose(logits, torch.cat(first), atol=1e-5)
        step = decoder.forward([7, 8, 9], together, [True] * 3)
        assert torch.allclose(
            step, torch.cat([s.append([t]) for s, t in zip(alone, (7, 8, 9), strict=True)]), atol=1e-5
        )

    def test_cutting_back(self, decoder, ids):
        session, tokens = decoder.session(40), ids[0].tolist()
        expected = session.append(tokens[:20])
        session.append([1, 2, 3, 4])
        session.cut(19)
        assert session.length == 19
        assert torch.equal(session.append(tokens[19:20]), expected)

    def test_long_prompts_go_through_in_parts(self, tiny):
        decoder = NativeDecoder(load(tiny("llama", max_position_embeddings=1200), dtype=torch.float32).model)
        tokens = torch.randint(0, 4096, (1100,), generator=torch.Generator().manual_seed(2)).tolist()
        whole = decoder.session(cache="float32").append(tokens)
        parts = decoder.session(cache="float32")
        for start in range(0, 1100, 100):
            last = parts.append(tokens[start : start + 100])
        assert torch.allclose(whole, last, atol=1e-4)
        session = decoder.session(cache="float32")
        at_once = decoder.forward(tokens, [session] * 1100, [False] * 1099 + [True])
        assert torch.equal(whole, at_once)  # ``append`` and the decoder cut a long prompt at the same places

    def test_an_interrupt_leaves_a_session_as_it_was(self, tiny, monkeypatch):
        """Ctrl-C arrives between two parts of a long prompt."""
        decoder = NativeDecoder(load(tiny("llama", max_position_embeddings=1200), dtype=torch.float32).model)
        session, forward, calls = decoder.session(), decoder.forward, []

        def interrupted(*arguments, **options):
            calls.append(len(arguments[0]))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return forward(*arguments, **options)

        session.append([1, 2, 3])
        monkeypatch.setattr(decoder, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.append([5] * 1100)
        assert calls == [512, 512, 76] and session.length == 3

    def test_faults_change_nothing(self, decoder):
        session = decoder.session(4)
        session.append([1, 2, 3])
        with pytest.raises(UsageError, match="2 more tokens: a session has room for 1"):
            session.append([4, 5])
        for wrong in ([4096], [-1], []):
            with pytest.raises(UsageError, match="each from 0 to 4095"):
                decoder.forward(wrong, [session] * len(wrong), [True] * len(wrong))
        assert session.length == 3
        with pytest.raises(UsageError, match="1 to 128"):
            decoder.session(129)
        with pytest.raises(UsageError, match="bfloat16, int8"):
            decoder.session(4, cache="fp8")

    def test_other_families_are_refused_with_a_reason(self, tiny):
        with pytest.raises(Unsupported, match="gpt2 models are not among llama"):
            NativeDecoder(load(tiny("gpt2")).model)

    def test_sizes_that_do_not_fit_are_refused(self, decoder):
        handle = ctypes.c_void_p()
        assert decoder._library.jettison_engine_new(ctypes.byref(ModelSpec()), ctypes.byref(handle)) == 1 and not handle


class TestWriting:
    @pytest.fixture(scope="class")
    def loaded(self, scribe_w4):
        return load(scribe_w4)

    def test_the_native_decoder_writes(self, loaded):
        assert loaded.decoder is not None
        written = loaded.generate(PROMPT, tokens=24)
        timings = written.timings
        assert str(written) == written.text and len(written.tokens) == 24
        assert timings.read == len(loaded.tokenizer(PROMPT).input_ids) and timings.written == 23
        assert timings.decode > 0 and timings.prefill > 0 and not written.speculation.rounds
        assert "".join(loaded.stream(PROMPT, tokens=24)) == written.text
        assert load(loaded.source.folder, exact=True).decoder is None

    def test_what_is_wrong_is_said_at_the_call(self, loaded):
        for wrong in ({"tokens": 0}, {"cache": "int3"}, {"activation_bits": 9}, {"temperature": -1}, {"draft": "x"}):
            with pytest.raises(UsageError, match=next(iter(wrong))):
                loaded.stream(PROMPT, **wrong)  # raises although no text is taken from the stream

    def test_a_text_is_not_touched_by_the_next(self, loaded):
        first = loaded.generate(PROMPT, tokens=8, draft="lookup")
        before = (first.text, first.tokens, first.finish_reason, first.timings.written, len(first.speculation.rounds))
        loaded.generate("The", tokens=16)
        assert before == (
            first.text, first.tokens, first.finish_reason, first.timings.written, len(first.speculation.rounds)
        )  # fmt: skip

    def test_sampling_is_the_same_with_the_same_seed(self, loaded):
        settings = {"tokens": 24, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
        one, two, other = (loaded.generate(PROMPT, seed=seed, **settings).text for seed in (1, 1, 2))
        assert one == two != other

    def test_a_batch_gives_the_texts_of_its_prompts(self, loaded):
        prompts = [PROMPT, "Once upon a time", "The"]
        alone = [loaded.generate(prompt, tokens=16).text for prompt in prompts]
        assert [result.text for result in loaded.generate(prompts, tokens=16)] == alone

    def test_stop_texts_end_it_and_are_left_out(self, loaded):
        whole = loaded.generate(PROMPT, tokens=40).text
        stop = whole[12:19]
        assert loaded.generate(PROMPT, tokens=40, stop=["never there", stop]).text == whole[: whole.find(stop)]

    @pytest.mark.parametrize("exact", [False, True], ids=["engine", "pytorch"])
    def test_why_a_text_is_over_is_said(self, scribe_w4, exact, monkeypatch):
        loaded = load(scribe_w4, exact=exact)
        write = lambda prompt=PROMPT, **options: loaded.generate(prompt, tokens=12, **options)
        whole = write()
        assert whole.finish_reason == "length"
        stop = whole.text[4:9]
        assert write(stop=stop).text == whole.text[: whole.text.find(stop)]  # a str is one stop text
        assert write(stop=stop).finish_reason == "stop"
        assert [result.finish_reason for result in write([PROMPT, "The"], stop=[stop])] == ["stop", "length"]
        tokens = loaded.write([loaded._encode(PROMPT)], 12, Sampling())
        ids = [token for _, token in tokens]
        assert tokens.record.finish_reasons == ["length"] and tuple(ids) == whole.tokens
        monkeypatch.setattr(loaded, "_end_tokens", lambda: {ids[5]})
        assert write().finish_reason == write(draft="lookup").finish_reason == "stop"
        monkeypatch.undo()
        drafted = write(draft="lookup")
        assert drafted.text == whole.text and drafted.finish_reason == "length"
        assert write(stop=stop, draft="lookup").finish_reason == "stop"
        stream = loaded.stream(PROMPT, tokens=12)
        next(stream)
        assert stream.generation.finish_reason is None  # the text is not finished
        assert "".join(stream) and stream.generation.text == whole.text

    @pytest.mark.parametrize("reader", [NativeReader, TorchReader])
    def test_rows_that_are_over_cost_no_step(self, scribe_w4, reader, monkeypatch):
        loaded, stepped_rows = load(scribe_w4, exact=reader is TorchReader), []
        prompts, step = [PROMPT, "Once upon a time", "The"], reader.step
        texts = [loaded.generate(prompt, tokens=16).text for prompt in prompts]
        stop = texts[1][:3]
        record = lambda self, rows, tokens: stepped_rows.append(list(rows)) or step(self, rows, tokens)
        monkeypatch.setattr(reader, "step", record)
        written = loaded.generate(prompts, tokens=16, stop=[stop])
        results = [result.text for result in written]
        cut = lambda text: text[: text.find(stop)] if stop in text else text
        assert results == [cut(text) for text in texts] and results[1] == "" and results[0]
        assert sum(1 in rows for rows in stepped_rows) < 3 and written[1].finish_reason == "stop"
        assert max(sum(row in rows for rows in stepped_rows) for row in (0, 2)) == 15
        stepped_rows.clear()
        loaded.generate(PROMPT, tokens=16, stop=[texts[0][:1]])
        assert stepped_rows == []  # the first token ends the text

    def test_what_may_begin_a_stop_text_is_held_until_it_is_certain(self, loaded):
        whole = loaded.generate(PROMPT, tokens=16).text
        pieces = list(loaded.stream(PROMPT, tokens=16, stop=[whole[-3:] + "#"]))
        assert "".join(pieces) == whole

    def test_other_families_are_written_by_pytorch(self, tiny, tmp_path):
        compress(tiny("opt"), load_recipe(PLAIN), tmp_path / "out")
        loaded = load(tmp_path / "out")
        assert loaded.decoder is None
        ids = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
        expected = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert loaded.generate(PROMPT, tokens=8).text == loaded.tokenizer.decode(expected, skip_special_tokens=True)

    @pytest.mark.parametrize(
        ("prompt", "options", "words"),
        [
            ("", {}, "prompt is empty"),
            (PROMPT, {"tokens": 1020}, "1020 more = 1028 tokens: .* has positions for at most 1024"),
            (PROMPT, {"top_p": 0.0}, "top_p = 0.0: it must be more than 0"),
            (PROMPT, {"temperature": -1.0}, "temperature = -1.0"),
            (PROMPT, {"tokens": 0}, "tokens = 0: it must be a whole number of 1 or more"),
            (PROMPT, {"tokens": -3}, "tokens = -3"),
            (PROMPT, {"tokens": 2.5}, "tokens = 2.5"),
            ([{"role": "user", "content": "Hello"}], {}, "no chat template"),
        ],
    )
    def test_what_cannot_be_written(self, loaded, prompt, options, words):
        with pytest.raises(UsageError, match=words):
            loaded.generate(prompt, **options)

    def test_tokens_that_the_model_does_not_have(self, loaded):
        for token in (4096, -1):
            with pytest.raises(UsageError, match=f"the prompt has token {token}: .* has tokens 0 to 4095"):
                loaded.write([[5, token]], 4, Sampling())


BAD = {
    "temperature": (-1.0, math.inf, math.nan, 1e38, "hot", None, True),
    "top_k": (-3, 2.5, "many"),
    "top_p": (0.0, -0.1, 1.1, math.nan, math.inf),
    "min_p": (-0.1, 2.0, math.nan),
    "repetition_penalty": (0.0, -1.0, math.inf, math.nan, 1e-300, 1e300),
    "seed": (-1, 2**80, 1.5),
}


class TestSampling:
    @pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
    def test_what_cannot_be_is_one_error(self, name, value):
        with pytest.raises(UsageError, match=f"{name} = .*: (it must be|a whole number from 0 to)"):
            Sampling(**{name: value})

    @pytest.mark.parametrize(
        "extreme",
        [{"temperature": 1e-45}, {"temperature": 1e-300}, {"temperature": 1e-6}, {"top_p": 1e-300}, {"min_p": 1.0}],
        ids=str,
    )
    def test_extremes_give_the_likeliest_token(self, extreme):
        for scale in (1.0, 1e4, 1e-3):
            sampling = Sampling(**{"temperature": 1e-6} | extreme)
            logits, rng = scale * self.logits[[1, 2, 0, 3, 4]], sampling.generator(0)
            assert {sampling.choose(logits.clone(), [], rng) for _ in range(20)} == {2}

    def test_extreme_penalties_leave_numbers(self):
        for penalty in (1e-3, 1e3):
            sampling = Sampling(temperature=1.0, repetition_penalty=penalty)
            probabilities = sampling.chances(torch.tensor([0.0, 1e4, -1e4, 3.0]), [0, 1, 2])
            assert torch.isfinite(probabilities).all() and probabilities.sum() > 0

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_logits_that_are_not_finite_are_an_error(self, value, temperature):
        sampling = Sampling(temperature=temperature)
        with pytest.raises(JettisonError, match=f"largest logit is {value}"):
            sampling.choose(torch.tensor([1.0, value, 0.0]), [], sampling.generator(0))

    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -1.5])

    def drawn(self, before=(), **settings) -> set[int]:
        """Return the tokens that occur in 400 draws."""
        sampling = Sampling(**{"temperature": 1.0} | settings)
        rng = sampling.generator(0)
        return {sampling.choose(self.logits.clone(), list(before), rng) for _ in range(400)}

    def test_filters(self):
        assert self.drawn() == {0, 1, 2, 3, 4}
        assert self.drawn(temperature=0.0) == {0}
        assert self.drawn(top_k=2) == {0, 1}
        assert self.drawn(top_p=0.5) == {0}
        assert self.drawn(top_p=0.7) == {0, 1}
        assert self.drawn(min_p=0.2) == {0, 1, 2}  # e^-1.5 is 0.22
        assert self.drawn(temperature=0.0, before=[0], repetition_penalty=3.0) == {1}
        assert self.drawn(temperature=0.0, before=[0, 1, 2], repetition_penalty=100.0) == {0}  # 0.02 > -1

    def test_shares_are_the_softmax(self):
        sampling, counts = Sampling(temperature=2.0), torch.zeros(5)
        rng = sampling.generator(0)
        for _ in range(4000):
            counts[sampling.choose(self.logits.clone(), [], rng)] += 1
        assert torch.allclose(counts / 4000, (self.logits / 2).softmax(-1), atol=0.03)
