"""Pipelines of diffusers go through the same commands as language models and image classifiers."""

import json
import shutil
import sys

import pytest
import torch
from killing import check_kills
from safetensors.torch import load_file, save_file

import jettison
from jettison.core.errors import UsageError

diffusers = pytest.importorskip("diffusers")

from denoisers import CLASSES, PIPELINES, add_text_encoder, add_vae, save_pipeline  # noqa: E402

from jettison.domains.diffusion import domain  # noqa: E402
from jettison.domains.diffusion.denoisers import places  # noqa: E402
from jettison.domains.diffusion.identity import identify  # noqa: E402
from jettison.domains.diffusion.pipelines import PROMPTS, prompt_conditions  # noqa: E402
from jettison.domains.diffusion.program import Program, attach_program, read_program, write_program  # noqa: E402
from jettison.domains.diffusion.sampling import sample_classes, start_noise  # noqa: E402
from jettison.domains.diffusion.trajectories import decode, run  # noqa: E402
from jettison.fitting import fit  # noqa: E402
from jettison.formats.packed import read_grids  # noqa: E402
from jettison.graph.denoisers import unpack  # noqa: E402
from jettison.graph.folder import ModelFolder  # noqa: E402
from jettison.pipeline.verification import verify  # noqa: E402

FEW = ["calibration.samples=8"]
RTN = {"quantize": {"method": "rtn", "bits": 4, "group_size": 16}}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Return a function from a name to the folder of its pipeline, which is made once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_pipeline(name, made[name])
        return made[name]

    return folder


def own_model(name, folder):
    """The denoiser of a folder as diffusers itself loads it."""
    kind, part, _, _ = CLASSES[name]
    return getattr(diffusers, kind).from_pretrained(folder / part).eval()


