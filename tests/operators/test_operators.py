"""One contract suite over every operator, against an independent float64 matrix."""

import numpy as np
import pytest
import torch

from hf_spectral import operators
from hf_spectral.grid import area_pooling
from hf_spectral.operators import nearest_neighbors, neighbor_graph

NODES = 30


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unit(*shape, seed=0):
    return torch.nn.functional.normalize(_random(*shape, seed=seed), dim=-1)


def _symmetric(seed=0):
    matrix = _random(NODES, NODES, seed=seed)
    return matrix + matrix.T


def _positive():
    return _symmetric().abs()


def _normalized(matrix):
    root = matrix.sum(1).rsqrt()
    return root[:, None] * matrix * root


def _attention():
    query, key = _random(3, NODES, 4, seed=1), _random(3, NODES, 4, seed=2)
    mean = torch.stack([(0.5 * q @ k.T).softmax(1) for q, k in zip(query, key, strict=True)]).mean(0)
    return operators.AttentionOperator(query.float(), key.float(), 0.5), (mean + mean.T) / 2


def _exponential_of_pairs():
    left, right = _unit(NODES, 4, seed=1), _unit(NODES, 4, seed=2)
    cosine = (left @ right.T + right @ left.T) / 2
    return operators.ExponentialOperator(left.float(), right.float(), 0.3), ((cosine - 1) / 0.3).exp()


def _exponential():
    value = _unit(NODES, 4)
    return operators.ExponentialOperator(value.float(), None, 0.3), ((value @ value.T - 1) / 0.3).exp()


def _gram():
    factor, signs = _random(NODES, 5), torch.tensor([1.0, -1, 1, 1, -1], dtype=torch.float64)
    return operators.GramOperator(factor.float(), signs.float()), factor @ signs.diag() @ factor.T


def _scaled_gram():
    factor, diagonal = _random(NODES, 5), _random(NODES, seed=1)
    expected = diagonal.diag() @ factor @ factor.T @ diagonal.diag()
    return operators.GramOperator(factor.float()).scaled(diagonal.float()), expected


def _sparse():
    matrix = _symmetric() * (_symmetric(seed=3) > 1)
    return operators.SparseOperator(matrix.float().to_sparse().coalesce()), matrix


def _resampled():
    coarse = _symmetric()[:6, :6]
    rows, columns = area_pooling(5, 2), area_pooling(6, 3)
    pooling = torch.kron(rows, columns)
    operator = operators.ResampledOperator(operators.DenseOperator(coarse.float()), rows.float(), columns.float())
    return operator, pooling.T @ coarse @ pooling


CASES = {
    "dense": lambda: (operators.DenseOperator(_symmetric().float()), _symmetric()),
    "identity": lambda: (
        operators.IdentityOperator(NODES, torch.device("cpu")),
        torch.eye(NODES, dtype=torch.float64),
    ),
    "sparse": _sparse,
    "gram": _gram,
    "scaled_gram": _scaled_gram,
    "attention": _attention,
    "exponential": _exponential,
    "exponential_of_pairs": _exponential_of_pairs,
    "sum": lambda: (
        operators.DenseOperator(_symmetric().float()) + 0.5 * operators.DenseOperator(_positive().float()),
        _symmetric() + 0.5 * _positive(),
    ),
    "normalized": lambda: (
        operators.NormalizedOperator(operators.DenseOperator(_positive().float())),
        _normalized(_positive()),
    ),
    "resampled": _resampled,
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    return CASES[request.param]()


def test_to_dense_is_the_matrix(case):
    operator, expected = case
    torch.testing.assert_close(operator.to_dense().double(), expected, atol=1e-5, rtol=1e-5)


def test_matmul_agrees_with_the_matrix(case):
    operator, expected = case
    vectors = _random(operator.num_nodes, 3, seed=9)
    torch.testing.assert_close(operator.matmul(vectors.float()).double(), expected @ vectors, atol=1e-4, rtol=1e-4)


def test_degree_is_the_row_sum(case):
    operator, expected = case
    torch.testing.assert_close(operator.degree().double(), expected.sum(1), atol=1e-4, rtol=1e-4)


def test_weights_distribute(case):
    operator, expected = case
    twice = operator * 2.0 + operator
    torch.testing.assert_close(twice.to_dense().double(), 3 * expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case_name", ["attention", "exponential", "exponential_of_pairs"])
@pytest.mark.parametrize("rows", [1, 7, 128])
def test_kernels_do_not_depend_on_the_block_size(monkeypatch, case_name, rows):
    monkeypatch.setattr(operators, "_CPU_ROWS", rows)
    operator, expected = CASES[case_name]()
    vectors = _random(NODES, 2, seed=9)
    torch.testing.assert_close(operator.matmul(vectors.float()).double(), expected @ vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(operator.to_dense().double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_nodes", "num_parts", "rows"), [(4096, 8, 128), (65536, 6, 64), (131072, 2, 32)])
def test_blocks_stay_in_the_cache_and_cover_every_row_once(num_nodes, num_parts, rows):
    features = torch.zeros(num_parts, num_nodes, 1)
    blocks = list(operators.AttentionOperator(features, features, 1.0).blocks())
    assert blocks[0] == slice(0, rows)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(num_nodes))


def test_a_node_without_neighbors_stays_finite():
    affinity = torch.ones(4, 4)
    affinity[2], affinity[:, 2] = 0, 0
    normalized = operators.NormalizedOperator(operators.DenseOperator(affinity)).to_dense()
    assert torch.equal(normalized[2], torch.zeros(4))
    assert normalized[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_symmetrize_in_place(block):
    matrix = _random(11, 11)
    expected = (matrix + matrix.T) / 2
    result = operators.symmetrize_(matrix, block=block)
    assert result.data_ptr() == matrix.data_ptr()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("block_size", [3, 1000])
@pytest.mark.parametrize("images", [None, [0] * 11 + [1] * 9])
def test_nearest_neighbors_are_those_of_the_sorted_cosines(two_sided, block_size, images):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.nn.functional.normalize(torch.randn(20, 6, generator=generator), dim=1) for _ in range(2))
    cosines = ((left @ right.T + right @ left.T) / 2 if two_sided else left @ left.T).double().numpy()
    expected = set()
    for token in range(20):
        others = [other for other in np.argsort(-cosines[token]) if other != token and cosines[token, other] > 0.1]
        own = [other for other in others if images is None or images[other] == images[token]]
        between = [other for other in others if images is not None and images[other] != images[token]]
        expected |= {(token, other) for other in own[:4] + between[:2]}
    owner = None if images is None else torch.tensor(images)
    rows, columns, found = nearest_neighbors(
        left,
        right if two_sided else None,
        4,
        0.1,
        images=owner,
        num_between=2,
        block_size=block_size,
    )
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert len(rows) == len(expected)
    np.testing.assert_allclose(found, cosines[rows, columns], atol=1e-6)


def test_a_neighbor_graph_is_the_mean_of_both_directions():
    edges = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]), torch.tensor([0.5, 0.5, 0.3])
    graph = neighbor_graph(edges, 4).to_dense()
    np.testing.assert_allclose(graph, [[0, 0.5, 0.15, 0], [0.5, 0, 0, 0], [0.15, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_few_tokens_have_at_most_each_other_as_neighbors(nodes):
    rows, columns, _ = nearest_neighbors(torch.ones(nodes, 1), None, 20, 0.1)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)][: 2 * (nodes - 1)]
