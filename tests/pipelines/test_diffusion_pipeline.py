"""The diffusers pipeline as users meet it: every family from disk, one joint problem, every mistake."""

import importlib.util
import inspect
import json
import logging
import math
import sys
import weakref
from pathlib import Path

import diffusers
import numpy as np
import pytest
import scipy.linalg
import torch
from diffusers.utils import dynamic_modules_utils

import hf_spectral
from hf_spectral import (
    Cosine,
    EigenSolver,
    SpectralConfig,
    SpectralError,
    SpectralResult,
    UnsupportedBackboneError,
    instances,
    segment,
)
from hf_spectral.families.diffusers import FAMILIES
from hf_spectral.grid import area_pooling
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from hf_spectral.pipelines.diffusers.latents import encode_image, to_pixels
from hf_spectral.pipelines.diffusers.noise import noised, told
from hf_spectral.pipelines.diffusers.outputs import SpectralDiffusionOutput
from hf_spectral.problem import ProblemBuilder
from tests.dense import dense_normalized_affinity
from tests.families.tiny_denoisers import build_dit, build_flux, build_unet, state
from tests.pipelines.tiny_diffusion import PIPELINES, RESOLUTION, host_pipeline, spectral, vae
from tests.synthetic import photo

COMMUNITY = Path(hf_spectral.__file__).parent / "community"
# A picture of 60 x 90 pixels, its longer side read at 32; a latent is 2 pixels.
GRIDS = {"sd": (12, 16), "sdxl": (12, 16), "dit": (8, 8), "sana": (11, 16)}
SETTINGS = {"resolution": RESOLUTION, "num_eigenvectors": 4}


def same_up_to_rounding(one, other):
    """Weights mapped from a file lie at other addresses, and kernels of the CPU round by alignment."""
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", PIPELINES)
def test_every_family_is_read_from_disk_and_from_a_pipeline(family, tmp_path):
    host = host_pipeline(family)
    host.save_pretrained(tmp_path)
    loaded = spectral(SpectralDiffusionPipeline.from_pretrained(tmp_path))
    pathway = "what" if family == "sana" else "both"

    found = loaded(photo(), pathway=pathway, return_result=True, **SETTINGS)
    expected = spectral(host)(photo(), pathway=pathway, **SETTINGS)

    found, expected = (one if pathway == "both" else {"what": one} for one in (found, expected))
    for name, output in found.items():
        assert isinstance(output, SpectralDiffusionOutput)
        assert output.result.config.pathway == name
        assert output.grid == GRIDS.get(family, (5, 8))
        assert output.eigenvectors.shape == (4, *output.grid)
        assert output.eigenvectors.dtype == torch.float32
        assert (output.eigenvalues.diff() >= 0).all()
        assert output.timesteps == (50, 150, 250)
        assert output.segmentation.size == (90, 60)
        assert len(output.layers) == 3 * len(set(output.layers))
        same_up_to_rounding(output.eigenvectors, expected[name].eigenvectors)


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "sd3", "flux", "sana"])
def test_the_prompt_reaches_the_denoiser(family):
    pipe = spectral(host_pipeline(family))
    plain, told = (pipe(photo(), prompt=prompt, **SETTINGS) for prompt in ("", "a cat"))
    assert not torch.equal(plain.eigenvectors, told.eigenvectors)


def watch(denoiser, into):
    """Note the arguments of a forward by name, those that are None left out, of a batch the last row."""

    def hook(module, args, kwargs):
        if into:
            return  # The pass with the prompt comes first where there are two.
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        into.update({name: value for name, value in arguments.items() if value is not None and name != "self"})
        into.pop("return_dict", None)

    return denoiser.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("family", PIPELINES)