def unpacked(name, source, original):
    """The original with the packed weights of ``source``, read by the library compressed-tensors, in their place."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    model, read = own_model(name, original), source.checkpoint.read
    for linear, grid in read_grids(source).items():
        shape = torch.Size(read(f"{linear}.weight_shape").tolist())
        codes = unpack_from_int32(read(f"{linear}.weight_packed"), grid.bits, shape).float()
        scale = read(f"{linear}.weight_scale").float()
        weight = codes * scale.repeat_interleave(shape[1] // scale.shape[1], 1)
        parameter = model.get_submodule(linear).weight
        parameter.data = weight.reshape(parameter.shape)
    return model


@torch.no_grad()
def predict(model, rows):
    """What a model of diffusers predicts for rows."""
    return model(**unpack(model, rows), return_dict=False)[0]


@pytest.mark.parametrize("name", PIPELINES)
class TestEveryDenoiser:
    def test_rows_give_what_diffusers_predicts(self, pipelines, name):
        source = ModelFolder(pipelines(name))
        rows, _ = domain.example(source)
        actual, expected = jettison.load(source.folder).logits(rows), predict(own_model(name, source.folder), rows)
        assert actual.abs().max() > 1e-3 and torch.allclose(actual, expected, atol=1e-5)

    @pytest.mark.parametrize("recipe", ["w8", pytest.param("w4", marks=pytest.mark.slow)])
    def test_packed_and_loaded(self, pipelines, tmp_path, name, recipe):
        out = tmp_path / "out"
        manifest = jettison.compress(pipelines(name), recipe, out, changes=FEW)
        source = ModelFolder(out)
        roles = {linear.name: linear.role for linear in source.anatomy}
        assert set(read_grids(source)) == {linear for linear, role in roles.items() if role != "stem"}
        rows, _ = domain.example(source)
        expected = predict(unpacked(name, source, pipelines(name)), rows)
        assert torch.allclose(jettison.load(out, exact=True).logits(rows), expected, atol=1e-4)
        assert verify(out)["ok"]
        assert ["diffusers cannot load" in note for note in manifest["not_in_transformers"]] == [True]
        with pytest.raises(ValueError, match="nknown quantization type"):
            own_model(name, out)

    def test_blocks_run_in_their_order(self, pipelines, name):
        source = ModelFolder(pipelines(name))
        model, seen = own_model(name, source.folder), []
        for path in source.anatomy.paths:
            model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: seen.append(path))
        predict(model, domain.example(source)[0])
        assert tuple(seen) == source.anatomy.paths and len(seen) == source.anatomy.blocks

    def test_units_are_the_blocks(self, pipelines, name):
        """What step-cache policies skip is what is compressed as a block."""
        source = ModelFolder(pipelines(name))
        assert tuple(place.unit.name for place in places(own_model(name, source.folder))) == source.anatomy.paths

    def test_a_run_ends_in_a_sample(self, pipelines, name):
        source = ModelFolder(pipelines(name))
        found = run(source, jettison.load(source.folder).logits, count=2, steps=3)
        assert found.sample.isfinite().all() and found.sample.shape[0] == 2
        assert len(found.rows) == len(found.times) == 3 and found.times == sorted(found.times, reverse=True)


def test_inputs_by_hand(pipelines):
    """A row means what a caller of the class would pass."""
    source = ModelFolder(pipelines("sd3"))
    rows, _ = domain.example(source)
    values = rows[0, 3:]
    state, text, pooled = values[: 4 * 64], values[4 * 64 :][: 8 * 16], values[4 * 64 + 8 * 16 :][:24]
    with torch.no_grad():
        expected = own_model("sd3", source.folder)(
            hidden_states=state.view(1, 4, 8, 8), encoder_hidden_states=text.view(1, 8, 16),
            pooled_projections=pooled.view(1, 24), timestep=torch.tensor([500.0]),
        ).sample  # fmt: skip
    assert torch.allclose(jettison.load(source.folder).logits(rows), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_nothing_packed_is_an_ordinary_pipeline(pipelines, tmp_path, name):
    recipe = {"steps": [{"prune": {"method": "magnitude", "sparsity": 0.5}, "where": {"role": ["q", "k", "up"]}}]}
    manifest = jettison.compress(pipelines(name), recipe, tmp_path / "out")
    assert manifest["not_in_transformers"] == []
    rows, _ = domain.example(ModelFolder(tmp_path / "out"))
    model = own_model(name, tmp_path / "out")
    assert torch.allclose(predict(model, rows), jettison.load(tmp_path / "out").logits(rows), atol=1e-5)
    zeros = {path for path, module in model.named_modules() if path.endswith("to_q") and (module.weight == 0).any()}
    assert len(zeros) > 1
    if name == "dit":
        pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "out", vae=None)
        assert type(pipe.scheduler) is diffusers.DDIMScheduler


@pytest.mark.parametrize(("name", "method"), [("dit", "gptq"), ("unet", "rtn"), ("flux", "gptaq")])
def test_a_killed_run_ends_with_the_same_bytes(pipelines, tmp_path, name, method):
    step = {"quantize": {"method": method, "bits": 4, "group_size": 16}, "where": {"role": "v"}}
    recipe = {"steps": [step], "calibration": {"samples": 4}}
    check_kills(lambda out: jettison.compress(pipelines(name), recipe, out), tmp_path, 3)


def test_four_bits_of_a_unet_with_data(pipelines, tmp_path):
    """Convolutions and linears of every block see activations."""
    step = {"quantize": {"method": "gptq", "bits": 4, "group_size": 16}, "where": {"role": ["conv", "k"]}}
    manifest = jettison.compress(pipelines("unet"), {"steps": [step], "calibration": {"samples": 4}}, tmp_path / "out")
    assert len(manifest["blocks"]) == 6 and all(0 < block["error"] < 0.1 for block in manifest["blocks"][:5])
    source = ModelFolder(tmp_path / "out")
    rows, _ = domain.example(source)
    expected = predict(unpacked("unet", source, pipelines("unet")), rows)
    assert torch.allclose(jettison.load(tmp_path / "out", exact=True).logits(rows), expected, atol=1e-4)


def test_calibration_helps(pipelines, tmp_path):
    errors = {}
    for method in ("rtn", "gptaq"):
        step = {"quantize": {"method": method, "bits": 3, "group_size": 16}}
        jettison.compress(pipelines("dit"), {"steps": [step], "calibration": {"samples": 64}}, tmp_path / method)
        measured = jettison.evaluate(tmp_path / method, count=3)["denoising"]
        errors[method] = measured["3 seeds, 10 steps"]["noise_error"]
        assert len(measured) == 11
    assert 0 < errors["gptaq"] < errors["rtn"]


def test_fit_and_its_page(pipelines, tmp_path):
    result = fit(pipelines("dit"), out=tmp_path / "out", recipe={"steps": [RTN]}, count=2)
    assert result["original"]["denoising"]["2 seeds, 10 steps"] == {"noise_error": 0, "image_error": 0, "ssim": 1}
    total = result["quantized"]["denoising"]["2 seeds, 10 steps"]
    assert total["image_error"] > 0 and 0 < total["ssim"] < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 4 and "Images from the same seeds" in page
    assert page.count("now, SSIM 0.") == 4  # captions and descriptions
    assert "noise error" in page and "Quality on text" not in page
    assert "library_name: diffusers" in (tmp_path / "out" / "README.md").read_text()
    again = fit(pipelines("dit"), out=tmp_path / "out", recipe={"steps": [RTN]}, count=2)
    assert again["quantized"] == result["quantized"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A pipeline with text encoder and VAE."""
    folder = tmp_path_factory.mktemp("texts")
    save_pipeline("unet", folder)
    add_text_encoder(folder)
    add_vae(folder)
    return folder


