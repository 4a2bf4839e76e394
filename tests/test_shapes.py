"""Every shape that a public signature promises is checked: each annotation is broken once, in each way it can be.

The import hook of jaxtyping checks a call before the function runs, and its return value after. Arguments are built
from the annotations themselves and the body of the function is replaced, so that a new annotation is tested without a
line added here.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jaxtyping
import numpy as np
import pytest
import torch

import hf_spectral

ROOT = Path(hf_spectral.__file__).parent
RETURN = "return"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A public function, or the constructor of a class, with what its annotations say."""

    name: str
    called: Callable[..., Any]
    hints: dict[str, Any]

    @property
    def shaped(self) -> list[str]:
        """Names of what has a shape, the returned value among them."""
        return [name for name, hint in self.hints.items() if arrays(hint)]


def arrays(hint: Any) -> list[Any]:
    """Return the jaxtyping annotations in a hint."""
    if inspect.isclass(hint) and hasattr(hint, "dim_str"):
        return [hint]
    return [array for part in typing.get_args(hint) for array in arrays(part)]


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union that have a shape."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [part for part in (typing.get_args(hint) if is_union else [hint]) if arrays(part)]


def hooked_packages(config: pytest.Config) -> list[str]:
    return config.getoption("jaxtyping_packages").split(",")[:-1]


