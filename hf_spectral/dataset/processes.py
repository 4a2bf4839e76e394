"""The processes that share a dataset, as `accelerate launch` or `torchrun` started them."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from hf_spectral.errors import HFSpectralError, SpectralError

Result = TypeVar("Result")


class Processes:
    """All processes of a run; one, where nobody started more.

    Args:
        device: Device of this process: accelerate has to be told of a CPU before it looks for other devices.

    Raises:
        SpectralError: If several processes were started, but accelerate was set up in each as if it were alone.
    """

    def __init__(self, device: torch.device) -> None:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.count, self.rank = 1, 0
        if started > 1 or is_distributed or PartialState._shared_state:
            state = _state(device.type == "cpu")
            self.count, self.rank = state.num_processes, state.process_index
        self.is_main = self.rank == 0
        if started > 1 and self.count == 1:
            raise SpectralError(
                "accelerate",
                expected=f"{started} processes that know each other",
                got="a state that knows one",
                fix="On CPUs, begin your script with accelerate.PartialState(cpu=True), before any other use of it",
            )

    def block(self, length: int) -> range:
        """Return this process's contiguous share of a dataset.

        Args:
            length: Images in all.

        Returns:
            Positions; shares differ in size by one at most.
        """
        return range(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def gathered(self, value: Any) -> list[Any]:
        """Gather one value from every process; all processes get all values, in the order of the ranks.

        Args:
            value: Value of this process, which can be pickled.

        Returns:
            One value per process.
        """
        return list(gather_object([value])) if self.count > 1 else [value]

    def in_main(self, function: Callable[[], Result]) -> Result:
        """Call a function in the first process alone, and send its result, or its error, to all processes.

        Args:
            function: The function; its result can be pickled.

        Returns:
            The result, in all processes.
        """
        with self.agreed():
            result: Any = function() if self.is_main else None
        return broadcast_object_list([result])[0] if self.count > 1 else result

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Let an error of one process end the block in all of them, so that none waits for one that has stopped.

        Yields:
            Nothing.

        Raises:
            SpectralError: The first of the others', if this process has none.
            NotConvergedError: This process's own, as well as a SpectralError.
        """
        error: HFSpectralError | None = None
        try:
            yield
        except HFSpectralError as raised:
            error = raised
        errors = [one for one in self.gathered(None if error is None else str(error)) if one is not None]
        if error is not None:
            raise error
        if errors:
            others = SpectralError.from_message(errors[0])
            raise others

    def add_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place.

        Args:
            tensors: The same names and shapes in each.
        """
        if self.count == 1:
            return
        is_gloo = torch.distributed.get_backend() == "gloo"
        device = torch.device("cpu") if is_gloo else PartialState().device
        for name in sorted(tensors):
            tensors[name].copy_(reduce(tensors[name].to(device), "sum"))


def announced_device(device: str | None) -> str | None:
    """Set accelerate up in a process that `torchrun` or `accelerate launch` started, before anything else does.

    Args:
        device: The user's choice, or None.

    Returns:
        The device of this process: the choice, or, in one of several processes, the one that is its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    on_cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    state = _state(on_cpu)
    return "cpu" if on_cpu else str(state.device) if device in (None, state.device.type) else device


def _state(on_cpu: bool) -> PartialState:
    state = PartialState(cpu=on_cpu)
    atexit.unregister(_disconnect)  # Once is enough.
    atexit.register(_disconnect)
    return state


def _disconnect() -> None:
    """Close the connections before the interpreter ends.

    Left open, gloo's threads outlive it, and now and then the process aborts with all its work done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
