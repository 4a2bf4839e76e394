"""Restores what a capture changes in a model for a time, whatever line an exception interrupts.

An interrupt may be raised at any line, also between a change and the `finally` that is to undo it, or within that. So
each undoing is registered before the change is made, may run twice, and does run again if it was cut short.

An interrupt may also strike just before a `with` statement calls `__exit__`. A generator's `finally` then runs as the
generator is dropped, at once, unless somebody still holds it: so put these managers into the `with` statement itself,
never into a variable or an `ExitStack`, and wrap managers that are no generators by `entered`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import nn

Entered = TypeVar("Entered")

#: Held while hooks or shared states change: torch hands out hook ids without a lock, so that two threads that register
#: at once could overwrite each other's hook. A thread may take it again, as a finalizer can run while it is held.
lock = threading.RLock()


@dataclasses.dataclass
class _Switch:
    """An attribute that captures have switched, what it was before, and the blocks that still need it."""

    owner: Any
    original: Any
    value: Any
    holders: set[object] = dataclasses.field(default_factory=set)


_switches: dict[tuple[int, str], _Switch] = {}


@contextlib.contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Undo something at the end of the block, also if an interrupt strikes while it is undone.

    Args:
        undo: Called twice. It does no harm where nothing is (or no longer) to be undone.

    Yields:
        Nothing.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


@contextlib.contextmanager
def entered(manager: contextlib.AbstractContextManager[Entered]) -> Iterator[Entered]:
    """Enter a context manager that an interrupt at the end of a `with` statement would leave open, such as a lock.

    Args:
        manager: A context manager that is not a generator.

    Yields:
        What it gives.
    """
    stack = contextlib.ExitStack()
    with undoing(stack.close):
        yield stack.enter_context(manager)


@contextlib.contextmanager
def switched(owners: Iterable[Any], attribute: str, switch: Callable[[Any], Any]) -> Iterator[None]:
    """Switch an attribute of objects that all threads share: the last block to leave restores what the first one met.

    Args:
        owners: The objects, each once.
        attribute: Name of the attribute.
        switch: Returns the value inside the block for the one before it.

    Yields:
        Nothing.
    """
    holder = object()
    with undoing(lambda: _release(holder)):
        with entered(lock):
            for owner in owners:
                key = (id(owner), attribute)
                if key not in _switches:
                    original = getattr(owner, attribute)
                    _switches[key] = _Switch(owner, original, switch(original))
                _switches[key].holders.add(holder)
                setattr(owner, attribute, _switches[key].value)
        yield


def _release(holder: object) -> None:
    with entered(lock):
        for key, switch in list(_switches.items()):
            if switch.holders <= {holder}:
                setattr(switch.owner, key[1], switch.original)
                _switches.pop(key, None)
            switch.holders.discard(holder)


def evaluation_mode(*models: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep dropout, batch normalization and the like from changing what is read, in all threads that use the models.

    Args:
        *models: What is read; the modules around them stay as they are.

    Returns:
        A context manager that restores the training flag of every submodule at its end.
    """
    # Read under the lock: a flag is False, and to be held, while another capture has switched it.
    modules = (
        module
        for model in models
        for module in model.modules()
        if module.training or (id(module), "training") in _switches
    )
    return switched(modules, "training", lambda _: False)
