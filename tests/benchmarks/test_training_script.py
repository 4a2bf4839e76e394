"""The training script of the small diffusion transformer, for 50 steps on the CPU."""

import sys

import numpy as np
import pytest
from diffusers import DiTTransformer2DModel
from PIL import Image

from tests.benchmarks import train_small_dit


@pytest.fixture
def imagefolder(tmp_path):
    """Two classes of flat colors with a little noise."""
    random = np.random.default_rng(0)
    for label, color in (("blue", (20, 40, 220)), ("red", (220, 30, 30))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.clip(np.array(color) + random.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path / "data"


def test_smoke_run_lowers_the_loss_and_saves_a_diffusers_folder(imagefolder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    words = ["train", str(imagefolder), "--output", str(output), "--image-size", "16", "--smoke"]
    monkeypatch.setattr(sys, "argv", words)
    train_small_dit.main()
    first, last = (
        float(word.rstrip(",")) for word in capsys.readouterr().out.split() if word[0].isdigit() and "." in word
    )
    assert last < 0.9 * first
    model = DiTTransformer2DModel.from_pretrained(output / "transformer")
    assert model.config.num_embeds_ada_norm == 2
    with Image.open(output / "samples-000050.png") as sheet:
        assert sheet.size == (8 * 16, 2 * 16)

    train_small_dit.main()
    assert (output / "state" / "step.txt").read_text() == "50"
