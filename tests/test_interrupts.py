"""An interrupt at any line of the capture and of the pipelines leaves the model as it came."""

import random
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image

import hf_spectral
from hf_spectral import SpectralDiffusionPipeline, restoring
from hf_spectral.capture import hooks, interface
from tests.families.tiny_backbones import BACKBONES, Tiny, build_vit_mae
from tests.pipelines.tiny_diffusion import host_pipeline

NUM_PLACES = 100
_PACKAGE = Path(hf_spectral.__file__).parent
_ROOMS = (*(f"{_PACKAGE / room}/" for room in ("capture", "families", "pipelines")), str(_PACKAGE / "restoring.py"))
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Interrupter:
    """Counts the lines that run in these rooms, and interrupts at one of them."""

    def __init__(self, stop_at=None):
        self.count = 0
        self.stop_at = stop_at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.call)

    def __exit__(self, *_):
        sys.settrace(self.before)

    def call(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(_ROOMS) else None

    def line(self, frame, event, argument):
        if event == "line":
            if self.count == self.stop_at:
                raise KeyboardInterrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            self.count += 1
        return self.line


def state(models):
    """Return all of the models and of this thread that an interrupt must not change."""
    parts = []
    for name, model in models.items():
        config = model.config
        parts.append((name, type(config), getattr(config, "_attn_implementation", None), model.dtype))
        for path, module in model.named_modules():
            installed = [len(getattr(module, kind)) for kind in _HOOKS]
            processor, inner = getattr(module, "processor", None), getattr(module, "config", None)
            attention = getattr(inner, "_attn_implementation", None)
            parts.append((name, path, module.training, installed, id(processor), type(inner), attention))
    thread = (
        getattr(hooks._captured, "models", []),
        getattr(interface._observers, "stack", []),
        torch._C._len_torch_function_stack(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    return parts, thread, dict(restoring._switches), _is_free(restoring.lock)


def _is_free(lock):
    found = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(timeout=5)) or lock.release())
    thread.start()
    thread.join()
    return found == [True]


def vision(family):
    tiny = Tiny(build_vit_mae, (64, 64), ()) if family == "vit_mae" else BACKBONES[family]
    model = tiny.model()
    # A part of the model is in training mode, as if only its head were to be evaluated.
    next(iter(model.children())).train()
    size = {"height": tiny.image_size[0], "width": tiny.image_size[1]}
    pipe = hf_spectral.pipeline(model, image_processor=hf.ViTImageProcessorPil(size=size), device="cpu")

    def run():
        return pipe(photo(), pathway="what", num_eigenvectors=2, num_segments=None)["eigenvectors"]

    return {"model": model}, run


def diffusion(family):
    host = host_pipeline(family)
    host.vae.train()
    pipe = SpectralDiffusionPipeline.from_pipe(host)
    pipe.set_progress_bar_config(disable=True)

    def run():
        settings = {"timesteps": [50], "layers": [-1], "num_eigenvectors": 2, "num_segments": None, "resolution": 32}
        return pipe(photo(), **settings).eigenvectors

    return {name: one for name, one in host.components.items() if isinstance(one, torch.nn.Module)}, run


def photo():
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


KINDS = {
    **dict.fromkeys(("vit", "sam_vision", "vit_mae", "swin", "swinv2"), vision),
    **dict.fromkeys(("sd", "dit"), diffusion),
}


def interrupted_everywhere(family, places):
    """Interrupt at each of the places; return how many there are, and where the model was not as it came."""
    models, run = KINDS[family](family)
    expected, before = run(), state(models)
    counter = Interrupter()
    with counter:
        run()
    wrong = []
    for place in places(counter.count):
        with pytest.raises(KeyboardInterrupt) as caught, Interrupter(place):
            run()
        # `caught` still holds the traceback: nothing may wait for it to be dropped.
        if state(models) != before:
            wrong.append(f"{place}: {caught.value}")
            break
        if place % 50 == 0 and not torch.equal(run(), expected):
            wrong.append(f"{place}: {caught.value}: another result")
    assert torch.equal(run(), expected)
    return counter.count, wrong


@pytest.mark.parametrize("family", KINDS)
def test_an_interrupt_at_a_random_line_leaves_the_model_as_it_came(family):
    def some(count):
        return random.Random(0).sample(range(count), min(count, NUM_PLACES))

    _, wrong = interrupted_everywhere(family, some)
    assert wrong == []
