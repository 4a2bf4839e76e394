"""What the load test counts."""

from tests.benchmarks.space_load import Call, eta_errors, overtaken


def calls(*times):
    return [Call(number, sent, 0, ended) for number, (sent, ended) in enumerate(times)]


def test_a_call_is_overtaken_by_one_that_came_clearly_later():
    assert overtaken(calls((0, 3), (1, 6), (2, 9))) == 0
    assert overtaken(calls((0, 9), (1, 3), (2, 6))) == 1
    assert overtaken(calls((2, 4), (0, 9), (1, 7))) == 2
    assert overtaken(calls((0, 9), (0.1, 3))) == 0  # They were sent together.


def test_a_promise_is_compared_with_the_answer():
    (one,) = calls((0, 10))
    one.eta, one.seen = 6.0, 1.0
    assert eta_errors([one, *calls((0, 1))]) == [3.0]