def test_the_denoiser_is_told_what_its_own_pipeline_tells_it(family):
    """One step of the host's own sampling and ours agree in the names, shapes and values of all but the latents."""
    host, ours, theirs = host_pipeline(family), {}, {}
    denoiser = getattr(host, "unet", None) or host.transformer
    prompt, side = (
        "" if family == "dit" else "a cat",
        128 if family == "lumina2" else 32,
    )  # Lumina2's own pipeline counts 8 pixels a latent.
    handle = watch(denoiser, theirs)
    if family == "dit":
        host(class_labels=[1], num_inference_steps=2)
    else:
        arguments = {"complex_human_instruction": None} if family == "sana" else {}
        arguments |= {"use_resolution_binning": False} if family in {"pixart", "sana"} else {}
        host(prompt, height=side, width=side, num_inference_steps=2, output_type="latent", **arguments)
    handle.remove()
    told = float(theirs["timestep"].flatten()[-1])
    step = {"flux": 1000 * told, "lumina2": 1000 * (1 - told)}.get(family, told)

    handle = watch(denoiser, ours)
    spectral(host)(photo(60, 60), prompt=prompt, timesteps=[min(int(step), 999)], resolution=32, num_eigenvectors=3)
    handle.remove()

    own = {"cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"}
    assert set(ours) == set(theirs) - own
    for name in set(ours) - {"sample", "hidden_states", "timestep", "added_cond_kwargs"}:
        one, other = ours[name], theirs[name]
        if other.ndim and len(other) > len(one) and not name.endswith("ids"):
            other = other[-1:]  # Without the prompt, with it.
        if family == "pixart":  # We leave room for more words than PixArt-alpha does; padding is masked.
            one = one[:, : other.shape[1]]
            mask = theirs["encoder_attention_mask"][-1].bool()
            one, other = one[:, mask], other[:, mask]
        torch.testing.assert_close(one.float(), other.float(), msg=lambda text, name=name: f"{name}: {text}")
    for name, value in ours.get("added_cond_kwargs", {}).items():
        torch.testing.assert_close(value, theirs["added_cond_kwargs"][name][-1:])
    assert float(ours["timestep"]) == pytest.approx(told, rel=1e-3, abs=1e-3)
    latents = ours.get("sample", ours.get("hidden_states"))
    assert latents.shape[1:] == theirs.get("sample", theirs.get("hidden_states")).shape[1:]


@pytest.mark.parametrize(
    ("config", "undo"),
    [
        ({"scaling_factor": 0.2}, lambda z: z / 0.2),
        ({"scaling_factor": 0.2, "shift_factor": 0.3}, lambda z: z / 0.2 + 0.3),
        (
            {"scaling_factor": 0.2, "latents_mean": [1.0] * 4, "latents_std": [2.0] * 4},
            lambda z: z * 2.0 / 0.2 + 1.0,
        ),
    ],
)
def test_latents_are_the_most_probable_ones_scaled_as_the_hosts_undo_it(config, undo):
    autoencoder, denoiser = vae(**config), build_unet()
    pixels = to_pixels(photo(32, 32), (32, 32))
    brightness = to_pixels(photo(32, 32), (32, 32), channels=1)
    assert brightness.shape == (1, 1, 32, 32)
    torch.testing.assert_close(brightness[:, 0], pixels.mean(dim=1), atol=0.3, rtol=0)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    found = encode_image(autoencoder, pixels, denoiser, FAMILIES["UNet2DConditionModel"])
    with torch.no_grad():
        expected = autoencoder.encode(pixels).latent_dist.mean
    torch.testing.assert_close(undo(found), expected)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_noise_follows_the_formulas():
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    euler = diffusers.EulerDiscreteScheduler()
    found = noised(latents, 250, FAMILIES["UNet2DConditionModel"], euler, [seeded(2)])
    kept = diffusers.DDPMScheduler.from_config(euler.config).alphas_cumprod[250]
    torch.testing.assert_close(found, kept.sqrt() * latents + (1 - kept).sqrt() * noise)

    # The spread of the data is 0.5: clean data is brought to spread 1, and the denoiser is told the noise.
    for scheduler, scale in ((diffusers.CMStochasticIterativeScheduler(), 250), (diffusers.EDMEulerScheduler(), 0.25)):
        total, spread = scheduler.config.num_train_timesteps, scheduler.config.sigma_data
        for step, sigma in ((0, 0.002), (total, 80.0)):
            found = noised(latents, step, FAMILIES["UNet2DConditionModel"], scheduler, [seeded(2)])
            torch.testing.assert_close(found, (latents + sigma * noise) / (sigma**2 + spread**2) ** 0.5)
            assert told(step, scheduler) == pytest.approx(scale * math.log(sigma))
    assert told(250, euler) == 250
    assert noised(latents, 2.5, FAMILIES["UNet2DConditionModel"], scheduler, [seeded(2)]).isfinite().all()

    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for family, scheduler in (("SD3Transformer2DModel", flow), ("DiTTransformer2DModel", flow)):
        found = noised(latents, 250, FAMILIES[family], scheduler, [seeded(2)])
        torch.testing.assert_close(found, 0.75 * latents + 0.25 * noise)


