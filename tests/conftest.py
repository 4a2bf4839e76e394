"""Fixtures that more than one room needs."""

import os

# Read when the libraries are loaded, by child processes too: threads that spin, of more processes than there are cores,
# make small problems ten times slower.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import datasets
import diffusers
import pytest
import threadpoolctl
import torch
import transformers

import hf_spectral  # noqa: F401 -- registers the task "spectral-pathways"
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, saved_backbone
from tests.families.tiny_denoisers import build_dit
from tests.pipelines.tiny_diffusion import host_pipeline, spectral


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_small():
    """Tiny models are fastest on one thread."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)  # For libraries that were loaded before the environment was set.


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """Folder of a tiny random DINOv2 with its processor."""
    return saved_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def pipe():
    """The pipeline around a tiny random DINOv2."""
    model = BACKBONES["dinov2"].model()
    return transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)


@pytest.fixture(scope="module")
def sd():
    """The pipeline around a tiny random Stable Diffusion."""
    return spectral(host_pipeline("sd"))


@pytest.fixture(scope="module")
def pixels():
    """The pipeline around a denoiser of pixels, without a VAE."""
    torch.manual_seed(0)
    denoiser = build_dit(in_channels=3, sample_size=16).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.1)
    return spectral(SpectralDiffusionPipeline(scheduler=diffusers.DDPMScheduler(), transformer=denoiser))
