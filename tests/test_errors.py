"""Errors travel and keep their sentence."""

import copy
import dataclasses
import pickle

import pytest

from hf_spectral import HFSpectralError, NotConvergedError, SpectralConfig, SpectralError, UnsupportedBackboneError


def test_the_message_has_four_parts():
    error = SpectralError("layers", expected="indices", got=[7], fix="Leave it out")
    assert str(error) == "`layers`: expected indices, got [7]. Leave it out."
    assert isinstance(error, ValueError)
    assert (error.argument, error.expected, error.got, error.fix) == ("layers", "indices", [7], "Leave it out")


def test_every_error_of_the_package_has_one_base():
    assert issubclass(SpectralError, HFSpectralError)
    assert issubclass(NotConvergedError, HFSpectralError)


def test_errors_travel_between_processes():
    error = UnsupportedBackboneError("model", expected="a backbone", got="a text model", fix="Choose another")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnsupportedBackboneError
    assert str(copy) == str(error)
    assert (copy.argument, copy.got) == ("model", "a text model")
    rebuilt = SpectralError.from_message(str(error))
    assert str(rebuilt) == str(error)
    assert rebuilt.argument is None


def test_an_unknown_argument_of_the_config_is_named():
    with pytest.raises(
        SpectralError, match="`temperature`: expected one of the arguments affinity, heads, layer_weights"
    ):
        SpectralConfig("what", "cosine", temperature=0.1)
    config = SpectralConfig("what", num_eigenvectors=3)
    assert dataclasses.replace(config, seed=2) == copy.deepcopy(SpectralConfig("what", num_eigenvectors=3, seed=2))
    assert pickle.loads(pickle.dumps(config)) == config
