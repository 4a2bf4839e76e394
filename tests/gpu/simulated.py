"""A device that is not there: numbers lie on the CPU, rules and costs are those of an accelerator.

Code that would fail on a GPU fails here, on any machine: operands on two devices, a generator of the CPU that draws on
the device, float64 on MPS. Whatever makes the host wait for the device is counted: `.item()`, `.cpu()`, a result whose
size depends on the data, a copy from the host's pageable memory.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_aten = torch.ops.aten
# Read by the host, or of a size that only the data tell.
WAITS = {
    *(_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.nonzero, _aten.masked_select, _aten.unique_dim),
    *(_aten._unique2, _aten.unique_consecutive, _aten._coalesce, _aten.bincount),
}
# Take operands of two devices.
_COPIES = {_aten.copy_, _aten._to_copy, _aten._copy_from}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class FarTensor(torch.Tensor):
    """A tensor that says it lies on the device; `near` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor, device: torch.device) -> FarTensor:
        kept = (
            {"strides": near.stride(), "storage_offset": near.storage_offset()} if near.layout == torch.strided else {}
        )
        # Torch, built without the device, has no guard for it: to its core the tensor lies on "meta".
        far = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, dtype=near.dtype, layout=near.layout, device="meta", **kept
        )
        far.near, far.place = near, device
        return far

    @property
    def device(self) -> torch.device:
        return self.place

    def __repr__(self) -> str:
        return f"FarTensor({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of SimulatedDevice")


def _near(one: Any) -> Any:
    return one.near if isinstance(one, FarTensor) else one


class SimulatedDevice(TorchDispatchMode):
    """Runs a block as if there were a device of the given type.

    Args:
        kind: `"cuda"`, or `"mps"`, which has no float64.

    Attributes:
        waits: How often the host waited for the device, by what it did.
    """

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.device = torch.device(kind, 0)
        self.waits: collections.Counter[str] = collections.Counter()

    def far(self, tensor: torch.Tensor) -> FarTensor:
        """Return a tensor on the device, without counting the copy."""
        return FarTensor(tensor.detach().clone(), self.device)

    @contextlib.contextmanager
    def here(self) -> Iterator[SimulatedDevice]:
        """Enter the device; torch, built without it, would refuse its name.

        Yields:
            This object.
        """
        with mock.patch.object(torch.cuda, "_lazy_init", return_value=None), self:
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of torch on the numbers, under the rules of the device."""
        kwargs = dict(kwargs or {})
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        is_far = [isinstance(one, FarTensor) for one in given]
        packet = func._overloadpacket
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        lands_far = any(is_far) if wanted is None else torch.device(wanted).type in (self.device.type, "meta")
        self._check(packet, given, is_far, lands_far, kwargs)
        near = {id(one.near): one for one in given if isinstance(one, FarTensor)}
        found = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        if packet in _COPIES and wanted is not None and lands_far != any(is_far):
            self.waits[f"copy to the {'device' if lands_far else 'host'}"] += 1
        if packet is _aten.copy_ and len(set(is_far)) == 2:
            self.waits["copy_ between devices"] += 1
            lands_far = is_far[0]
        if not lands_far:
            return found
        return tree_map(lambda one: self._wrapped(one, near), found)

    def _wrapped(self, one: Any, near: dict[int, FarTensor]) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        if self.device.type == "mps" and one.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return near[id(one)] if id(one) in near else FarTensor(one, self.device)

    def _check(
        self, packet: Any, given: list[Any], is_far: list[bool], lands_far: bool, kwargs: dict[str, Any]
    ) -> None:
        generator = kwargs.get("generator")
        if lands_far and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{packet}: expected a generator of the device, found one of the CPU")
        if not any(is_far):
            return
        if packet in WAITS:
            self.waits[packet._qualified_op_name.removeprefix("aten::")] += 1
        if packet in _INDEXES and any(one.dtype in (torch.bool, torch.uint8) for one in given[1:]):
            self.waits["mask as an index"] += 1
        if packet in _COPIES:
            return
        for one, far in zip(given, is_far, strict=True):
            if not far and one.ndim:
                if packet in _INDEXES and one is not given[0]:
                    self.waits["index of the host"] += 1
                    continue
                raise RuntimeError(f"{packet}: operands on the CPU and on {self.device.type}, {tuple(one.shape)}")
