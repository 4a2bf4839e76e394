"""Every class of transformers' AutoModel that takes pixels, and twelve architectures of timm, small and random.

    python -m tests.benchmarks.backbone_sweep [MODEL_TYPE ...]

A line each: it works, it is refused in one line, it could not be built here (a missing library, or a configuration that
cannot be made small), or it FAILED, which is a fault and the exit status. About a minute.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers import CONFIG_MAPPING, MODEL_MAPPING

import hf_spectral
from hf_spectral import SpectralError, UnsupportedBackboneError
from hf_spectral.capture import check_supported

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "out_hidden_size", "projection_size"), 32),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "num_experts"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "bos_token_id"), 1),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **{"image_size": 64, "patch_size": 8, "projection_dim": 16, "head_dim": 8, "vocab_size": 300},
    **{"max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 2},
}
_MAX_PARAMETERS = 30_000_000


def small(config_class: type) -> Any:
    """Return a configuration with its numbers made small, those of its parts too; as it comes where that fails."""
    config = config_class()
    entries = config.to_dict()
    # Where each stage has its own number of heads, its width stays.
    has_stages = isinstance(entries.get("num_heads"), (list, tuple))
    changes = {
        name: value
        for name, value in _SMALL.items()
        if not (has_stages and name in ("hidden_size", "embed_dim"))
        and name in entries
        and (entries[name] is None or type(entries[name]) is int)
    }
    for name in ("vision_config", "text_config", "backbone_config"):
        if hasattr(part := getattr(config, name, None), "to_dict"):
            changes[name] = small(type(part))
    try:
        return config_class(**changes)
    except Exception:  # noqa: BLE001 - any check of the host's
        return config


def classes(wanted: list[str]) -> Iterator[tuple[type, type]]:
    """Yield each model class with its configuration's."""
    for name, config_class in CONFIG_MAPPING.items():
        if config_class not in MODEL_MAPPING or (wanted and name not in wanted):
            continue
        try:
            found = MODEL_MAPPING[config_class]
        except ValueError:  # The host names a class that it does not have.
            continue
        for model_class in found if isinstance(found, (list, tuple)) else (found,):
            with contextlib.suppress(ImportError):  # A stand-in for what a missing library would bring.
                if any(name.startswith("pixel_values") for name in inspect.signature(model_class.forward).parameters):
                    yield config_class, model_class


def outcome(config_class: type, model_class: Any, picture: Image.Image) -> tuple[str, str]:
    """Return a word for how a class fares, and the sentence about it."""
    try:
        config = small(config_class)
        with torch.device("meta"):
            skeleton = model_class._from_config(config)
    except Exception as error:  # noqa: BLE001 - whatever the host's constructors raise
        return "not built", f"{type(error).__name__}: {error}"
    try:
        check_supported(skeleton)
        if sum(parameter.numel() for parameter in skeleton.parameters()) > _MAX_PARAMETERS:
            return "not built", "too large"
        processor = hf.ViTImageProcessor(size={"height": 64, "width": 64})
        model = model_class._from_config(config).eval()
        return read(model, processor, picture)
    except UnsupportedBackboneError as error:
        return ("refused" if "\n" not in str(error) else "FAILED"), str(error)
    except Exception as error:  # noqa: BLE001 - what this script is for
        return "FAILED", f"{type(error).__name__}: {error}"


def read(model: Any, processor: Any, picture: Image.Image) -> tuple[str, str]:
    """Return whether both pathways can be read, or "what" alone, and how many layers on which map."""
    pipe = hf_spectral.pipeline(model, image_processor=processor, device="cpu")
    output = pipe(picture, pathway="what", num_eigenvectors=3, num_segments=None)
    said = f"{len(output['layers'])} layers, {output['grid'][0]} x {output['grid'][1]} tokens"
    try:
        pipe(picture, pathway="where", num_eigenvectors=3, num_segments=None)
    except SpectralError as error:
        return "what alone", f"{said}; {error}"
    return "both pathways", said


def timm_models() -> Iterator[tuple[str, Any]]:
    """Yield small models of timm, by the names of their architectures; none where timm is not installed."""
    try:
        import timm
    except ImportError:
        return
    plain = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 2}
    swin = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    hiera = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}
    names = ("vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3")
    names += ("vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384")
    sizes = dict.fromkeys((*names, "beit_base_patch16_224"), plain) | {"hiera_tiny_224": hiera, "convnext_atto": {}}
    sizes |= {"swin_tiny_patch4_window7_224": swin, "swinv2_tiny_window8_256": swin}
    for name, settings in sizes.items():
        yield name, timm.create_model(name, **settings).eval()


def main() -> int:
    """Print a line per class and the counts; return 1 if any crashed."""
    warnings.simplefilter("ignore")
    hf.utils.logging.set_verbosity_error()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8))
    counts: collections.Counter[str] = collections.Counter()
    for config_class, model_class in classes(sys.argv[1:]):
        word, sentence = outcome(config_class, model_class, picture)
        counts[word] += 1
        print(f"{model_class.__name__}: {word}: {' '.join(sentence.split())[:300]}", flush=True)
    for name, model in () if sys.argv[1:] else timm_models():
        try:
            word, sentence = read(model, hf.ViTImageProcessor(), picture)
        except UnsupportedBackboneError as error:
            word, sentence = "refused", str(error)
        except Exception as error:  # noqa: BLE001 - what this script is for
            word, sentence = "FAILED", f"{type(error).__name__}: {error}"
        counts[word] += 1
        print(f"timm {name}: {word}: {' '.join(sentence.split())[:300]}", flush=True)
    works = counts["both pathways"] + counts["what alone"]
    print(
        f"works {works}, both pathways {counts['both pathways']}, refused {counts['refused']}, "
        f"failed {counts['FAILED']}, not built {counts['not built']}"
    )
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
