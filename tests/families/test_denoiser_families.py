"""Every family of denoisers, from a pipeline on disk to eigenvectors: nothing changed, every token in its place."""

import functools
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_spectral import SpectralError
from hf_spectral.capture import capture_attention
from hf_spectral.families.diffusers import FAMILIES, family_of
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from hf_spectral.pipelines.diffusers.latents import vae_factor
from hf_spectral.pipelines.diffusers.noise import is_flow
from tests.benchmarks import denoiser_sweep
from tests.families.denoisers import TINY, TinyPipeline, denoiser_of
from tests.families.tiny_denoisers import state
from tests.pipelines.tiny_diffusion import PIPELINES, host_pipeline, spectral
from tests.synthetic import photo

# Those that other tests look at too.
_GRIDS = {"sd": (12, 16), "sdxl": (12, 16), "dit": (8, 8), "sana": (11, 16)}
OLD = {
    name: TinyPipeline(
        functools.partial(host_pipeline, name),
        _GRIDS.get(name, (5, 8)),
        num_grids=3 if name.startswith("sd") and name != "sd3" else 1,
        pathways=("what",) if name == "sana" else ("where", "what"),
    )
    for name in PIPELINES
}
ALL = OLD | TINY
FEW = {"timesteps": [50], "num_eigenvectors": 8, "num_segments": None}


def seen_by(denoiser, into):
    """Note the arguments of the first forward by name, those that are None left out."""

    def hook(module, args, kwargs):
        if not into:
            arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
            into.update({name: value for name, value in arguments.items() if value is not None and name != "self"})
            into.pop("return_dict", None)

    return denoiser.register_forward_pre_hook(hook, with_kwargs=True)


def arguments_of(pipe, tiny, picture=None, **settings):
    """Return the arguments with which the spectral pipeline calls its denoiser."""
    found = {}
    handle = seen_by(pipe.denoiser, found)
    given = {"resolution": tiny.resolution, "pathway": tiny.pathways[-1]} | FEW | settings
    pipe(photo() if picture is None else picture, **given)
    handle.remove()
    return found


