"""Every class of transformers' AutoModel that takes `pixel_values`, small and random, through the pipeline.

    python -m tests.benchmarks.backbone_sweep [MODEL_TYPE ...]

A line each: it works, it is refused in one line, it could not be built here (a missing library, or a configuration that
cannot be made small), or it CRASHED, which is a fault and the exit status. About a minute.
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
from hf_spectral import UnsupportedBackboneError
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
    changes = {
        name: value
        for name, value in _SMALL.items()
        if name in entries and (entries[name] is None or type(entries[name]) is int)
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
                if "pixel_values" in inspect.signature(model_class.forward).parameters:
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
        pipe = hf_spectral.pipeline(model, image_processor=processor, device="cpu")
        output = pipe(picture, num_eigenvectors=3, num_segments=None)
    except UnsupportedBackboneError as error:
        return ("refused" if "\n" not in str(error) else "CRASHED"), str(error)
    except Exception as error:  # noqa: BLE001 - what this script is for
        return "CRASHED", f"{type(error).__name__}: {error}"
    return "works", f"{len(output['layers'])} layers, {output['grid'][0]} x {output['grid'][1]} tokens"


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
    print(dict(counts))
    return int(counts["CRASHED"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
