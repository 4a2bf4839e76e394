"""Errors travel and keep their sentence."""

import pickle

from hf_spectral import SpectralError, UnsupportedBackboneError


def test_the_message_has_four_parts():
    error = SpectralError("layers", expected="indices", got=[7], fix="Leave it out")
    assert str(error) == "`layers`: expected indices, got [7]. Leave it out."
    assert isinstance(error, ValueError)


def test_errors_travel_between_processes():
    error = UnsupportedBackboneError("model", expected="a backbone", got="a text model", fix="Choose another")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnsupportedBackboneError
    assert str(copy) == str(error)