class TestTextToImage:
    def test_conditions_are_encoded_prompts(self, texts):
        found = prompt_conditions(ModelFolder(texts), 2)
        pipe = diffusers.DiffusionPipeline.from_pretrained(texts, safety_checker=None)
        expected = pipe.encode_prompt(list(PROMPTS[:2]), "cpu", 1, False)[0]
        assert found.keys() == {"encoder_hidden_states"}
        assert torch.allclose(found["encoder_hidden_states"], expected, atol=1e-6)

    def test_a_packed_pipeline_draws(self, texts, tmp_path):
        jettison.compress(texts, {"steps": [RTN]}, tmp_path / "out")
        score = jettison.evaluate(tmp_path / "out", count=2)["denoising"]["2 seeds, 10 steps"]
        assert 0 < score["image_error"] < 1
        pipe = jettison.load(tmp_path / "out", exact=True).pipeline()
        assert type(pipe) is diffusers.StableDiffusionPipeline
        image = pipe("a cat", num_inference_steps=2, output_type="pt").images
        assert image.shape == (1, 3, 16, 16)
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            for file in (texts / part).iterdir():
                assert (tmp_path / "out" / part / file.name).read_bytes() == file.read_bytes()

    def test_latents_become_images(self, texts):
        image = decode(ModelFolder(texts), torch.zeros(1, 4, 8, 8))
        assert image.shape == (1, 3, 16, 16) and 0 <= image.min() <= image.max() <= 1


class TestSampling:
    def test_an_image_depends_on_its_seed_and_class_alone(self, pipelines):
        model = own_model("dit", pipelines("dit"))
        scheduler = diffusers.DDIMScheduler()
        all_of_them = sample_classes(model, scheduler, [1, 2, 3], [7, 8, 9], steps=3)
        assert torch.allclose(sample_classes(model, scheduler, [3], [9], steps=3), all_of_them[2:], atol=1e-5)
        assert torch.allclose(sample_classes(model, scheduler, [1, 2, 3], [7, 8, 9], steps=3, batch=2), all_of_them,
                              atol=1e-5)  # fmt: skip
        assert not torch.allclose(sample_classes(model, scheduler, [4], [9], steps=3), all_of_them[2:], atol=1e-3)

    def test_guidance(self, pipelines):
        """One step by hand: without + g (with - without)."""
        model, scheduler = own_model("dit", pipelines("dit")), diffusers.DDIMScheduler(clip_sample=False)
        actual = sample_classes(model, scheduler, [2], [5], steps=1, guidance=3.0)
        x, scheduler = start_noise((3, 8, 8), [5]), diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(1)
        with torch.no_grad():
            time = scheduler.timesteps[0].expand(2)
            with_class, without = model(torch.cat([x, x]), timestep=time, class_labels=torch.tensor([2, 10])).sample
        guess = without + 3 * (with_class - without)
        expected = scheduler.step(guess, scheduler.timesteps[0], x).prev_sample
        assert torch.allclose(actual, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5)