def source_modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield name and source of every module that imports jaxtyping."""
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "from jaxtyping import" in text:
            parts = path.relative_to(ROOT.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(text)


def annotations_in(node: ast.AST) -> list[ast.Subscript]:
    """Return what reads `Float[...]` or the like in a piece of source."""
    return [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Subscript)
        and isinstance(part.value, ast.Name)
        and hasattr(getattr(jaxtyping, part.value.id, None), "dtypes")
        and isinstance(part.slice, ast.Tuple)
    ]


def signatures() -> Iterator[Signature]:
    """Yield the public functions, methods and constructors of the package that have shapes."""
    # All modules of a package: an alias such as `operators.Vectors` serves modules that do not import jaxtyping.
    packages = {name.split(".")[1] for name, _ in source_modules()}
    for _, name, _ in pkgutil.walk_packages(hf_spectral.__path__, "hf_spectral."):
        if name.split(".")[1] not in packages:
            continue
        module = importlib.import_module(name)
        for label, member in _public(vars(module)):
            if getattr(member, "__module__", None) != name:
                continue
            if inspect.isclass(member):
                for inner, method in _public(vars(member)):
                    yield from _signature(f"{name}:{label}.{inner}", method)
            else:
                yield from _signature(f"{name}:{label}", member)


def _public(members: typing.Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in members.items() if not name.startswith("_") or name == "__init__"]


def _signature(name: str, member: Any) -> Iterator[Signature]:
    for attribute in ("__func__", "fget", "func"):  # Of a class method or static method, a property, a cached one.
        member = getattr(member, attribute, member)
    if not inspect.isfunction(member):
        return
    try:
        hints = typing.get_type_hints(inspect.unwrap(member))
    except NameError:  # `test_every_annotation_in_the_source_is_covered` names it.
        return
    signature = Signature(name, member, hints)
    if signature.shaped:
        yield signature


SIGNATURES = {signature.name: signature for signature in signatures()}
PLACES = [(name, place) for name, signature in SIGNATURES.items() for place in signature.shaped]

Spoil = Callable[[tuple[int, ...], Any], tuple[tuple[int, ...], Any]]


class Builder:
    """Builds values that fit annotations; one name of an axis has one size. The first array may be spoiled."""

    def __init__(self, spoil: Spoil | None = None) -> None:
        self._spoil = spoil

    def array(self, hint: Any) -> Any:
        shape = tuple(int(axis) if axis.isdigit() else 2 + len(axis) for axis in fixed_axes(hint))
        dtype = good_dtype(hint)
        if self._spoil is not None:
            shape, dtype = self._spoil(shape, dtype)
            self._spoil = None
        values = torch.ones(shape, dtype=dtype)
        return values.numpy() if hint.array_type is np.ndarray else values

    def value(self, hint: Any) -> Any:
        """Return a value that fits a hint; a class is stood in for by a mock."""
        plain = {
            Any: None,
            type(None): None,
            bool: True,
            int: 1,
            float: 1.0,
            str: "text",
            np.dtype[Any]: np.dtype(np.uint8),
            inspect.Parameter.empty: None,
        }
        if arrays(hint) == [hint]:
            return self.array(hint)
        if hint in plain:
            return plain[hint]
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self.value((alternatives(hint) or parts)[0])
        if origin is typing.Literal:
            return parts[0]
        if origin is tuple:
            return tuple(self.value(part) for part in parts if part is not Ellipsis)
        if origin is collections.abc.Iterator:
            return iter(())
        if origin is collections.abc.Callable:
            return lambda *_: None
        if origin in (dict, collections.abc.Mapping):
            return {self.value(parts[0]): self.value(parts[1])}
        if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
            return [self.value(parts[0])]
        assert inspect.isclass(hint), f"no value is known for {hint}"
        return next(iter(hint)) if issubclass(hint, enum.Enum) else mock.Mock(spec=hint)


def fixed_axes(hint: Any) -> list[str]:
    """Return the axes that a value must have: all but those that stand for any number of them."""
    return [axis for axis in hint.dim_str.split() if axis != "..." and not axis.startswith("*")]


def good_dtype(hint: Any) -> torch.dtype:
    kinds = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    return next(dtype for name, dtype in kinds.items() if name in hint.dtypes)


def spoilers(signature: Signature, place: str, hint: Any) -> dict[str, Spoil]:
    """Return the ways in which the first array of a hint can contradict the signature."""
    first, *others = arrays(hint)
    ways: dict[str, Spoil] = {
        "dtype": lambda shape, dtype: (shape, torch.float32 if dtype != torch.float32 else torch.int64)
    }
    axes = fixed_axes(first)
    if axes:
        ways["number of axes"] = lambda shape, dtype: (shape[1:], dtype)
    elsewhere = others if typing.get_origin(hint) is tuple else []
    for name in signature.shaped:
        if name != place and (place == RETURN or name != RETURN):
            elsewhere = elsewhere + arrays(alternatives(signature.hints[name])[0])
    shared = {axis for array in elsewhere for axis in fixed_axes(array)}
    for position, axis in enumerate(axes):
        is_free = axis.startswith("_") or not (axis.isdigit() or axis in shared or axes.count(axis) > 1)
        if not is_free:
            ways[f"size of {axis}"] = functools.partial(_longer, position)
    return ways


def _longer(position: int, shape: tuple[int, ...], dtype: Any) -> tuple[tuple[int, ...], Any]:
    return (*shape[:position], shape[position] + 1, *shape[position + 1 :]), dtype


def call(signature: Signature, place: str | None = None, hint: Any = None, spoil: Spoil | None = None) -> None:
    """Call a function without its body, every argument as annotated but the one at a place."""
    values = {
        name: Builder(spoil).value(hint) if name == place else Builder().value(signature.hints.get(name, Any))
        for name in [*inspect.signature(signature.called).parameters, RETURN]
    }
    returned = values.pop(RETURN)
    body = inspect.unwrap(signature.called)
    stub = (lambda *_args, **_kwargs: "returned").__code__
    constants = tuple(returned if constant == "returned" else constant for constant in stub.co_consts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "__code__", stub.replace(co_consts=constants, co_freevars=body.__code__.co_freevars))
        signature.called(**values)


def refusal(signature: Signature, place: str, hint: Any, spoil: Spoil) -> str | None:
    """Return the message of the check that a spoiled value meets, or None if it passes."""
    try:
        call(signature, place, hint, spoil)
    except jaxtyping.TypeCheckError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_as_annotated_are_taken(name):
    call(SIGNATURES[name])


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_an_argument_unlike_its_annotation_is_refused(name, place):
    signature = SIGNATURES[name]
    for hint in alternatives(signature.hints[place]):
        for way, spoil in spoilers(signature, place, hint).items():
            message = refusal(signature, place, hint, spoil)
            assert message is not None, f"{place} of a wrong {way} was taken"
            named = re.search(r"checking parameter '(\w+)'", message)
            if not way.startswith("size"):  # Of two sizes that contradict each other, either may be named.
                assert (named[1] if named else RETURN) == place, way


def test_every_annotation_in_the_source_is_covered():
    """An annotation whose names cannot be resolved is passed over in silence by the hook."""
    written = set()
    for module, tree in source_modules():
        scopes = [(node, [node]) for node in tree.body if isinstance(node, ast.FunctionDef)]
        scopes += [(cls, cls.body) for cls in tree.body if isinstance(cls, ast.ClassDef)]
        for scope, body in scopes:
            for node in body:
                owner = "" if scope is node else f"{scope.name}."
                if isinstance(node, ast.AnnAssign) and annotations_in(node.annotation):
                    written.add((f"{module}:{owner}__init__", node.target.id))
                elif isinstance(node, ast.FunctionDef):
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    shapes = {one.arg: one.annotation for one in arguments} | {RETURN: node.returns}
                    written |= {
                        (f"{module}:{owner}{node.name}", name)
                        for name, shape in shapes.items()
                        if shape is not None and annotations_in(shape)
                    }
    private = re.compile(r"[.:]_(?!_init__)")
    public = {place for place in written if not private.search(place[0])}
    assert len(public) > 100
    assert public - set(PLACES) == set()


@pytest.mark.parametrize(("module", "tree"), source_modules(), ids=lambda value: value if type(value) is str else "")
def test_axes_are_written_as_a_string(module, tree):
    for annotation in annotations_in(tree):
        axes = annotation.slice.elts[1]
        assert isinstance(axes, ast.Constant), f"{module}:{annotation.lineno}: {ast.unparse(annotation)}"
        assert isinstance(axes.value, str), f"{module}:{annotation.lineno}: {ast.unparse(annotation)}"


def test_every_module_with_shapes_is_checked_by_the_suite(pytestconfig):
    hooked = hooked_packages(pytestconfig)
    modules = {module for module, _ in source_modules()} | {name.partition(":")[0] for name in SIGNATURES}
    assert {name for name in modules if not any(f"{name}.".startswith(f"{one}.") for one in hooked)} == set()
