"""What people who use diffusers expect of a pipeline: components that are shared, one file, the arguments they know."""

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import dynamic_modules_utils
from safetensors.torch import save_file

import hf_spectral
from hf_spectral import SpectralError, UnsupportedBackboneError
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.denoisers import TINY, denoiser_of
from tests.pipelines.tiny_diffusion import RESOLUTION, host_pipeline, spectral, vae
from tests.synthetic import photo

COMMUNITY = str(Path(hf_spectral.__file__).parent / "community")
SETTINGS = {"resolution": RESOLUTION, "timesteps": 50, "num_eigenvectors": 3, "num_segments": None}
CALL = {"num_inference_steps": 3, "height": 32, "width": 32, "num_eigenvectors": 3}


def host_of(family):
    return TINY[family].pipeline() if family in TINY else host_pipeline(family)


def maps(pipe, image=None, **settings):
    return pipe(photo() if image is None else image, **SETTINGS | settings).eigenvectors


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Keep the code that diffusers copies out of the cache of this machine."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")


@pytest.mark.parametrize("family", ["sd", "sdxl", "dit", "sd3", "flux", "qwen_image", "z_image", "flux2", "chroma"])
def test_from_pipe_with_the_community_folder_shares_components(family, modules):
    host = host_of(family)
    expected = SpectralDiffusionPipeline.from_pipe(host)
    for owner in (diffusers.DiffusionPipeline, type(host)):
        pipe = owner.from_pipe(host, custom_pipeline=COMMUNITY, trust_remote_code=True)
        assert type(pipe) is SpectralDiffusionPipeline
        assert pipe.denoiser is denoiser_of(host)
        assert pipe.components.keys() == expected.components.keys()
        assert all(one is expected.components[name] for name, one in pipe.components.items())


def test_from_pipe_takes_other_components_and_names_an_unknown_one():
    host, other = host_pipeline("sd"), vae()
    pipe = SpectralDiffusionPipeline.from_pipe(host, vae=other, text_encoder=None)
    assert pipe.vae is other
    assert pipe.text_encoder is None
    assert SpectralDiffusionPipeline.from_pipe(pipe).vae is other
    with pytest.raises(SpectralError, match="`autoencoder`: expected one of the arguments .*vae"):
        SpectralDiffusionPipeline.from_pipe(host, autoencoder=other)
    with pytest.raises(SpectralError, match="`pipeline`: expected a pipeline of diffusers, got a UNet2DConditionModel"):
        SpectralDiffusionPipeline.from_pipe(host.unet)
    said = r"`pipeline`: expected models, schedulers and tokenizers, got names.*SpectralDiffusionPipeline\.from_pipe"
    with pytest.raises(SpectralError, match=said):
        SpectralDiffusionPipeline(host.scheduler, unet=("diffusers", "UNet2DConditionModel"))


def test_a_denoiser_that_its_own_pipeline_always_shows_a_picture_to_edit_is_refused(tmp_path):
    host = host_of("qwen_image")
    editing = diffusers.QwenImageEditPipeline(**host.components, processor=None)
    said = r"QwenImageTransformer2DModel \(QwenImageEditPipeline shows it further pictures"
    with pytest.raises(UnsupportedBackboneError, match=said):
        SpectralDiffusionPipeline.from_pipe(editing)
    host.save_config(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("QwenImagePipeline", "QwenImageEditPlusPipeline"))
    with pytest.raises(UnsupportedBackboneError, match="QwenImageEditPlusPipeline shows it further pictures"):
        SpectralDiffusionPipeline.from_pretrained(tmp_path)
    flux = host_pipeline("flux")  # Kontext makes pictures of prompts alone, too.
    kontext = diffusers.FluxKontextPipeline(**flux.components)
    assert torch.equal(maps(spectral(kontext)), maps(spectral(flux)))


