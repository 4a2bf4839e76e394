"""What every host needs to follow a forward pass: hooks of one thread, and the attention layer that runs now."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from hf_spectral.capture.base import Recorder
from hf_spectral.errors import STRUCTURE_ERRORS, HFSpectralError, SpectralError, refuse_backbone
from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.restoring import entered, evaluation_mode, lock, undoing

_captured = threading.local()


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """An attention module of a vision tower or a denoiser.

    Args:
        name: Its name in the model that the user gave, for records.
        path: Its name in the tower or the denoiser.
        module: The module.
        projections: Names of its projections: a triple, one fused, or none.
        through_interface: True if it calls the attention interface of transformers.
    """

    name: str
    path: str
    module: Any
    projections: tuple[str, ...]
    through_interface: bool = False


@dataclasses.dataclass
class Call:
    """One run of an attention layer, and what was seen of it so far.

    Args:
        layer: The layer.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        attended: What it attends with, as seen so far: most layers attend once, some to other parts of the tokens or to
            image prompts next.
        projected: Outputs of its children, by name.
        given: First inputs of its children, by name.
    """

    layer: AttentionLayer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attended: list[AttentionCall] = dataclasses.field(default_factory=list)
    projected: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    given: dict[str, Any] = dataclasses.field(default_factory=dict)


class AttentionHooks(abc.ABC):
    """Follows the forward passes of one thread through a model; each host's leaf reads the layers of its models.

    Args:
        model: A model that `check_supported` accepts.
        recorder: Receives what the leaf reads.
    """

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.model, self.layers = self.attention(model)
        self.recorder = recorder
        self.inputs: dict[str, Any] = {}
        self._thread = threading.get_ident()
        self._calls: list[Call] = []

    @staticmethod
    @abc.abstractmethod
    def check_supported(model: nn.Module) -> None:
        """Refuse a model that cannot be captured.

        Args:
            model: The model to check; it is not run.

        Raises:
            UnsupportedBackboneError: If no layer of it can be recorded, with the reason.
        """

    @staticmethod
    @abc.abstractmethod
    def attention(model: nn.Module) -> tuple[Any, list[AttentionLayer]]:
        """Return what is run and its attention layers.

        Args:
            model: A model that `check_supported` accepts.

        Returns:
            A vision tower or a denoiser, and its layers in the order of definition.
        """

    @abc.abstractmethod
    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Return a context inside which this thread's attention calls are shown to `see_attention`."""

    @abc.abstractmethod
    def begin(self) -> float | None:
        """Read from `inputs` what holds for a whole forward pass, when one starts.

        Returns:
            The timestep, or None if the model is told none.
        """

    @abc.abstractmethod
    def children(self, layer: AttentionLayer) -> Iterable[str]:
        """Return the names of a layer's submodules whose outputs are to be noted."""

    @abc.abstractmethod
    def further_hooks(self) -> Iterable[Callable[[], Any]]:
        """Return functions that install further hooks, wrapped in `mine`, and return their handles."""

    @abc.abstractmethod
    def read(self, call: Call) -> dict[str, Any]:
        """Bring one wanted layer into the form of a record.

        Args:
            call: What was seen of it.

        Returns:
            Arguments of `Recorder.add`.

        Raises:
            LayerSkipped: If no record can hold it, with the reason.
        """

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Hand every attention layer that this thread runs inside the block to the recorder, in evaluation mode.

        Yields:
            Nothing.

        Raises:
            SpectralError: If this thread captures the model already, or it has no such layers as are wanted.
        """
        models: list[nn.Module] = getattr(_captured, "models", [])
        if any(self.model is other for other in models):
            raise SpectralError(
                "model",
                expected="a model that this thread does not capture already",
                got=f"{type(self.model).__name__} inside another capture_attention of it",
                fix="Use the records of the outer block, or leave it first",
            )
        self.recorder.expect(len(self.layers))
        handles: list[Any] = []
        with (
            undoing(functools.partial(setattr, _captured, "models", models)),
            undoing(lambda: [handle.remove() for handle in handles]),
            evaluation_mode(self.model),
        ):
            _captured.models = [*models, self.model]
            with entered(lock):
                for install in self._hooks():
                    handles.append(install())
            with self.watching():
                yield

    def see_attention(self, attention: AttentionCall, module: nn.Module | None = None) -> None:
        """Note an attention of the layer that runs.

        Args:
            attention: What is attended with.
            module: The module that attends, where it is known: then no other layer's attention is noted.
        """
        if self._calls and module in (None, self._calls[-1].layer.module):
            self._calls[-1].attended.append(attention)

    def mine(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Return a hook that does nothing in other threads: hooks fire in every thread that runs the model.

        Args:
            hook: Of any signature.

        Returns:
            The hook to register.
        """

        def _called(*arguments: Any) -> None:
            # Another thread may meet a hook before its registration is complete, and then passes fewer arguments.
            if threading.get_ident() == self._thread:
                hook(*arguments)

        return _called

    def _hooks(self) -> Iterator[Callable[[], Any]]:
        start_forward = self.mine(self._start_forward)
        yield functools.partial(self.model.register_forward_pre_hook, start_forward, with_kwargs=True)
        yield functools.partial(self.model.register_forward_hook, self.mine(self._end_forward))
        yield from self.further_hooks()
        for layer in self.layers:
            start, end = (self.mine(functools.partial(hook, layer)) for hook in (self._start_layer, self._end_layer))
            yield functools.partial(layer.module.register_forward_pre_hook, start, with_kwargs=True)
            yield functools.partial(layer.module.register_forward_hook, end, always_call=True)
            for name in self.children(layer):
                see = self.mine(functools.partial(self._see_child, layer, name))
                yield functools.partial(layer.module.get_submodule(name).register_forward_hook, see)

    def _start_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.clear()
        self.inputs = {}
        # If the arguments are wrong, the forward itself raises the error that says more.
        with contextlib.suppress(TypeError):
            self.inputs = dict(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
        self.recorder.start_forward(self.begin())

    def _end_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.inputs = {}
        self.recorder.end_forward()

    def _start_layer(
        self, layer: AttentionLayer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._calls.append(Call(layer, args, kwargs))

    def _end_layer(self, layer: AttentionLayer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._calls or self._calls[-1].layer is not layer:
            return
        call = self._calls.pop()
        # torch calls this hook after an exception too, without an output.
        if output is None or (index := self.recorder.next_layer()) is None:
            return
        try:
            found = self.read(call)
        except LayerSkipped as reason:
            self.recorder.skip(layer.name, str(reason), index)
            return
        except HFSpectralError:
            raise
        except STRUCTURE_ERRORS as error:
            said = f"{layer.name}: its attention cannot be read: {type(error).__name__}: {error}"
            refuse_backbone(type(self.model).__name__, said, cause=error)
        self.recorder.add(layer.name, index, **found)

    def _see_child(
        self, layer: AttentionLayer, name: str, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        if self._calls and self._calls[-1].layer is layer:
            self._calls[-1].projected[name] = output
            self._calls[-1].given[name] = args[0] if args else None


def compiled(model: nn.Module) -> str | None:
    """Return why a model that was compiled in place cannot be captured: its graph sees no hooks that come later.

    Args:
        model: A model.

    Returns:
        A reason if `Module.compile()` was called on it or a part of it, else None; torch has no public sign of that.
    """
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return "compiled in place by model.compile(); load it again and capture it uncompiled"
    return None