@pytest.mark.parametrize("pathway", ["where", "what"])
def test_layers_of_three_grids_and_three_timesteps_equal_a_dense_reference(sd, pathway):
    config, records = SpectralConfig(pathway, num_eigenvectors=6), []
    sd.at([50, 150, 250]).records([sd.preprocess(photo(), RESOLUTION)], records.append)
    shapes = {(record.grid.height, record.grid.width) for record in records}
    assert shapes == {(12, 16), (6, 8), (3, 4)}
    assert {record.timestep for record in records} == {50, 150, 250}
    affinity = mass = 0
    for record in records:
        pooling = np.kron(area_pooling(12, record.grid.height), area_pooling(16, record.grid.width))
        affinity = affinity + pooling.T @ dense_normalized_affinity(record, config) @ pooling / len(records)
        mass = mass + pooling.T @ pooling / len(records)
    expected = 1 - scipy.linalg.eigh(affinity, mass, eigvals_only=True)[::-1][:6]

    output = sd(photo(), pathway=pathway, timesteps=[50, 150, 250], resolution=RESOLUTION, num_eigenvectors=6)

    np.testing.assert_allclose(output.eigenvalues, expected, atol=1e-5)
    vectors = output.eigenvectors.flatten(1).T.double().numpy()
    residuals = affinity @ vectors - mass @ vectors * (1 - expected)
    assert np.abs(residuals).max() < 1e-5


def test_one_record_lives_at_a_time_whatever_the_number_of_timesteps(pixels, monkeypatch):
    seen, most = [], []
    add = ProblemBuilder.add

    def watched(builder, record):
        if not seen or seen[-1]() is not record:
            seen.append(weakref.ref(record))
        most.append(sum(reference() is not None for reference in seen))
        add(builder, record)

    monkeypatch.setattr(ProblemBuilder, "add", watched)
    pixels(photo(), pathway="both", timesteps=list(range(0, 240, 20)), num_eigenvectors=3)
    assert len(seen) == 12 * 2
    assert len(most) == 2 * len(seen)
    assert max(most) == 1


def test_noise_samples_add_to_the_problem(pixels):
    output = pixels(photo(), timesteps=[50, 100], num_noise_samples=3, num_eigenvectors=3)
    assert len(output.layers) == 2 * 2 * 3
    single = pixels(photo(), timesteps=[50, 100], num_eigenvectors=3)
    assert not torch.equal(output.eigenvectors, single.eigenvectors)


@pytest.mark.parametrize("family", ["sd", "pixart", "sd3", "flux", "sana"])
def test_from_pipe_leaves_the_original_untouched(family):
    host = host_pipeline(family)
    denoiser = getattr(host, "unet", None) or host.transformer
    denoiser.to(torch.bfloat16)  # The VAE stays in float32: one type for all would change one of them.
    dtypes = {name: one.dtype for name, one in host.components.items() if isinstance(one, torch.nn.Module)}
    arguments = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    arguments |= {"complex_human_instruction": None} if family == "sana" else {}
    arguments |= {"use_resolution_binning": False} if family in {"pixart", "sana"} else {}

    def sample():
        with torch.autocast("cpu", torch.bfloat16):
            return host("a cat", generator=torch.Generator().manual_seed(0), **arguments)[0]

    expected, before = sample(), state(denoiser)

    pipe = spectral(host)
    pipe(photo(), **SETTINGS)

    assert pipe.denoiser is denoiser
    assert {name: one.dtype for name, one in host.components.items() if isinstance(one, torch.nn.Module)} == dtypes
    assert state(denoiser) == before
    assert torch.equal(torch.as_tensor(sample()), torch.as_tensor(expected))


def test_from_pipe_converts_on_request():
    pipe = SpectralDiffusionPipeline.from_pipe(host_pipeline("dit"), dtype=torch.bfloat16)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16
    assert spectral(pipe)(photo(), **SETTINGS).eigenvectors.dtype == torch.float32


