"""A token's row of the affinities, against the matrices it is a row of."""

import pytest
import torch

from hf_spectral import AttentionRecord, SpectralConfig, SpectralError, TokenGrid, build_problem, token_affinity


def record(index, grid=(4, 6), heads=2, windowed=False, images=1):
    generator = torch.Generator().manual_seed(index)
    query, key, value = (torch.randn(images, heads, grid[0] * grid[1], 5, generator=generator) for _ in range(3))
    return AttentionRecord(f"layer.{index}", index, query, key, value, 0.4, TokenGrid(*grid), windowed=windowed)


@pytest.mark.parametrize("pathway", ["where", "what"])
@pytest.mark.parametrize("heads", ["merged", "separate"])
@pytest.mark.parametrize("grids", [[(4, 6)] * 3, [(8, 6), (4, 6), (4, 3)]])
@pytest.mark.parametrize(
    ("layer_weights", "used"), [("equal", (0, 1, 2)), ("auto", (0, 1, 2)), ([1, 0, 5], (0, 2)), ({0: 2, 1: 1}, (0, 1))]
)
def test_joint_is_the_row_of_the_joint_problem(pathway, heads, grids, layer_weights, used):
    affinity = "cosine" if pathway == "what" and heads == "separate" else None
    config = SpectralConfig(pathway, affinity, heads, layer_weights=layer_weights)
    records = [record(index, grid) for index, grid in enumerate(grids)]
    found = token_affinity(records, (0.6, 0.4), config)
    height, width = grids[0]
    assert found.token == (int(0.6 * height), int(0.4 * width))
    row = build_problem(records, config).affinity.to_dense()[found.token[0] * width + found.token[1]]
    torch.testing.assert_close(found.joint.flatten(), row, atol=1e-6, rtol=1e-4)
    assert {index: tuple(one.shape) for index, one in found.layers.items()} == {index: grids[index] for index in used}


def test_a_layer_is_its_own_normalized_attention():
    one = record(0)
    weights = torch.softmax(0.4 * one.query[0] @ one.key[0].transpose(1, 2), dim=-1).mean(0)
    weights = (weights + weights.T) / 2
    degree = weights.sum(1)
    expected = weights / (degree[:, None] * degree[None]).sqrt()
    found = token_affinity([one], (0.0, 1.0), SpectralConfig("where"))
    assert found.token == (0, 5)
    torch.testing.assert_close(found.layers[0].flatten(), expected[5])


def test_layers_are_selected_and_those_that_cannot_serve_are_named():
    records = [record(0), record(1, windowed=True), record(2)]
    found = token_affinity(records, (0, 0), SpectralConfig("where", layers=(-2, -1)))
    assert list(found.layers) == [2]
    assert found.skipped[0].name == "layer.1"
    assert "windows" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("records", "position", "message"),
    [
        ([record(0)], (1.1, 0), "`position`: expected two numbers from 0 to 1"),
        ([record(0)], (float("nan"), 0), "`position`"),
        ([record(0, windowed=True)], (0, 0), "at least one layer that can serve it, got 'where'"),
        ([record(0, images=2)], (0, 0), "`records`: expected layers of one image, got 2 images"),
        ([], (0, 0), "no layer was given"),
    ],
)
def test_mistakes_are_told(records, position, message):
    with pytest.raises(SpectralError, match=message):
        token_affinity(records, position, SpectralConfig("where"))
