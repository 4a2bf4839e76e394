"""The entry point: find the host of a model, record its attention layers, and check that none was missed."""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_spectral.checks import is_int
from hf_spectral.errors import HFSpectralError, SpectralError, UnsupportedBackboneError, refuse_backbone
from hf_spectral.families.attention_call import AttentionCall
from hf_spectral.grid import TokenGrid
from hf_spectral.layer_choice import resolve_layers
from hf_spectral.records import AttentionRecord, Capture, SkippedLayer

if TYPE_CHECKING:
    from hf_spectral.capture.hooks import AttentionHooks

# A host is recognized by the package of the model's classes, so that no host is imported for a model of another one.
_HOSTS = {
    "transformers": "hf_spectral.capture.transformers:TowerHooks",
    "timm": "hf_spectral.capture.transformers:TowerHooks",
    "diffusers": "hf_spectral.capture.diffusers:DenoiserHooks",
}


class Recorder:
    """Turns what a host saw into records, counts layers, and says at the end whether any is missing.

    Args:
        backbone: Name of the model's class, for messages.
        on_record: Receives each record as it arrives; None stores them in `capture`.
        layers: Layer indices to record; None means all.
        steps: Steps of a generation to record; None means every forward pass.

    Raises:
        SpectralError: If `steps` holds anything but integers from 0, or nothing.
    """

    def __init__(
        self,
        backbone: str,
        on_record: Callable[[AttentionRecord], object] | None,
        layers: Iterable[int] | None,
        steps: Iterable[int] | None = None,
    ) -> None:
        self.capture = Capture()
        self._backbone = backbone
        self._on_record = self.capture.records.append if on_record is None else on_record
        self._layers = layers
        self._wanted: frozenset[int] | None = None
        self._num_layers: int | None = None
        self._next_index = 0
        self._num_forwards = 0
        self._num_records = 0
        self.steps = None if steps is None else frozenset(steps if isinstance(steps, Iterable) else ())
        if self.steps is not None and not (self.steps and all(is_int(step) and step >= 0 for step in self.steps)):
            fix = "Give e.g. steps=[0, 10], or leave it out for every forward pass"
            raise SpectralError("steps", expected="integers from 0, at least one", got=repr(steps), fix=fix)
        self._due: list[tuple[Tensor, HFSpectralError]] = []
        self._num_steps = 0
        self._timestep: float | None = None
        self._in_wanted_step = True

    def expect(self, num_layers: int) -> None:
        """Set the number of attention layers, and resolve negative indices.

        Args:
            num_layers: Attention layers that a forward pass calls.

        Raises:
            SpectralError: If an index lies outside the layers.
        """
        self._num_layers = num_layers
        if self._layers is not None:
            self._wanted = resolve_layers(self._layers, num_layers)

    def start_forward(self, timestep: float | None = None) -> None:
        """Count layers from 0 again.

        A pass at another timestep than the one before begins a step. Where a step has several passes, as for guidance,
        the first is that of the prompt, and the only one that is recorded.

        Args:
            timestep: What the denoiser is told; None for other models, where each pass is a step.
        """
        begins = timestep is None or timestep != self._timestep or not self._num_steps
        self._num_steps += begins
        self._timestep = timestep
        self._in_wanted_step = self.steps is None or (begins and self._num_steps - 1 in self.steps)
        self._next_index = 0
        self._due.clear()

    def end_forward(self) -> None:
        """Note that a forward pass has ended, and raise the errors of numbers that `require` noted."""
        self._num_forwards += 1
        self._raise_due()

    def require(self, number: Float[Tensor, ""], refusal: HFSpectralError) -> None:
        """Note a number that must be finite; it is read when the forward pass ends, so that a GPU need not stop now.

        Args:
            number: A number on any device.
            refusal: Raised at the end of the forward pass if the number is NaN or infinite.
        """
        self._due.append((number, refusal))

    def _raise_due(self) -> None:
        due, self._due = self._due, []
        if due:
            numbers = torch.stack([number.to(due[0][0]) for number, _ in due])
            for (_, refusal), is_finite in zip(due, numbers.isfinite().cpu().tolist(), strict=True):
                if not is_finite:
                    raise refusal

    def next_layer(self) -> int | None:
        """Count one attention call.

        Returns:
            The layer's index in call order, or None if it is not wanted.
        """
        index = self._next_index
        self._next_index += 1
        is_wanted = self._in_wanted_step and (self._wanted is None or index in self._wanted)
        return index if is_wanted else None

    def skip(self, name: str, reason: str, index: int) -> None:
        """Note a layer that attends but gives no record, once however often it runs.

        Args:
            name: Qualified module name.
            reason: A sentence without a full stop.
            index: Position in call order.
        """
        skipped = SkippedLayer(name, reason, index)
        if skipped not in self.capture.skipped:
            self.capture.skipped.append(skipped)

    def add(self, name: str, index: int, attention: AttentionCall, grid: TokenGrid, **further: Any) -> None:
        """Record one layer.

        Args:
            name: Qualified module name.
            index: Position in call order.
            attention: One row per image, patches only, in raster order.
            grid: The map of the patches.
            **further: `windowed`, `where_refused` and `num_text_tokens` of the `AttentionRecord`.
        """
        attention = attention.apply(_as_own_float32)
        for role in ("query", "key", "value"):
            refusal = SpectralError(
                "model",
                expected=f"finite numbers in the {role} of layer {index} ({name!r})",
                got="NaN or infinity",
                fix="The weights or the input hold NaN, or a half-precision model overflows: load it in float32",
            )
            # A sum is finite only if all its terms are, and takes a fraction of the time of looking at each.
            self.require(getattr(attention, role).sum(), refusal)
        seen = (attention.query, attention.key, attention.value, attention.scale)
        told = {"timestep": self._timestep, "num_layers": self._num_layers, **further}
        self._num_records += 1
        self._on_record(AttentionRecord(name, index, *seen, grid, **told))

    def check(self) -> None:
        """Refuse a capture that saw a forward pass but no layer of it, or not all of the steps.

        Raises:
            SpectralError: If a step was asked for that did not come, or a layer holds NaN.
            UnsupportedBackboneError: If a forward pass gave no record.
        """
        self._raise_due()
        if self.steps is not None and self._num_forwards and max(self.steps) >= self._num_steps:
            raise SpectralError(
                "steps",
                expected=f"steps from 0 to {self._num_steps - 1}, as many as were run inside the block",
                got=sorted(self.steps),
                fix="Leave out those beyond, or run more",
            )
        if not self._num_forwards or self._num_records:
            return
        skipped = self.capture.skipped
        reason = f"{skipped[0].name}: {skipped[0].reason}" if skipped else "none of its attention layers was called"
        refuse_backbone(self._backbone, reason)


