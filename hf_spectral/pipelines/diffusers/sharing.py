"""What the pipeline shares: components with another pipeline, and its files with programs that have not imported it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from hf_spectral.errors import SpectralError

#: The module beside the index that names the class to load; it imports the installed package.
SHIM_NAME = "pipeline.py"


def name_the_class(index: Path) -> None:
    """Let an index name the class as one of the module beside it, which programs load that know of no other.

    Args:
        index: The file that the host has written.
    """
    described = json.loads(index.read_text(encoding="utf-8"))
    described["_class_name"] = [SHIM_NAME.removesuffix(".py"), described["_class_name"]]
    index.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def components_handed_on(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return components in the place of their entries in the index.

    `DiffusionPipeline.from_pipe(pipe, custom_pipeline=...)` knows of no optional components: it gives the constructor
    the entry `(library, class)` of each. The components are those of the pipeline in the frame of that call.

    Args:
        given: Arguments of the constructor by name.

    Returns:
        Components by name, None where the pipeline has none.

    Raises:
        SpectralError: If there are entries outside such a call.
    """
    if not any(isinstance(one, (tuple, list)) for one in given.values()):
        return dict(given)
    frame, from_pipe = inspect.currentframe(), inspect.unwrap(DiffusionPipeline.from_pipe.__func__).__code__
    while frame is not None and frame.f_code is not from_pipe:
        frame = frame.f_back
    source = None if frame is None else frame.f_locals.get("pipeline")
    if source is None:
        raise SpectralError(
            "pipeline",
            expected="models, schedulers and tokenizers",
            got="names of their classes",
            fix="Call SpectralDiffusionPipeline.from_pipe(pipe)",
        )
    return {name: getattr(source, name, None) if isinstance(one, (tuple, list)) else one for name, one in given.items()}
