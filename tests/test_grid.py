"""Token grids and the pooling between them."""

import pytest
import torch

from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, area_pooling, finest


@pytest.mark.parametrize(("fine", "coarse"), [(8, 4), (9, 3), (7, 7), (7, 3), (10, 1)])
def test_area_pooling_averages(fine, coarse):
    pooling = area_pooling(fine, coarse)
    torch.testing.assert_close(pooling.sum(1), torch.ones(coarse, dtype=torch.float64))
    torch.testing.assert_close(pooling.sum(0), torch.full((fine,), coarse / fine, dtype=torch.float64))


def test_area_pooling_agrees_with_torch_where_torch_is_exact():
    signal = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.avg_pool1d(signal, 3)[0, 0]
    torch.testing.assert_close(area_pooling(12, 4) @ signal[0, 0], expected)


def test_area_pooling_shares_a_cell_between_neighbors():
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(area_pooling(3, 2), expected)


def test_pooling_upwards_is_refused():
    with pytest.raises(SpectralError, match="`coarse`: expected a length from 1 to 3, got 4"):
        area_pooling(3, 4)


def test_tokens_go_to_the_map_in_raster_order():
    grid = TokenGrid(2, 3, num_prefix=1)
    tokens = torch.arange(7.0)[None, :, None]
    nodes = grid.drop_prefix(tokens)
    assert grid.to_map(nodes[0]).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_a_wrong_number_of_tokens_is_refused():
    with pytest.raises(SpectralError, match=r"1 prefix tokens \+ 2 x 3 patches = 7, got 8 tokens"):
        TokenGrid(2, 3, num_prefix=1).drop_prefix(torch.zeros(1, 8, 2))


@pytest.mark.parametrize("numbers", [(0, 3, 0), (3, 0, 0), (3, 3, -1)])
def test_an_empty_map_is_refused(numbers):
    with pytest.raises(SpectralError, match="`grid`: expected height and width of at least 1"):
        TokenGrid(*numbers)


def test_finest_takes_the_longest_of_each_side():
    assert finest([TokenGrid(4, 6, 1), TokenGrid(8, 3)]) == TokenGrid(8, 6)