def a_quarter_differs():
    """Return a picture whose upper right quarter is of another color and texture, and where that is."""
    quarter = np.zeros((60, 90), bool)
    quarter[:30, 45:] = True
    noise = np.random.default_rng(0).integers(0, 40, (60, 90, 3))
    pixels = np.where(quarter[..., None], [210, 60, 20] + noise, [30, 70, 160] + noise // 4)
    return Image.fromarray(pixels.astype(np.uint8)), quarter


def pooled(vae, pixels):
    """Return mean colors as latents, in the place of a VAE's."""
    channels = vae.config.get("latent_channels") or vae.config.z_dim
    means = torch.nn.functional.avg_pool2d(pixels[:, :, 0] if pixels.ndim == 5 else pixels, vae_factor(vae))
    latents = means.repeat(1, channels // 3 + 1, 1, 1)[:, :channels] * 4 / vae.config.get("scaling_factor", 1)
    return SimpleNamespace(latent=latents[:, :, None] if pixels.ndim == 5 else latents)


def plain(output):
    """Return the tensors of a forward's output."""
    return torch.stack(list(output)) if isinstance(output, (list, tuple)) else output


@pytest.mark.parametrize("name", ALL)
def test_outputs_do_not_change_and_every_grid_is_recorded(name):
    tiny = ALL[name]
    pipe = spectral(tiny.pipeline())
    arguments, denoiser = arguments_of(pipe, tiny), pipe.denoiser
    with torch.no_grad():
        expected, before = plain(denoiser(**arguments, return_dict=False)[0]), state(denoiser)
        with capture_attention(denoiser) as capture:
            output = plain(denoiser(**arguments, return_dict=False)[0])

    assert torch.equal(output, expected)
    assert state(denoiser) == before
    assert capture.skipped == []
    grids = {(record.grid.height, record.grid.width) for record in capture}
    assert len(grids) == tiny.num_grids
    assert max(grids) == tiny.grid
    assert len({record.name for record in capture}) == len(capture.records)
    reads_text = family_of(type(denoiser)).text is not None
    assert any(record.num_text_tokens for record in capture) == reads_text


@pytest.mark.parametrize("name", TINY)
def test_a_pipeline_on_disk_is_read(name, tmp_path):
    tiny = TINY[name]
    host = tiny.pipeline()
    host.save_pretrained(tmp_path)
    loaded = spectral(SpectralDiffusionPipeline.from_pretrained(tmp_path))
    for pathway in tiny.pathways:
        settings = {"resolution": tiny.resolution, "pathway": pathway, "num_eigenvectors": 4}
        found, expected = (pipe(photo(), **settings) for pipe in (loaded, spectral(host)))
        assert found.grid == tiny.grid
        assert found.segmentation.size == (90, 60)
        # Weights mapped from a file lie at other addresses, and kernels of the CPU round by alignment.
        torch.testing.assert_close(found.eigenvectors, expected.eigenvectors, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_an_eigenvector_follows_the_quarter_of_a_picture_that_differs(name, monkeypatch):
    tiny = ALL[name]
    pipe = spectral(tiny.pipeline())
    picture, quarter = a_quarter_differs()
    if pipe.vae is not None:  # A random VAE's latents follow its padding rather than the picture.
        monkeypatch.setattr(pipe.vae, "encode", functools.partial(pooled, pipe.vae))
    found = pipe(picture, resolution=tiny.resolution, pathway="what", **FEW | {"timesteps": [1]})
    height, width = found.grid
    mask = np.asarray(Image.fromarray(quarter).resize((width, height), Image.Resampling.BOX), float).ravel()
    rows = found.eigenvectors.flatten(1).numpy()[1:]
    assert max(abs(np.corrcoef(row, mask)[0, 1]) for row in rows) >= 0.7


@pytest.mark.parametrize("name", [name for name in TINY if name != "kolors"])
def test_the_denoiser_is_told_what_its_own_pipeline_tells_it(name):
    """One step of the host's own sampling and ours agree in the names, shapes and values of all but the latents."""
    tiny, theirs = TINY[name], {}
    host = tiny.pipeline()
    handle = seen_by(denoiser_of(host), theirs)
    host(**tiny.call, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    handle.remove()
    pipe = spectral(host)
    told = next(name for name in ("timestep", "timesteps", "t") if name in theirs)
    step = tiny.step(float(torch.as_tensor(theirs[told]).flatten()[-1]))
    flows = is_flow(family_of(type(pipe.denoiser)), host.scheduler)
    step = min(step if flows else int(step), host.scheduler.config.num_train_timesteps - 1)
    ours = arguments_of(pipe, tiny, photo(60, 60), timesteps=[step], prompt=tiny.prompt)
    own = {"cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"}
    assert set(ours) == set(theirs) - own
    for name, value in ours.items():
        if name == "hidden_states" and not tiny.same_size:
            continue
        compare(name, value, theirs[name], name in ("sample", "hidden_states", "x"))


def compare(name, one, other, only_shape):
    """Compare what is told in words, numbers, tensors and lists of them; of two prompts the last is ours."""
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            compare(key, one[key], other[key], only_shape)
    elif isinstance(one, torch.Tensor):
        other = torch.as_tensor(other, dtype=one.dtype)
        other = other[-len(one) :] if one.ndim and other.ndim else other.expand_as(one)
        assert one.shape == other.shape, name
        if not only_shape:
            torch.testing.assert_close(one, other, msg=lambda text: f"{name}: {text}", rtol=1e-3, atol=1e-3)
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other[-len(one) :], strict=True):
            compare(name, left, right, only_shape)
    else:
        assert one == other, name


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.prompt])
def test_the_prompt_reaches_the_denoiser(name):
    tiny = TINY[name]
    pipe = spectral(tiny.pipeline())
    settings = {"resolution": tiny.resolution, **FEW}
    one, other = (pipe(photo(), prompt=prompt, **settings).eigenvectors for prompt in ("", tiny.prompt))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", TINY)
def test_a_wrong_order_of_image_and_text_does_not_pass(name, monkeypatch):
    tiny = TINY[name]
    pipe = spectral(tiny.pipeline())
    family = family_of(type(pipe.denoiser))
    if family.text is None:
        return
    monkeypatch.setattr(family, "text", {"first": "last", "last": "first"}[family.text])
    with pytest.raises(SpectralError, match="`model`: expected image tokens"):
        pipe(photo(), resolution=tiny.resolution, **FEW)


@pytest.mark.parametrize("name", [name for name in denoiser_sweep.classes() if name not in FAMILIES])
def test_every_other_denoiser_of_the_host_is_refused_in_one_line_before_its_weights(name):
    word, said = denoiser_sweep.outcome(name, None)
    assert word == "refused", said


def test_every_family_has_a_tiny_pipeline():
    built = {type(denoiser_of(tiny.build())).__name__ for tiny in ALL.values()}
    assert built == {*FAMILIES}
    assert built <= {*denoiser_sweep.classes()}


def test_a_refusal_says_what_a_denoiser_makes():
    for name, reason in (("WanTransformer3DModel", "three dimensions"), ("StableAudioDiTModel", "makes sound")):
        assert re.search(rf"{name} \(.*{reason}", denoiser_sweep.outcome(name, None)[1])