def test_a_half_precision_vae_that_asks_for_it_is_upcast_and_put_back():
    host = host_pipeline("dit")
    host.vae.to(torch.float16)
    used = []
    host.vae.encoder.register_forward_pre_hook(lambda module, args: used.append(args[0].dtype))
    spectral(host)(photo(), **SETTINGS)
    assert used == [torch.float32]
    assert {parameter.dtype for parameter in host.vae.parameters()} == {torch.float16}


def test_lists_give_the_same_as_one_by_one(pixels):
    images = [photo(seed=0), photo(40, 40, seed=1), photo(seed=2)]
    together = pixels(images, num_eigenvectors=3)
    assert len(together) == 3
    for image, output in zip(images, together, strict=True):
        assert torch.equal(pixels(image, num_eigenvectors=3).eigenvectors, output.eigenvectors)
    assert torch.equal(pixels(tuple(images), num_eigenvectors=3)[1].eigenvectors, together[1].eigenvectors)
    assert pixels([]) == []


def test_every_kind_of_input_gives_the_same(pixels, tmp_path):
    path = tmp_path / "photo.png"
    photo().save(path)
    expected = pixels(photo(), num_eigenvectors=3).eigenvectors
    for source in (path, str(path), path.read_bytes(), np.asarray(photo())):
        assert torch.equal(pixels(source, num_eigenvectors=3).eigenvectors, expected)


def test_deterministic_by_seed_and_generator(pixels):
    def found(**settings):
        return pixels(photo(), num_eigenvectors=3, **settings).eigenvectors

    assert torch.equal(found(seed=1), found(seed=1))
    assert not torch.equal(found(seed=1), found(seed=2))
    first = found(generator=torch.Generator().manual_seed(1))
    pair = pixels([photo()] * 2, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)], num_eigenvectors=3)
    assert torch.equal(pair[0].eigenvectors, first)
    assert not torch.equal(pair[1].eigenvectors, first)


def test_a_denoiser_of_pixels_needs_no_vae(pixels, tmp_path):
    output = pixels(photo(), pathway="where", num_eigenvectors=3)
    assert output.grid == (8, 8)  # DiT reads squares.
    assert output.size == (16, 16)
    assert pixels(photo(), resolution=32, num_eigenvectors=3).grid == (16, 16)
    pixels.save_pretrained(tmp_path)
    loaded = spectral(SpectralDiffusionPipeline.from_pretrained(tmp_path))
    assert loaded.vae is None
    same_up_to_rounding(loaded(photo(), pathway="where", num_eigenvectors=3).eigenvectors, output.eigenvectors)


@pytest.mark.parametrize(
    ("resolution", "size", "grid"), [(50, (32, 48), (16, 24)), (33, (24, 32), (12, 16)), (None, (24, 32), (12, 16))]
)
def test_sizes_are_rounded_and_reported(sd, resolution, size, grid):
    output = sd(photo(), resolution=resolution, num_eigenvectors=3)
    assert output.size == size
    assert output.grid == grid
    assert output.segmentation.size == (90, 60)


def test_tuples_layers_and_no_segmentation_on_request(pixels):
    output = pixels(photo(), num_eigenvectors=3, num_segments=None, layers=[-1])
    assert output.layers == ("transformer_blocks.1.attn1",) * 3
    assert output.segmentation is None
    assert "segments" not in output
    both = pixels(photo(), pathway="both", num_eigenvectors=3, return_dict=False)
    assert isinstance(both["where"], tuple)
    assert both["what"][0].shape == (3, 8, 8)


def test_all_timesteps_of_a_layer_share_its_weight(pixels):
    for weights in ([1, 3], {0: 1, 1: 3}):
        output = pixels(photo(), timesteps=[50, 150], num_eigenvectors=3, layer_weights=weights, return_result=True)
        assert output.result.layer_weights == pytest.approx((0.125, 0.375) * 2)
        found = pixels.at(layer_weights=weights, return_result=True)(photo())
        assert found.result.layer_weights[:2] == pytest.approx((1 / 12, 3 / 12))
    last = pixels(photo(), timesteps=[50, 150], num_eigenvectors=3, layers=(-1,), layer_weights=[7], return_result=True)
    assert last.result.layer_weights == (0.5, 0.5)
    with pytest.raises(SpectralError, match="`layer_weights`: expected 2 numbers, one for each layer.*got 4 numbers"):
        pixels(photo(), timesteps=[50, 150], num_eigenvectors=3, layer_weights=[1, 3, 1, 3])