# From the names of diffusers to those of the first release of Stable Diffusion, for one layer per block.
ORIGINAL = {
    r"^time_embedding\.linear_(\d)": lambda found: f"time_embed.{2 * int(found[1]) - 2}",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.(\d)": lambda found: f"middle_block.{2 * int(found[1])}",
    r"^down_blocks\.(\d)\.downsamplers\.0\.conv": lambda found: f"input_blocks.{2 * int(found[1]) + 2}.0.op",
    r"^down_blocks\.(\d)\.(resnets|attentions)\.0": lambda found: (
        f"input_blocks.{2 * int(found[1]) + 1}.{int(found[2] == 'attentions')}"
    ),
    r"^up_blocks\.(\d)\.upsamplers\.0": lambda found: f"output_blocks.{2 * int(found[1]) + 1}.{1 + (found[1] > '0')}",
    r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)": lambda found: (
        f"output_blocks.{2 * int(found[1]) + int(found[3])}.{int(found[2] == 'attentions')}"
    ),
    r"\.conv1\.": ".in_layers.2.",
    r"\.conv2\.": ".out_layers.3.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"\.conv_shortcut\.": ".skip_connection.",
}


def original_name(name):
    found = name
    for pattern, original in ORIGINAL.items():
        found = re.sub(pattern, original, found)
    if "transformer_blocks" not in name:
        found = found.replace(".norm1.", ".in_layers.0.").replace(".norm2.", ".out_layers.0.")
    return f"model.diffusion_model.{found}"


def test_a_checkpoint_in_one_file_is_read_as_the_pipeline_that_it_was_made_of(tmp_path):
    host = host_pipeline("sd")
    host.save_pretrained(tmp_path / "config")
    weights = {original_name(name): one for name, one in host.unet.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model."
    weights |= {f"{prefix}{name}": one for name, one in host.text_encoder.state_dict().items()}
    save_file({name: one.contiguous() for name, one in weights.items()}, tmp_path / "sd.safetensors")
    for part in (tmp_path / "config").rglob("*.safetensors"):
        part.unlink()

    given = {"config": str(tmp_path / "config"), "vae": host.vae}
    pipe = spectral(SpectralDiffusionPipeline.from_single_file(str(tmp_path / "sd.safetensors"), **given))

    expected = maps(spectral(host), prompt="a cat")
    torch.testing.assert_close(maps(pipe, prompt="a cat"), expected, atol=1e-3, rtol=0)
    said = "`pretrained_model_link_or_path`: expected a checkpoint in one file"
    with pytest.raises(SpectralError, match=said):
        SpectralDiffusionPipeline.from_single_file(str(tmp_path / "nowhere.safetensors"), **given)
    with pytest.raises(SpectralError, match=f"{said}.*model_index.json"):
        SpectralDiffusionPipeline.from_single_file(str(tmp_path / "sd.safetensors"), config=str(tmp_path))


def test_arrays_and_tensors_hold_what_the_pictures_hold(sd):
    settings = {"resolution": RESOLUTION, "timesteps": 50, "num_segments": 3, "instances": True, "pathway": "both"}
    pictures, arrays, tensors = (sd(photo(), output_type=form, **settings) for form in ("pil", "np", "pt"))
    for name, expected in pictures.items():
        labels = np.array(expected.segmentation)
        assert arrays[name].segmentation.dtype == np.int64
        assert np.array_equal(arrays[name].segmentation, labels)
        assert torch.equal(tensors[name].segmentation, torch.from_numpy(labels).long())
        assert np.array_equal(arrays[name].eigenvectors, expected.eigenvectors)
        for field in ("segments", "instances"):
            for one, other in zip(expected[field], arrays[name][field], strict=True):
                assert other["mask"].dtype == np.bool_
                assert np.array_equal(other["mask"], np.array(one["mask"]) > 0)
                assert (other["label"], other["score"]) == (one["label"], one["score"])
    with pytest.raises(SpectralError, match="`output_type`: expected one of 'pil', 'np', 'pt', got 'latent'"):
        sd(photo(), output_type="latent")
    with pytest.raises(SpectralError, match="`output_type`: expected one of 'pil', got 'np'"):
        sd(photo(), output_type="np", as_json=True)


def test_a_batch_of_pictures_goes_through_the_denoiser_at_once(sd):
    images, sizes = [photo(seed=0), photo(60, 60, seed=1), photo(seed=2), photo(seed=3)], []
    expected = [maps(sd, image) for image in images]
    hook = sd.unet.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["sample"])), with_kwargs=True
    )
    found = sd(images, batch_size=3, **SETTINGS)
    by_default = sd.at(batch_size=4)(images, **SETTINGS)
    hook.remove()
    assert sizes == [2, 1, 1, 3, 1]
    for outputs in (found, by_default):
        for one, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(one.eigenvectors, other, atol=1e-3, rtol=0)
    with pytest.raises(SpectralError, match="`batch_size`: expected an integer of at least 1, got 0"):
        sd(images, batch_size=0)
    with pytest.raises(
        SpectralError, match="`generator`: expected one generator, or one for each of 4 pictures, got 7"
    ):
        sd(images, generator=7)