@contextlib.contextmanager
def capture_attention(
    model: nn.Module,
    on_record: Callable[[AttentionRecord], object] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Iterator[Capture]:
    """Record query, key and value of every self-attention layer that this thread runs inside the block.

    The model is in evaluation mode inside the block, so that no dropout changes what is read; apart from that its
    outputs do not change. It leaves the block exactly as it came, also after an exception or an interrupt. Several
    threads may capture one model at once; records are made only from calls of the thread that opened the block.
    Query and key are what the layer compares, after rotation and normalization. Relative position biases (BEiT, Swin)
    and masks are no part of them and are left out. Windows are put back on the map; such records are marked `windowed`.

    Args:
        model: A transformers vision backbone, or a model that holds one (then only its vision tower is recorded); or
            the denoiser of a diffusers pipeline, its `unet` or `transformer` (text tokens are left out). Either may be
            a `PeftModel` or in `DataParallel`: records bear the names of the model inside.
        on_record: Called with each record as it arrives, in call order; the record is then not stored, so that memory
            holds one layer. What a layer may not hold, such as NaN, is raised when the forward pass ends, so that a
            GPU need not stop at each layer. None appends records to the capture.
        layers: Indices of the layers to record, in call order, negative ones counted from the end; None means all.
        steps: For a call that generates pictures: the denoising steps to record, the first being 0. A step gives one
            record per layer, of the pass with the prompt; where guidance runs both passes as one batch, the rows of
            the pass without it are left out. None records every forward pass as it is.

    Example:
        >>> with capture_attention(pipe.transformer, steps=[0, 10]) as capture:  # doctest: +SKIP
        ...     image = pipe("a cat", num_inference_steps=20).images[0]

    Yields:
        The capture: records and skipped layers, filled by each forward pass inside the block. Indices start from 0 in
        every forward pass.

    Raises:
        SpectralError: If `layers` lies outside the model or `steps` outside the steps that were run, the model is
            already captured by this thread, or a layer holds NaN.
        UnsupportedBackboneError: If the model has no self-attention that can be read, with the reason.
    """
    model = unwrapped(model)
    host = host_of(model)
    host.check_supported(model)
    recorder = Recorder(type(model).__name__, on_record, layers, steps)
    with host(model, recorder).installed():
        yield recorder.capture
    recorder.check()


def check_supported(model: nn.Module) -> None:
    """Refuse a model that cannot be captured, before any image is read.

    Args:
        model: The model to check; it is not run.

    Raises:
        UnsupportedBackboneError: If no layer of it can be recorded, with the reason.
    """
    model = unwrapped(model)
    host_of(model).check_supported(model)


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers that run it as it is: PEFT's, `DataParallel` and `DistributedDataParallel`.

    Args:
        model: A model in any number of wrappers; anything else comes back.

    Returns:
        The model, its adapters in place.

    Raises:
        UnsupportedBackboneError: If a wrapper runs copies of the model, or code compiled from it.
    """
    while True:
        inside, name = None, type(model).__name__
        if type(model).__module__.startswith("peft.") and hasattr(model, "get_base_model"):
            inside = model.get_base_model()
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inside = model.module
            if len(devices := model.device_ids or ()) > 1:
                _refuse_wrapper(f"{name} over {len(devices)} devices", inside, "module")
        elif hasattr(model, "_orig_mod"):
            _refuse_wrapper(f"{name} of torch.compile", model._orig_mod, "_orig_mod")
        if inside is None:
            return model
        model = inside


def _refuse_wrapper(wrapper: str, inside: Any, attribute: str) -> NoReturn:
    raise UnsupportedBackboneError(
        "model",
        expected="a model whose layers run one by one in this thread",
        got=f"{wrapper} around a {type(inside).__name__}",
        fix=f"Give the {type(inside).__name__} inside, which is its `{attribute}`, and run that",
    )


def host_of(model: nn.Module) -> type[AttentionHooks]:
    """Return the class that captures models of one host.

    Args:
        model: A model.

    Returns:
        A subclass of `AttentionHooks`.

    Raises:
        UnsupportedBackboneError: If the model belongs to no known host.
    """
    for ancestor in type(model).__mro__:
        if (name := _HOSTS.get(ancestor.__module__.partition(".")[0])) is not None:
            return pkgutil.resolve_name(name)
    raise UnsupportedBackboneError(
        "model",
        expected=f"a model of {' or '.join(_HOSTS)}",
        got=type(model).__name__,
        fix="Give the pretrained model itself, without what is wrapped around it",
    )


def _as_own_float32(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_inference():
        # Records may enter an autograd graph later, which inference tensors refuse.
        tensor = torch.inference_mode(False)(torch.clone)(tensor)
    return tensor.float()
