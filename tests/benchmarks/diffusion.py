"""One image through a UNet of random weights: memory against the number of timesteps, time against its own forward.

    python -m tests.benchmarks.diffusion [--parts memory cost] [--threads N] [--json FILE]

Weights do not change what is measured. `memory` runs each number of timesteps in a process of its own, at a top grid of
64 x 64 tokens. `cost` takes a UNet of the size of Stable Diffusion 1.5 (860 million parameters), 512 pixels, one
timestep, both pathways; it needs about 6 GiB in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from hf_spectral import SpectralConfig, capture_attention, solve
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from hf_spectral.problem import ProblemBuilder
from hf_spectral.records import PATHWAYS
from tests.benchmarks.common import (
    in_fresh_process,
    machine,
    paired_seconds,
    peak_mib,
    print_table,
    set_threads,
    spread,
)

MODULE = "tests.benchmarks.diffusion"
SIDE = 512
FEW, MANY = 2, 12
TIMESTEP = 150
SMALL = {"block_out_channels": (64, 128, 128, 128), "attention_head_dim": 8, "norm_num_groups": 32}
SD15 = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768}


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-probe", type=int, metavar="TIMESTEPS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_threads(options.threads)
    if options.memory_probe is not None:
        print(json.dumps(memory_probe(options.memory_probe)))
        return
    found: dict[str, Any] = {"machine": machine() | {"diffusers": diffusers.__version__}}
    print(found["machine"])
    for part in options.parts:
        found[part] = PARTS[part](options)
        print(f"\n### {part}\n")
        print_table(found[part])
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def random_pipeline(**settings: Any) -> SpectralDiffusionPipeline:
    """A UNet of the layout of Stable Diffusion, and a VAE that halves three times, as its does."""
    torch.manual_seed(0)
    fields = {"sample_size": SIDE // 8, "cross_attention_dim": 64, **settings}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    unet = diffusers.UNet2DConditionModel(**fields)
    pipe = SpectralDiffusionPipeline(scheduler=diffusers.DDPMScheduler(), unet=unet.eval(), vae=vae.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture() -> Image.Image:
    """A photograph that scikit-learn ships."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(np.asarray(load_sample_image("china.jpg"))[:, :427]).resize((SIDE, SIDE))


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak resident memory of a process with few timesteps and with many, and what comes on top of the weights."""
    words = ("--threads", str(options.threads))
    few, many = (in_fresh_process(MODULE, "--memory-probe", str(count), *words) for count in (FEW, MANY))
    rows = [
        {"timesteps": count, "layers": probe["layers"], "loaded, MiB": probe["loaded"], "peak, MiB": probe["peak"]}
        for count, probe in ((FEW, few), (MANY, many))
    ]
    above = [probe["peak"] - probe["loaded"] for probe in (few, many)]
    rows[0] |= {"peak / peak of the first": 1.0, "above the weights / that of the first": 1.0}
    rows[1] |= {
        "peak / peak of the first": many["peak"] / few["peak"],
        "above the weights / that of the first": above[1] / above[0],
    }
    return rows


def memory_probe(num_timesteps: int) -> dict[str, float]:
    """Measure one number of timesteps in this process."""
    pipe = random_pipeline(**SMALL)
    loaded = peak_mib()
    steps = [round(250 * (i + 1) / num_timesteps) for i in range(num_timesteps)]
    output = pipe(picture(), pathway="both", timesteps=steps, num_segments=None)
    return {"loaded": loaded, "peak": peak_mib(), "layers": len(output["what"].layers)}


def cost(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both pathways, 16 eigenvectors, no segmentation: time beyond the plain forward pass, as a multiple of it.

    With the latents that the random VAE gives, tokens are unlike each other, and the eigenvalues so close together that
    their vectors take many steps to tell apart; a trained VAE's latents look like the picture.
    """
    pipe = random_pipeline(**SD15).at(TIMESTEP)
    told: dict[str, Any] = {}
    handle = pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: told.update(kwargs), with_kwargs=True)
    pipe.records([pipe.preprocess(picture())], lambda record: None)
    handle.remove()
    random = told.pop("sample")
    rows = []
    for name, latents in (("random", random), ("like the picture", picture_latents(pipe))):

        def forward(latents: torch.Tensor = latents) -> None:
            with torch.no_grad():
                pipe.unet(sample=latents, **told)

        def whole(forward: Callable[[], None] = forward) -> None:
            builders = [ProblemBuilder(SpectralConfig(pathway)) for pathway in PATHWAYS]
            with capture_attention(pipe.unet, lambda record: [builder.add(record) for builder in builders]):
                forward()
            for builder in builders:
                solve(builder.build())

        times = paired_seconds({"forward": forward, "all": whole}, options.repeats)
        ratios = [both / alone - 1 for both, alone in zip(times["all"], times["forward"], strict=True)]
        rows.append(
            {
                "parameters, M": round(sum(one.numel() for one in pipe.unet.parameters()) / 1e6),
                "latents": name,
                "forward, s": spread(times["forward"]),
                "all, s": spread(times["all"]),
                "after the forward / forward": spread(ratios),
                "peak, MiB": round(peak_mib()),
            }
        )
    return rows


def picture_latents(pipe: SpectralDiffusionPipeline) -> torch.Tensor:
    """The picture pooled to the size of latents, of unit variance, with the noise of the timestep."""
    pooled = torch.from_numpy(np.array(picture().resize((SIDE // 8, SIDE // 8)))).permute(2, 0, 1)[None] / 127.5 - 1
    latents = torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return pipe.scheduler.add_noise(latents / latents.std(), noise, torch.tensor([TIMESTEP]))


PARTS = {"memory": memory, "cost": cost}

if __name__ == "__main__":
    main()