def test_a_callback_sees_each_timestep_and_may_change_what_is_read(sd):
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((pipe, step, timestep, {name: one.shape for name, one in tensors.items()}))
        return tensors

    def blacken(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    expected = maps(sd, timesteps=[50, 150])
    names = ["latents", "prompt_embeds"]
    found = maps(sd, timesteps=[50, 150], callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert torch.equal(found, expected)
    shapes = {"latents": (1, 4, 12, 16), "prompt_embeds": (1, 77, 24)}
    assert seen == [(sd, 0, 50, shapes), (sd, 1, 150, shapes)]
    assert not torch.equal(maps(sd, timesteps=[50, 150], callback_on_step_end=blacken), expected)
    assert torch.equal(maps(sd, timesteps=[50], callback_on_step_end=blacken), maps(sd, timesteps=[50]))
    with pytest.raises(SpectralError, match="_inputs`: expected names among latents, prompt_embeds, got .'noise_pred'"):
        sd(photo(), callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["noise_pred"])
    with pytest.raises(SpectralError, match="`callback_on_step_end`: expected a function of pipeline, step"):
        sd(photo(), callback_on_step_end_tensor_inputs=["latents"])
    with pytest.raises(SpectralError, match="expected 'latents' of shape .1, 4, 12, 16. from it, got shape .1,."):
        sd(photo(), resolution=RESOLUTION, callback_on_step_end=lambda *seen: {"latents": torch.zeros(1)})


def embeddings(family, host, prompt="a cat"):
    """Return what the host's own call takes in the place of a prompt, from what its `encode_prompt` returns."""
    alone = {"device": "cpu", "do_classifier_free_guidance": False}
    with torch.no_grad():
        if family == "sd":
            return {"prompt_embeds": host.encode_prompt(prompt, num_images_per_prompt=1, **alone)[0]}
        if family in ("flux", "qwen_image"):
            states, second, *_ = host.encode_prompt(prompt, device="cpu")
            name = "pooled_prompt_embeds" if family == "flux" else "prompt_embeds_mask"
            return {"prompt_embeds": states, name: second}
        if family == "sd3":
            states, _, pooled, _ = host.encode_prompt(prompt, None, None, **alone)
            return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}
        if family == "z_image":
            return {"prompt_embeds": host.encode_prompt(prompt, **alone)[0]}
        if family == "hunyuan_dit":
            first = host.encode_prompt(prompt, **alone)
            second = host.encode_prompt(prompt, text_encoder_index=1, **alone)
            given = {"prompt_embeds": first[0], "prompt_attention_mask": first[2]}
            return given | {"prompt_embeds_2": second[0], "prompt_attention_mask_2": second[2]}
        states, mask, *_ = host.encode_prompt(prompt, max_sequence_length=300, **alone)
        return {"prompt_embeds": states, "prompt_attention_mask": mask}


@pytest.mark.parametrize("family", ["sd", "pixart", "sd3", "flux", "qwen_image", "z_image", "hunyuan_dit"])
def test_embeddings_stand_for_the_prompt_that_they_were_made_of(family):
    host = host_of(family)
    given, pipe = embeddings(family, host), spectral(host)
    size = {"resolution": TINY[family].resolution if family in TINY else RESOLUTION}
    expected = maps(pipe, prompt="a cat", **size)
    without = {name: None for name in pipe.components if name.startswith(("text_encoder", "tokenizer"))}
    pipe = spectral(SpectralDiffusionPipeline.from_pipe(host, **without))
    found = maps(pipe, **given, **size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(maps(pipe.at(**given), **size), found)
    assert pipe.at(**given).describe_backbone()["prompt"].startswith("embeddings ")


def test_embeddings_that_do_not_fit_are_named():
    host = host_pipeline("sd3")
    pipe, given = spectral(host), embeddings("sd3", host)
    with pytest.raises(SpectralError, match="`prompt`: expected None beside pooled_prompt_embeds, prompt_embeds, got"):
        pipe(photo(), prompt="a cat", **given)
    with pytest.raises(SpectralError, match="`pooled_prompt_embeds`: expected for SD3.* prompt_embeds, pooled_prompt_"):
        pipe(photo(), prompt_embeds=given["prompt_embeds"])
    with pytest.raises(SpectralError, match="`prompt_attention_mask`: expected for SD3"):
        pipe(photo(), prompt_attention_mask=torch.ones(1, 77), **given)
    with pytest.raises(SpectralError, match="`negative_prompt_embeds`: expected nothing negative.*`generate` takes it"):
        pipe(photo(), negative_prompt_embeds=given["prompt_embeds"], **given)
    for wrong in (given["prompt_embeds"][..., :7], given["prompt_embeds"].repeat(2, 1, 1)):
        with pytest.raises(
            SpectralError, match="`prompt_embeds`: expected those of one prompt, 48 channels wide, got p"
        ):
            pipe(photo(), **given | {"prompt_embeds": wrong})
    with pytest.raises(SpectralError, match=r"`prompt_embeds`: expected those of one prompt.*of shape \(77,\)"):
        spectral(host_pipeline("sd"))(photo(), prompt_embeds=torch.zeros(77))
    with pytest.raises(SpectralError, match="`prompt_embeds`: expected tensors, got prompt_embeds of type str"):
        pipe(photo(), **given | {"prompt_embeds": "a cat"})
    with pytest.raises(SpectralError, match="`prompt_embeds`: expected for DiT.* no embeddings"):
        spectral(host_pipeline("dit"))(photo(), prompt_embeds=given["prompt_embeds"])


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_generation_takes_embeddings_and_gives_every_form_of_picture(family):
    host = host_pipeline(family)
    pipe, call = spectral(host), CALL | {"steps": [1]}
    given = embeddings(family, host)
    if family == "sd":
        given["negative_prompt_embeds"] = embeddings("sd", host, "")["prompt_embeds"]

    def made(**settings):
        return pipe.generate(generator=torch.Generator().manual_seed(0), **call | settings)

    expected = made(prompt="a cat")
    pixels = np.asarray(expected.image) / 255
    found = {form: made(output_type=form, **given) for form in ("np", "pt", "latent")}
    np.testing.assert_allclose(found["np"].image, pixels, atol=0.01)
    np.testing.assert_allclose(found["pt"].image.permute(1, 2, 0), pixels, atol=0.01)
    assert isinstance(found["latent"].image, torch.Tensor)
    labels = {form: output.outputs[0].segmentation for form, output in found.items()}
    assert np.array_equal(labels["np"], np.array(expected.outputs[0].segmentation))
    assert labels["latent"].shape == found["latent"].outputs[0].grid
    for output in found.values():
        same = torch.as_tensor(output.outputs[0].eigenvalues), expected.outputs[0].eigenvalues
        torch.testing.assert_close(*same, atol=1e-4, rtol=0)


def test_a_callback_may_end_the_generation(sd):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    made = sd.generate("a cat", callback_on_step_end=stop, **CALL)
    assert made.steps == (0, 1)
    assert len(made.outputs) == 2
    assert sd.generate("a cat", timesteps=[900, 500], **CALL).steps == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": None}, "`prompt`: expected one string or its embeddings, .*got None"),
        ({"prompt_embeds": torch.zeros(1, 77, 24)}, "`prompt`: expected one string or its embeddings, .*got 'a cat'"),
        ({"num_images_per_prompt": 2}, "`num_images_per_prompt`: expected one picture, .*got 2"),
        ({"return_dict": False}, "`return_dict`: expected one picture, .*got False"),
        ({"guidance": 3}, "`guidance`: expected one of the arguments .*guidance_scale"),
        ({"height": 33}, "`settings`: expected arguments that StableDiffusionPipeline takes together, got .*33"),
        ({"generator": 3}, "`generator`: expected one generator, .*got 3"),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 24), "negative_prompt_embeds": torch.zeros(1, 5, 24)},
            r"`negative_prompt_embeds`: expected the shape of `prompt_embeds`, \(1, 77, 24\), got \(1, 5, 24\)",
        ),
        ({"output_type": "jpg"}, "`output_type`: expected one of 'pil', 'np', 'pt', 'latent', got 'jpg'"),
        (
            {"output_type": "latent", "method": "tree"},
            "`method`: expected 'ward' or 'kmeans', got 'tree' without a pic",
        ),
    ],
)
def test_arguments_of_a_generation_that_do_not_go_together_are_named(sd, settings, message):
    with pytest.raises(SpectralError, match=message):
        sd.generate(**{"prompt": "a cat", **CALL, **settings})