def test_the_result_can_be_saved_and_says_how_it_was_made(pixels, tmp_path):
    output = pixels(photo(), num_eigenvectors=3, seed=5, solver=EigenSolver(), affinity="cosine", return_result=True)
    loaded = SpectralResult.from_pretrained(output.result.save_pretrained(tmp_path / "result.safetensors"))
    assert torch.equal(loaded.eigenvectors, output.eigenvectors)
    assert (loaded.config.seed, loaded.config.affinity, loaded.solver["name"]) == (5, Cosine(), "EigenSolver")


def test_the_progress_bar_counts_timesteps(pixels, capsys):
    pixels.set_progress_bar_config(disable=False)
    pixels(photo(), timesteps=[10, 20], num_noise_samples=2, num_eigenvectors=3)
    pixels.set_progress_bar_config(disable=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_offloaded_components_are_used_where_they_run(family):
    pipe = spectral(host_pipeline(family))
    expected = pipe(photo(), **SETTINGS).eigenvectors
    for name in pipe.model_cpu_offload_seq.split("->"):
        if getattr(pipe, name) is not None:
            __import__("accelerate").cpu_offload(getattr(pipe, name), execution_device="cpu")
    assert torch.equal(pipe(photo(), **SETTINGS).eigenvectors, expected)


def test_components_of_a_repository_that_serve_nothing_here_are_not_loaded(tmp_path):
    host_pipeline("sd").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert spectral(SpectralDiffusionPipeline.from_pretrained(tmp_path))(photo(), **SETTINGS).grid == (12, 16)


@pytest.mark.parametrize("family", ["sd", "dit", "flux"])
def test_the_community_pipeline_reads_a_repository(family, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    host_pipeline(family).save_pretrained(tmp_path / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=str(COMMUNITY), trust_remote_code=True
    )
    assert isinstance(pipe, SpectralDiffusionPipeline)
    expected = spectral(SpectralDiffusionPipeline.from_pretrained(tmp_path / "model"))(photo(), **SETTINGS)
    assert torch.equal(spectral(pipe)(photo(), **SETTINGS).eigenvectors, expected.eigenvectors)


def test_without_diffusers_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    path = Path(hf_spectral.__file__).parent / "pipelines" / "diffusers" / "__init__.py"
    spec = importlib.util.spec_from_file_location("hf_spectral.pipelines.without_diffusers", path)
    with pytest.raises(SpectralError, match=r"pip install 'hf-spectral\[diffusers\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "sd3", "flux", "lumina2", "sana"])
def test_without_text_encoders_zeros_stand_for_the_empty_prompt_and_no_other(family, caplog):
    host = host_pipeline(family)
    names = [name for name in host.components if name.startswith(("text_encoder", "tokenizer"))]
    components = {name: one for name, one in host.components.items() if name not in names}
    kept = {name: components[name] for name in ("scheduler", "unet", "transformer", "vae") if name in components}
    pipe = spectral(SpectralDiffusionPipeline(**kept))
    with caplog.at_level(logging.WARNING):
        pipe(photo(), **SETTINGS)
    assert "zeros stand for the embeddings of the empty prompt" in caplog.text
    with pytest.raises(SpectralError, match=r"`prompt`: expected '' without text_encoder.*Load the pipeline with"):
        pipe(photo(), prompt="a cat", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": [1000]}, r"`timesteps`: expected integers from 0 to 999.*got \[1000\]"),
        ({"timesteps": [-1]}, r"got \[-1\]"),
        ({"timesteps": [0.5]}, r"expected integers"),
        ({"timesteps": []}, r"at least one, got \[\]"),
        ({"num_noise_samples": 0}, "`num_noise_samples`: expected an integer of at least 1"),
        ({"prompt": ["a", "b"]}, "`prompt`: expected one string"),
        ({"prompt": "a " * 90}, "`prompt`: expected at most 77 tokens, got 92 tokens"),
        ({"pathway": "why"}, "`pathway`"),
        ({"layers": [7]}, "`layers`: expected indices from -7 to 6"),
        ({"solver": "magic"}, "`solver`"),
        ({"resolution": 0}, "`resolution`: expected an integer of at least 1"),
        ({"generator": []}, "`generator`: expected one generator, or one for each of 1 pictures, got 0"),
    ],
)
def test_wrong_arguments_are_named(sd, settings, message):
    with pytest.raises(SpectralError, match=message):
        sd(photo(), **settings)


def test_a_tokenizer_that_holds_another_counts_the_prompt_itself():
    host = host_pipeline("sd")
    host.tokenizer.tokenizer = object()  # As ChatGLM's does.
    pipe = spectral(host)
    assert pipe.encode_prompt("a cat").states.shape[1] == 77
    with pytest.raises(SpectralError, match="`prompt`: expected at most 77 tokens, got 92 tokens"):
        pipe.encode_prompt("a " * 90)


def test_flow_models_take_any_number_as_timestep():
    pipe = spectral(host_pipeline("sd3"))
    assert pipe(photo(), timesteps=12.5, **SETTINGS).timesteps == (12.5,)


@pytest.mark.parametrize("pathway", ["where", "both"])
def test_linear_attention_is_refused_before_any_picture_is_read(pathway):
    pipe = spectral(host_pipeline("sana"))
    with pytest.raises(SpectralError, match=r"`pathway`: expected 'what' for SanaTransformer2DModel.*attends linearly"):
        pipe("nowhere.jpg", pathway=pathway)


def test_a_prompt_for_a_class_conditional_model_is_refused(pixels):
    with pytest.raises(SpectralError, match="`prompt`: expected '': DiTTransformer2DModel reads a class, no text"):
        pixels(photo(), prompt="a cat")


def test_pictures_beyond_the_positions_are_refused():
    pipe = spectral(host_pipeline("sd3"))
    with pytest.raises(SpectralError, match="`resolution`: expected at most 96 pixels.*got 200"):
        pipe(photo(), resolution=200)


def test_a_wrong_picture_is_named(pixels):
    with pytest.raises(SpectralError, match="`image`: expected a path"):
        pixels("nowhere.jpg")


def test_the_arguments_of_a_call_are_those_of_the_other_pipeline():
    pipe = spectral(host_pipeline("sd"))
    with pytest.raises(SpectralError, match="`timestep`: expected one of the arguments affinity.*timesteps"):
        pipe(photo(), timestep=50)
    settings = {**SETTINGS, "timesteps": 50, "num_segments": None}
    short = pipe(photo(), affinity="exponential", temperature=0.2, return_result=True, **settings)
    assert short.result.config.affinity == hf_spectral.Exponential(temperature=0.2)
    assert (
        pipe.at(num_noise_samples=2)(photo(), **settings).layers
        == pipe(photo(), num_noise_samples=2, **settings).layers
    )


def test_unknown_or_missing_parts_are_refused():
    scheduler, unet = diffusers.DDPMScheduler(), build_unet()
    with pytest.raises(
        UnsupportedBackboneError, match="expected a denoiser, one of .*UNet2DConditionModel.*, got AutoencoderKL"
    ):
        SpectralDiffusionPipeline(scheduler=scheduler, vae=vae(), unet=vae())
    with pytest.raises(SpectralError, match="`transformer`: expected one denoiser.*got none"):
        SpectralDiffusionPipeline(scheduler=scheduler, vae=vae())
    with pytest.raises(SpectralError, match="got both"):
        SpectralDiffusionPipeline(scheduler=scheduler, vae=vae(), unet=unet, transformer=build_dit())
    with pytest.raises(SpectralError, match="`vae`: expected the VAE whose latents of 4 channels"):
        SpectralDiffusionPipeline(scheduler=scheduler, unet=unet)
    with pytest.raises(SpectralError, match=r"`scheduler`: expected the one that the denoiser was trained with"):
        SpectralDiffusionPipeline(scheduler=None, unet=unet, vae=vae())
    with pytest.raises(
        UnsupportedBackboneError, match="more than a timestep and a prompt: class_embed_type=.timestep."
    ):
        SpectralDiffusionPipeline(scheduler=scheduler, unet=build_unet(class_embed_type="timestep"), vae=vae())
    kolors = build_unet(encoder_hid_dim=48, encoder_hid_dim_type="text_proj")
    with pytest.raises(
        UnsupportedBackboneError, match=r"more than a timestep and a prompt: encoder_hid_dim=48, encoder_hid_dim_ty"
    ):
        SpectralDiffusionPipeline(scheduler=scheduler, unet=kolors, vae=vae())
    with pytest.raises(UnsupportedBackboneError, match=r"a prompt: num_class_embeds=7\)"):
        SpectralDiffusionPipeline(scheduler=scheduler, unet=build_unet(num_class_embeds=7), vae=vae())
    with pytest.raises(UnsupportedBackboneError, match="its input holds 5 more channels than the 4 of a VAE"):
        SpectralDiffusionPipeline(scheduler=scheduler, unet=build_unet(in_channels=9), vae=vae())
    fill = build_flux(in_channels=64, out_channels=16)
    with pytest.raises(UnsupportedBackboneError, match=r"Flux.* .its input holds 12 more channels than the 4"):
        SpectralDiffusionPipeline(scheduler=scheduler, transformer=fill, vae=vae())


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_what_fails_for_every_picture_is_a_refusal(part, monkeypatch):
    pipe = spectral(host_pipeline("dit"))
    broken = getattr(pipe, part)
    monkeypatch.setattr(broken, "forward" if part == "transformer" else "encode", lambda *args, **kwargs: None.config)
    name = type(broken).__name__
    with pytest.raises(
        UnsupportedBackboneError, match=rf"{name} \(no picture can be read: AttributeError.*\)\. Choose"
    ):
        pipe(photo(), **SETTINGS)


def test_a_denoiser_of_squares_says_that_it_stretches():
    pipe = spectral(host_pipeline("dit"))
    said = "reads squares only: the picture of 60 x 90 pixels was stretched to 32 x 32"
    with pytest.warns(UserWarning, match=said) as caught:
        outputs = pipe([photo(), photo(seed=1), photo(60, 60)], return_result=True, **SETTINGS)
    assert len(caught) == 1
    assert [[said in note for note in output.result.notes] for output in outputs] == [[True], [True], []]


def test_nan_in_the_vae_and_in_the_denoiser_are_told_apart():
    host = host_pipeline("dit")
    pipe = spectral(host)
    with torch.no_grad():
        host.transformer.transformer_blocks[1].attn1.to_v.weight[0, 0] = float("nan")
    with pytest.raises(SpectralError, match="finite numbers in the value of layer 1"):
        pipe(photo(), **SETTINGS)
    with torch.no_grad():
        host.vae.encoder.conv_in.weight[0, 0] = float("nan")
    with pytest.raises(SpectralError, match=r"`vae`: expected finite latents, got NaN.*vae.to\(torch.float32\)"):
        pipe(photo(), **SETTINGS)


def test_missing_half_precision_kernels_are_explained(pixels, monkeypatch):
    def forward(*args, **kwargs):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(pixels.transformer, "forward", forward)
    with pytest.raises(SpectralError, match=r"`dtype`: .*float16.*dtype=torch.float32"):
        pixels(photo())
    monkeypatch.setattr(pixels.transformer, "forward", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pixels(photo())


def test_heads_method_and_instances_as_in_the_other_pipeline(pixels):
    given = {"timesteps": [50, 150], "num_eigenvectors": 3}
    output = pixels(
        photo(), heads="separate", method="kmeans", num_segments=4, instances=True, return_result=True, **given
    )
    assert output.result.config.heads == "separate"
    expected = segment(output.result, num_segments=4, method="kmeans", size=(60, 90)).labels
    assert np.array_equal(np.asarray(output.segmentation), expected.numpy())
    expected = instances(output.result, size=(60, 90))
    assert [one["score"] for one in output.instances] == [one.score for one in expected]
    assert pixels.at(instances=True, method="kmeans")(photo(), **given).instances is not None
    assert pixels(photo(), **given).instances is None
    with pytest.raises(SpectralError, match="`method`: expected one of 'tree', 'ward', 'kmeans', got 'watershed'"):
        pixels(photo(), method="watershed")


def test_latents_of_an_unknown_kind_are_refused_before_any_weight(tmp_path):
    index = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedBackboneError, match="LDMPipeline .its latents come from its 'vqvae'"):
        SpectralDiffusionPipeline.from_pretrained(tmp_path)
