"""What layers see while a picture is generated: one record per layer and chosen step, and eigenvectors per step."""

import numpy as np
import pytest
import torch

from hf_spectral import SpectralConfig, SpectralError, build_problem, solve
from hf_spectral.capture import capture_attention
from tests.families.denoisers import TINY, denoiser_of
from tests.pipelines.tiny_diffusion import host_pipeline, spectral

OLD = {name: {} for name in ("sd", "sdxl", "pixart", "sd3", "flux", "sana", "lumina2")}
OLD["pixart"] = {"use_resolution_binning": False}
OLD["sana"] = {"use_resolution_binning": False, "complex_human_instruction": None}
CALLS = {name: {"height": 32, "width": 32, **call} for name, call in OLD.items()}
CALLS |= {name: {**tiny.call, "output_type": "pil"} for name, tiny in TINY.items() if tiny.prompt}
# The guidance that doubles the batch, or runs the denoiser twice, in whatever words the host has for it.
GUIDED = {"qwen_image": {"true_cfg_scale": 4.0, "negative_prompt": "dog"}}


def host_of(name):
    return TINY[name].pipeline() if name in TINY else host_pipeline(name)


def call_of(name):
    call = CALLS[name] | GUIDED.get(name, {"guidance_scale": 4.0})
    return call | {"prompt": "a cat", "num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("name", CALLS)
def test_a_step_gives_one_record_per_layer_and_the_picture_does_not_change(name):
    host = host_of(name)
    expected = host(**call_of(name)).images[0]
    with capture_attention(denoiser_of(host), steps=[1, 3]) as capture:
        image = host(**call_of(name)).images[0]

    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert capture.skipped == []
    records = list(capture)
    half = len(records) // 2
    assert [record.name for record in records[:half]] == [record.name for record in records[half:]]
    assert len({record.name for record in records[:half]}) == half
    timesteps = [{record.timestep for record in part} for part in (records[:half], records[half:])]
    assert [len(one) for one in timesteps] == [1, 1]
    assert timesteps[0] != timesteps[1]
    assert {record.num_images for record in records} == {1}


@pytest.mark.parametrize("name", ["sd", "z_image", "sd3"])
def test_of_guidance_the_rows_with_the_prompt_are_kept(name):
    """Without guidance the prompt alone is run, and the first step starts from the same noise."""
    host = host_of(name)
    found = []
    for scale in (4.0, 0.0 if name == "z_image" else 1.0):
        with capture_attention(denoiser_of(host), steps=[0]) as capture:
            host(**call_of(name) | {"guidance_scale": scale})
        found.append(list(capture))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.query, other.query, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.value, other.value, atol=1e-3, rtol=1e-3)


def test_steps_that_do_not_come_are_named():
    host = host_of("sd")
    said = r"`steps`: expected steps from 0 to 3, as many as were run.*got \[1, 9\]"
    with pytest.raises(SpectralError, match=said), capture_attention(host.unet, steps=[9, 1]):
        host(**call_of("sd"))
    said = r"`steps`: expected integers from 0, at least one, got \[-1\]"
    with pytest.raises(SpectralError, match=said), capture_attention(host.unet, steps=[-1]):
        pass


@pytest.mark.parametrize("name", ["sd", "flux", "qwen_image", "z_image", "flux2"])
def test_generate_returns_the_hosts_picture_with_eigenvectors_per_step(name):
    host = host_of(name)
    expected = host(**call_of(name)).images[0]
    with capture_attention(denoiser_of(host), steps=[2]) as capture:
        host(**call_of(name))
    problem = build_problem(capture, SpectralConfig("what", num_eigenvectors=3))

    pipe, call = spectral(host), call_of(name)
    made = pipe.generate(call.pop("prompt"), steps=[0, 2], num_eigenvectors=3, pathway="what", **call)

    assert np.array_equal(np.asarray(made.image), np.asarray(expected))
    assert made.steps == (0, 2)
    assert [len(output.timesteps) for output in made.outputs] == [1, 1]
    assert made.outputs[1].segmentation.size == made.image.size
    torch.testing.assert_close(made.outputs[1].eigenvalues, solve(problem).eigenvalues, atol=1e-4, rtol=0)
    assert not torch.equal(made.outputs[0].eigenvectors, made.outputs[1].eigenvectors)


def test_generate_takes_all_steps_and_both_pathways_and_leaves_the_pipeline_as_it_was():
    pipe = spectral(host_of("sd"))
    before = vars(pipe.scheduler).copy()
    made = pipe.generate("a cat", pathway="both", num_eigenvectors=3, num_inference_steps=2, height=32, width=32)
    assert made.steps == (0, 1)
    assert [set(output) for output in made.outputs] == [{"where", "what"}] * 2
    assert vars(pipe.scheduler).keys() == before.keys()
    with pytest.raises(
        SpectralError, match="`prompt`: expected one string or its embeddings, and .*got UNet2DModel, which reads none"
    ):
        spectral(host_of("unet2d")).generate("a cat")
    with pytest.raises(SpectralError, match="`prompt`: .*got no text_encoder, tokenizer"):
        spectral(host_of("kolors")).generate("a cat")
    with pytest.raises(SpectralError, match="`pathway`: expected 'what' for SanaTransformer2DModel"):
        spectral(host_of("sana")).generate("a cat", pathway="where")
