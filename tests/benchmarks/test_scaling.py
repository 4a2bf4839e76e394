"""The pure parts of the scaling benchmarks: slopes, and operations counted against those that torch counts."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from hf_spectral import BasisAccumulator, SpectralConfig
from hf_spectral.basis.gram import BlockGram
from tests.benchmarks.beyond import (
    BACKBONES,
    Backbone,
    Rates,
    evidence_flop,
    forward_flop,
    gram_bytes,
    gram_flop,
    page,
    ring_bytes,
)
from tests.benchmarks.curves import log_slope, power_chart, slope_row
from tests.benchmarks.scaling import estimate, merged
from tests.synthetic import random_record


@pytest.mark.parametrize("power", [0.0, 1.0, 2.1])
def test_slope_of_a_power_law(power):
    slope, error = log_slope([(x, 3 * x**power) for x in (25, 100, 400, 1600)])
    assert slope == pytest.approx(power, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-6)


def test_error_of_a_slope_needs_three_points():
    assert math.isnan(log_slope([(1, 1), (2, 4)])[1])
    assert log_slope([(1, 1), (2, 5), (4, 16)])[1] > 0
    assert slope_row("one", [(1, 1)])["slope"] == "too few points"
    assert slope_row("one", [(1, 1), (2, 4), (4, 8)])["last step"] == "1.00"


def test_estimate_goes_on_as_the_last_step():
    assert estimate([(1, 1.0), (2, 4.0)], 4) == pytest.approx(16)
    assert estimate([(2, 4.0)], 4) == 0


def test_new_points_replace_old_ones_and_stand_in_order():
    rows = merged([{"a": "x", "n": 4, "s": 1.0}, {"a": "y", "n": 1, "s": 1.0}], {"a": "x", "n": 2, "note": "none"})
    rows = merged(rows, {"a": "y", "n": 1, "s": 2.0})
    assert [(row["a"], row["n"], row["s"]) for row in rows] == [("x", 2, None), ("x", 4, 1.0), ("y", 1, 2.0)]


def test_chart_is_drawn():
    chart = power_chart({"one": {"a": [(1, 1), (10, 100)], "b": [(1, 2), (10, 2)]}, "two": {"a": [(1, 1)]}}, width=400)
    assert chart.width == 400
    assert len(chart.getcolors(1 << 20)) > 10


def test_operations_of_a_forward_pass():
    shape = Backbone("tiny", layers=2, width=32)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14)
    config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Dinov2Model(config)(torch.zeros(1, 3, 56, 56))
    assert counter.get_total_flops() == forward_flop(shape, 56)


@pytest.mark.parametrize("pathway", ["what", "where"])
def test_operations_of_the_second_pass(pathway):
    shape = Backbone("tiny", layers=3, width=10)
    records = [random_record(height=6, width=8, heads=2, dim=5, seed=i, index=i) for i in range(3)]
    room = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))
    room.add_sums(records)
    with FlopCounterMode(display=False) as counter:
        room.add_gram(records)
    ranks = shape.ranks(pathway)
    assert counter.get_total_flops() == gram_flop(ranks, 48) + evidence_flop(ranks, 48)


def test_bytes_of_the_gram_matrix():
    ranks = Backbone("tiny", 3, 4).ranks("where")
    assert gram_bytes(ranks) == sum(block.nbytes for block in BlockGram(ranks).blocks)
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 4) == 150


def test_page_without_measurements_says_what_is_assumed():
    words = page({}, Rates(1e13, 1e13, 1e12, 1e12, 1e10, 1e9, 0.01), 500, 32, from_file=False)
    assert "10.0 ms each (assumed)" in words
    assert "## Measured" not in words
    assert all(f"| {backbone.name}, where |" in words for backbone in BACKBONES)
