"""timm needs torchvision, whose compiled operators fit one build of torch only; its Python parts are enough here."""

import contextlib
import re
import sys

import torch

_libraries = []


def _import_torchvision():
    """Import torchvision, declaring each operator that its own registrations of fake tensors miss."""
    for _ in range(40):
        try:
            return __import__("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
            _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
            _libraries[-1].define(missing[1] + "(Tensor a) -> Tensor")
    return None


with contextlib.suppress(ModuleNotFoundError):
    _import_torchvision()