def edited(pipelines, tmp_path, edit):
    """A copy of a pipeline after ``edit`` changed its model_index.json."""
    folder = tmp_path / "edited"
    shutil.copytree(pipelines("dit"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    edit(index, folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


REFUSED = {
    "a part missing": (lambda index, folder: shutil.rmtree(folder / "scheduler"), "has no part scheduler"),
    "no denoiser": (lambda index, folder: index.pop("transformer"), "names no denoiser; valid: transformer or unet"),
    "an unknown class": (lambda index, folder: index.update(transformer=["diffusers", "Evil"]), "unknown denoiser"),
    "a class from elsewhere": (lambda index, folder: index.update(transformer=["mine", "DiT"]), "unknown denoiser"),
    "a path": (lambda index, folder: index.update({"../x": ["diffusers", "DiT"]}), "is needed"),
    "no list": (lambda index, folder: index.update(vae=[1, 2]), r"\[library, class\] is needed"),
    "another scheduler": (lambda index, folder: index.update(scheduler=["diffusers", "DiTPipeline"]), "a scheduler of"),
    "an absurd size": (
        lambda index, folder: (folder / "transformer" / "config.json").write_text(
            json.dumps({"_class_name": "DiTTransformer2DModel", "num_layers": 10**9})
        ),
        "num_layers = 1,000,000,000; at most",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(pipelines, tmp_path, case):
    edit, message = REFUSED[case]
    folder = edited(pipelines, tmp_path, edit)
    with pytest.raises(UsageError, match=message) as error:
        jettison.compress(folder, "w4", tmp_path / "out", changes=FEW)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "journal.jsonl").exists()


class TestNotForPipelines:
    def test_recovery(self, pipelines, tmp_path):
        with pytest.raises(UsageError, match="recovery is for other models"):
            jettison.compress(pipelines("dit"), {"steps": [RTN, {"recover": {}}]}, tmp_path / "out")

    def test_text(self, pipelines):
        with pytest.raises(UsageError, match="no language model"):
            jettison.load(pipelines("dit")).generate("once")

    def test_another_original(self, pipelines, tmp_path):
        jettison.compress(pipelines("dit"), {"steps": [RTN]}, tmp_path / "out")
        with pytest.raises(UsageError, match="cannot be compared"):
            jettison.evaluate(tmp_path / "out", teacher=pipelines("sd3"))

    def test_compressed_already(self, pipelines, tmp_path):
        jettison.compress(pipelines("dit"), {"steps": [RTN]}, tmp_path / "out")
        with pytest.raises(UsageError, match="already quantized"):
            jettison.compress(tmp_path / "out", "w8", tmp_path / "again")

    def test_a_language_model_has_no_pipeline(self):
        with pytest.raises(UsageError, match="no pipeline of diffusers"):
            jettison.load("scribe").pipeline()


def test_without_diffusers(pipelines, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"jettison\[diffusers\]"):
        jettison.compress(pipelines("dit"), "w8", tmp_path / "out")


GATES = ["11", "01", "01", "11"]


class TestPrograms:
    """``jettison.load(folder).pipeline(program=PATH)``."""

    @pytest.fixture(scope="class")
    def found(self, pipelines, tmp_path_factory):
        """A DiT with VAE, and the file of a program for it."""
        folder = tmp_path_factory.mktemp("programs")
        shutil.copytree(pipelines("dit"), folder / "dit")
        diffusers.AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=3, down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
        ).save_pretrained(folder / "dit" / "vae")  # fmt: skip
        config = folder / "dit" / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"out_channels": 3}))  # DiTPipeline reads it
        index = json.loads((folder / "dit" / "model_index.json").read_text()) | {"vae": ["diffusers", "AutoencoderKL"]}
        (folder / "dit" / "model_index.json").write_text(json.dumps(index))
        program = Program(
            model=identify(own_model("dit", folder / "dit")), sampler="DDIMScheduler", steps=4, gates=GATES,
            units=["transformer_blocks.0", "transformer_blocks.1"],
            costs={"units": [1, 1], "rest": 0, "run": 6, "full": 8},
        )  # fmt: skip
        write_program(folder / "program.json", program)
        return folder / "dit", folder / "program.json"

    def draw(self, pipe):
        pipe.set_progress_bar_config(disable=True)
        rng = torch.Generator().manual_seed(0)
        return pipe([1], num_inference_steps=4, generator=rng, output_type="pt", guidance_scale=1.0).images

    def test_skips_what_it_says(self, found):
        folder, path = found
        loaded = jettison.load(folder)
        image = self.draw(loaded.pipeline(program=path))
        assert loaded.running.counts()["computed"] == 6 and loaded.running.history[1] == ["reused", "computed"]
        own = diffusers.DiTPipeline.from_pretrained(folder)
        full = self.draw(own)
        with attach_program(own, path):
            assert torch.allclose(image, self.draw(own), atol=1e-5)
        with pytest.raises(UsageError, match="runs in its pipeline only"):
            loaded.logits(domain.example(loaded.source)[0])
        assert torch.allclose(self.draw(loaded.pipeline()), full, atol=1e-5) and loaded.running is None
        assert not torch.allclose(image, full, atol=1e-3)

    def test_of_the_original_runs_in_the_packed_model(self, found, tmp_path):
        folder, path = found
        original = shutil.copytree(folder, tmp_path / "original")
        jettison.compress(original, {"steps": [RTN]}, tmp_path / "out")
        loaded = jettison.load(tmp_path / "out")
        for _ in range(2):  # the second takes the place of the first
            assert self.draw(loaded.pipeline(program=path)).isfinite().all()
            assert loaded.running.counts()["computed"] == 6
        own = read_program(path).model_copy(update={"model": identify(loaded.model)})
        [weights] = (original / "transformer").glob("*.safetensors")
        before, tensors = weights.read_bytes(), load_file(weights)
        save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, weights, {"format": "pt"})
        changed = read_program(path).model_copy(update={"model": identify(own_model("dit", original))})
        write_program(tmp_path / "changed.json", changed)
        with pytest.raises(UsageError, match="has other weights"):  # the packed model was not made from these
            loaded.pipeline(program=tmp_path / "changed.json")
        weights.write_bytes(before)
        original.rename(tmp_path / "moved")
        with pytest.raises(UsageError, match="its original, which it may be for, is not at"):
            loaded.pipeline(program=path)
        write_program(tmp_path / "own.json", own)  # one that was found on the packed model needs no original
        loaded.pipeline(program=tmp_path / "own.json")
        assert loaded.running is not None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sampler": "PNDMScheduler"}, "for the sampler PNDMScheduler; this pipeline has DDIM"),
            ({"steps": 0}, "steps = 0: a positive whole number"),
            ({"units": ["a", "b"]}, "this DiTTransformer2DModel has other blocks"),
            ({"model": {"class_name": "SD3Transformer2DModel", "config": "", "weights": {}}}, "has other class"),
        ],
    )
    def test_refused_in_one_line(self, found, tmp_path, change, message):
        folder, path = found
        (tmp_path / "bad.json").write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(UsageError, match=message) as error:
            jettison.load(folder).pipeline(program=tmp_path / "bad.json")
        assert "\n" not in str(error.value)

    def test_of_other_weights(self, found, tmp_path):
        folder, path = found
        other = json.loads(path.read_text())
        other["model"]["weights"] = {"float32": "0" * 64}
        (tmp_path / "other.json").write_text(json.dumps(other))
        jettison.compress(folder, {"steps": [RTN]}, tmp_path / "out")
        for model in (folder, tmp_path / "out"):
            with pytest.raises(UsageError, match="this DiTTransformer2DModel has other weights"):
                jettison.load(model).pipeline(program=tmp_path / "other.json")
