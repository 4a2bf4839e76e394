"""What the package costs on a GPU, beside the backbone's own forward pass: one command, under eight minutes.

    python -m tests.benchmarks.gpu [--device cuda] [--dtypes float32 bfloat16] [--json FILE]
    python -m tests.benchmarks.gpu --device cpu --small        (tries the command itself, in a minute)

Both pathways of one picture at three sizes; `fit` in batches; a UNet of the size of Stable Diffusion's, random weights;
and the sizes of the blocks that kernels are formed in, swept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image

import hf_spectral
from hf_spectral import SpectralConfig, capture_attention, fit, operators, solve
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.transformers.offline import offline_backbone
from hf_spectral.problem import ProblemBuilder
from tests.benchmarks.common import machine, print_table, spread

NUM_EIGENVECTORS = 16
GRIDS = {"37 x 37": (37, 37), "68 x 46": (68, 46), "128 x 128": (128, 128)}
BATCHES = (1, 8, 32)
BLOCKS_MIB = (16, 64, 256, 1024)
_BLOCK_BYTES = {"cpu": "_CPU_BLOCK_BYTES"}  # Of a processor; every other device has its own.
SMALL_GRIDS = {"12 x 12": (12, 12), "24 x 20": (24, 20)}
SMALL_UNET = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 4}
SMALL_UNET |= {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def main() -> None:
    """Run all parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="small sizes, one repeat: to try the command itself")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.small:
        options.repeats = 1
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    begun = time.perf_counter()
    report: dict[str, Any] = {"machine": {**machine(), "device": device_name(options.device)}}
    for part in options.parts:
        print(f"\n## {part}\n", flush=True)
        report[part] = [row for name in options.dtypes for row in PARTS[part](getattr(torch, name), options)]
        print_table(report[part])
    print(f"\n{json.dumps(report['machine'])}\n{time.perf_counter() - begun:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def pathways(dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both pathways of one picture, 16 eigenvectors, no segmentation: time beyond the forward pass."""
    pipe = pipeline(options.device, dtype)
    rows = []
    for name, grid in (SMALL_GRIDS if options.small else GRIDS).items():
        prepared = picture(pipe, *grid)
        rows.append({"dtype": named(dtype), "tokens": name, **overhead(pipe, prepared, options)})
    return rows


def blocks(dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same at the smaller sizes, kernels being formed in blocks of other sizes."""
    pipe = pipeline(options.device, dtype)
    attribute = _BLOCK_BYTES.get(torch.device(options.device).type, "_ACCELERATOR_BLOCK_BYTES")
    rows = []
    for name, grid in list((SMALL_GRIDS if options.small else GRIDS).items())[: 1 if options.small else 2]:
        prepared = picture(pipe, *grid)
        for mebibytes in BLOCKS_MIB:
            with mock.patch.object(operators, attribute, mebibytes << 20):
                found = overhead(pipe, prepared, options)
            rows.append({"dtype": named(dtype), "tokens": name, "block, MiB": mebibytes, **found})
    return rows


def fitting(dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`fit` against the same batches through the backbone once, pictures ready: images per second of each."""
    pipe = pipeline(options.device, dtype)
    side, count = (8, 4) if options.small else (37, 128)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            Image.fromarray(noise(side * 14, number)).save(Path(folder) / f"{number:03d}.bmp")
        for pathway in ("what", "where"):
            for batch in BATCHES[: 2 if options.small else None]:
                prepared = picture(pipe, side, side)
                tensors = {name: torch.cat([one] * batch) for name, one in prepared["inputs"].items()}
                settings = {"pathway": pathway, "batch_size": batch, "resolution": side * 14, "progress": False}
                times = in_turns(
                    {
                        "forward": lambda tensors=tensors: forward(pipe, tensors),
                        "fit": lambda settings=settings: fit(pipe, folder, **settings),
                    },
                    options.device,
                    max(1, options.repeats // 4),
                )
                once = [count / batch * seconds for seconds in times["forward"]]
                rows.append(
                    {
                        "dtype": named(dtype),
                        "fit": pathway,
                        "batch": batch,
                        "forward, images / s": spread([count / one for one in once], 1),
                        "fit, images / s": spread([count / one for one in times["fit"]], 1),
                        "fit / forward": spread([one / two for one, two in zip(times["fit"], once, strict=True)]),
                    }
                )
    return rows


def unet(dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A UNet of the size of Stable Diffusion's (860 million parameters, latents of 64 x 64), both pathways."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model: Any = UNet2DConditionModel(cross_attention_dim=768, **(SMALL_UNET if options.small else {}))
    model = model.to(options.device, dtype).eval()
    side = 16 if options.small else 64
    latents, text = (torch.randn(shape).to(options.device, dtype) for shape in ((1, 4, side, side), (1, 77, 768)))

    @torch.no_grad()
    def plain() -> None:
        model(latents, 100, text)

    @torch.no_grad()
    def both() -> None:
        configs = [SpectralConfig(pathway, num_eigenvectors=NUM_EIGENVECTORS) for pathway in ("what", "where")]
        builders = [ProblemBuilder(config) for config in configs]
        with capture_attention(model, lambda record: [builder.add(record) for builder in builders] and None):
            model(latents, 100, text)
        for builder in builders:
            solve(builder.build(), require_convergence=False)

    times = in_turns({"forward": plain, "all": both}, options.device, options.repeats)
    return [{"dtype": named(dtype), "latents": f"{side} x {side}", **beyond(times), "peak, MiB": peak(both, options)}]


def overhead(pipe: SpectralPathwaysPipeline, prepared: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Time of both pathways beyond the forward pass, and the memory they add to it."""

    def both() -> None:
        pipe.forward(dict(prepared), pathway="both", num_eigenvectors=NUM_EIGENVECTORS)

    def plain() -> None:
        forward(pipe, prepared["inputs"])

    times = in_turns({"forward": plain, "all": both}, options.device, options.repeats)
    return {**beyond(times), "forward, peak MiB": peak(plain, options), "all, peak MiB": peak(both, options)}


def beyond(times: dict[str, list[float]]) -> dict[str, str]:
    """Both times, and what is beyond the forward pass as a multiple of it."""
    ratios = [whole / plain - 1 for whole, plain in zip(times["all"], times["forward"], strict=True)]
    milliseconds = {name: spread([1e3 * one for one in times[name]], 1) for name in times}
    return {
        "forward, ms": milliseconds["forward"],
        "all, ms": milliseconds["all"],
        "after the forward / forward": spread(ratios),
    }


def in_turns(actions: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Time actions in turns, the device being waited for; one round of warming up is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats + 1):
        for name, action in actions.items():
            waited(device)
            start = time.perf_counter()
            action()
            waited(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def waited(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak(action: Callable[[], object], options: argparse.Namespace) -> Any:
    """Largest memory of the device during an action, which torch counts on CUDA alone."""
    if not options.device.startswith("cuda"):
        return "-"
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    action()
    return math.ceil(torch.cuda.max_memory_allocated() / 2**20)


def pipeline(device: str, dtype: torch.dtype) -> SpectralPathwaysPipeline:
    """The default backbone, without a network."""
    return hf_spectral.pipeline(str(offline_backbone()), device=device, dtype=dtype)


def picture(pipe: SpectralPathwaysPipeline, height: int, width: int) -> dict[str, Any]:
    """A picture of so many tokens, ready and on the device."""
    from sklearn.datasets import load_sample_image

    size = (width * 14, height * 14)
    image = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.BICUBIC)
    prepared = pipe.preprocess(image, resolution=max(size))
    return {**prepared, "inputs": {name: one.to(pipe.device) for name, one in prepared["inputs"].items()}}


def noise(side: int, seed: int) -> np.ndarray:
    """Smooth random colors."""
    rough = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC))


@torch.no_grad()
def forward(pipe: SpectralPathwaysPipeline, tensors: dict[str, Any]) -> None:
    """The backbone alone."""
    pipe.model(**tensors)


def device_name(device: str) -> str:
    """What the figures were taken on."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def named(dtype: torch.dtype) -> str:
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")


PARTS = {"pathways": pathways, "fit": fitting, "unet": unet, "blocks": blocks}

if __name__ == "__main__":
    main()
