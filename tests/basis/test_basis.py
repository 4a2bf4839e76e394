"""Dataset-level bases against the dense joint matrix of all images, written out plainly in float64."""

import dataclasses
import itertools
import json
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from hf_spectral.affinities import NearestNeighbors
from hf_spectral.basis import BasisAccumulator, SpectralBasis, walk
from hf_spectral.basis import eigen as eigen_room
from hf_spectral.clusters import unit_rows
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.problem import build_problem
from hf_spectral.segmentation import find_clusters
from tests.dense import cosine_affinity, dense_joint, rows_of
from tests.synthetic import EQUAL, dataset, fitted, planted_record, random_record, three_blobs

ASPECTS = [[shape] * 3 for shape in [(6, 8), (8, 6), (5, 9), (7, 7)] * 3]
RESOLUTIONS = [
    [(6, 8), (3, 4), (6, 8)],
    [(8, 6), (4, 3), (8, 6)],
    [(5, 7), (3, 4), (5, 7)],
    [(9, 6), (5, 3), (9, 6)],
] * 3
DATASETS = {"equal": EQUAL, "aspects": ASPECTS, "resolutions": RESOLUTIONS}
PATHWAYS = ["where", "what"]


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("shapes", DATASETS.values(), ids=DATASETS)
@pytest.mark.parametrize("dense_below", [0, 600], ids=["krylov", "dense"])
def test_the_streamed_basis_is_the_dense_eigendecomposition(pathway, shapes, dense_below, monkeypatch):
    monkeypatch.setattr(eigen_room, "_DENSE_BELOW", dense_below)
    images = dataset(shapes)
    values, vectors = scipy.linalg.eigh(*dense_joint(images, pathway))
    values, vectors = values[::-1][:4], vectors[:, ::-1][:, :4]

    basis = fitted(images, pathway).solve(4)

    np.testing.assert_allclose(1 - basis.eigenvalues.numpy(), values, atol=1e-5)
    found = rows_of(basis, images)
    assert scipy.linalg.subspace_angles(found, vectors).max() < 1e-3
    np.testing.assert_allclose(np.abs((found * (dense_joint(images, pathway)[1] @ vectors)).sum(0)), 1, atol=1e-4)
    assert basis.residuals.max() < 1e-5
    assert (found[:, 0] > 0).all()
    assert (basis.num_images, basis.num_nodes) == (12, len(vectors))


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("shapes", [ASPECTS, RESOLUTIONS], ids=["aspects", "resolutions"])
def test_shards_merge_in_any_order(pathway, shapes):
    images = dataset(shapes)
    whole = fitted(images, pathway).solve(4)
    config = SpectralConfig(pathway, "cosine")
    for order in itertools.permutations(range(3)):
        shards = [BasisAccumulator(config) for _ in range(3)]
        for i, shard in enumerate(shards):
            for records in images[i::3]:
                shard.add_sums(records)
        merged = BasisAccumulator(config)
        for i in order:
            merged.merge(shards[i])
        merged.merge(BasisAccumulator(config))  # A process that got no image.
        for i, shard in enumerate(shards):
            shard.load_state_dict(merged.state_dict())
            for records in images[i::3]:
                shard.add_gram(records)
        merged.finish_sums()
        for i in order:
            merged.merge(shards[i])
        basis = merged.solve(4)
        torch.testing.assert_close(basis.eigenvalues, whole.eigenvalues, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.cat(basis.projections), torch.cat(whole.projections), atol=1e-5, rtol=1e-4)
        assert basis.num_images == 12


def test_shards_that_do_not_belong_together_are_refused():
    images = dataset(EQUAL[:4])
    finished = fitted(images)
    first = BasisAccumulator(SpectralConfig("what", "cosine"))
    first.add_sums(images[0])
    with pytest.raises(SpectralError, match="got one shard in each pass"):
        finished.merge(first)
    with pytest.raises(SpectralError, match="got sums of its own"):
        finished.merge(fitted(images[:2]))
    with pytest.raises(SpectralError, match="expected pathway='what', got pathway='where'"):
        finished.merge(fitted(images, "where"))


@pytest.mark.parametrize("stop", [5, 12, 17, 24])
def test_a_state_saved_midway_continues_to_the_same_basis(stop):
    images = dataset(RESOLUTIONS)
    whole = fitted(images).solve(4)
    steps = [("add_sums", records) for records in images] + [("add_gram", records) for records in images]
    first = BasisAccumulator(SpectralConfig("what", "cosine"))
    for verb, records in steps[:stop]:
        getattr(first, verb)(records)
    state = first.state_dict()
    tensors = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    description = json.loads(json.dumps(state["description"]))
    second = BasisAccumulator(SpectralConfig("what", "cosine"))
    second.load_state_dict({"tensors": tensors, "description": description})
    for verb, records in steps[stop:]:
        getattr(second, verb)(records)
    basis = second.solve(4)
    assert all(torch.equal(one, two) for one, two in zip(basis.projections, whole.projections, strict=True))


def test_a_state_of_other_settings_is_refused_with_the_difference():
    state = fitted(dataset(EQUAL[:3]), max_width=20).state_dict()
    with pytest.raises(SpectralError, match="`state`: expected max_width=None, got max_width=20"):
        BasisAccumulator(SpectralConfig("what", "cosine")).load_state_dict(state)
    del state["tensors"]["sum.1"]
    with pytest.raises(SpectralError, match=r"expected a tensor 'sum.1' of shape \(\d+,\).*got none"):
        BasisAccumulator(SpectralConfig("what", "cosine"), 20).load_state_dict(state)


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_an_unseen_image_gets_the_nystrom_extension(pathway):
    images = dataset(ASPECTS)
    seen, new = images[:-1], images[-1]
    basis = fitted(seen, pathway).solve(4)
    rows, expected = rows_of(basis, seen), 0
    for layer in range(3):
        full = np.block([[cosine_affinity(one[layer], two[layer], pathway) for two in seen] for one in seen])
        across = np.concatenate([cosine_affinity(new[layer], one[layer], pathway) for one in seen], axis=1)
        expected = expected + across / np.sqrt(np.outer(across.sum(1), full.sum(1))) @ rows / 3
    expected /= 1 - basis.eigenvalues.numpy()
    np.testing.assert_allclose(rows_of(basis, [new]), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_a_batch_equals_its_images_and_layers_may_arrive_one_by_one(pathway):
    images = dataset(EQUAL[:4])
    one_by_one = fitted(images, pathway)
    batch = [_stacked([records[layer] for records in images]) for layer in range(3)]
    streamed = BasisAccumulator(SpectralConfig(pathway, "cosine"))
    for adding in (streamed.adding_sums, streamed.adding_gram):
        with adding() as add:
            for record in batch:
                add(record)
    for name, tensor in one_by_one.state_dict()["tensors"].items():
        torch.testing.assert_close(streamed.state_dict()["tensors"][name], tensor, rtol=1e-6, atol=1e-9)
    basis = streamed.solve(3)
    projector = basis.projector(0.5)
    for record in reversed(batch):
        projector.add(record)
    for result, records in zip(projector.results(), images, strict=True):
        torch.testing.assert_close(result.eigenvectors, basis.project(records, 0.5).eigenvectors)


def _stacked(records):
    joined = {name: torch.cat([getattr(one, name) for one in records]) for name in ("query", "key", "value")}
    return dataclasses.replace(records[0], **joined)


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("walk", [0.0, 0.9])
def test_planted_clusters_carry_the_same_identity_in_every_image(pathway, walk):
    maps = [three_blobs(8, 10), three_blobs(8, 10).flip(0), three_blobs(10, 8).flip(1), three_blobs(9, 9).T]
    directions = [planted_record(labels, noise=0.3, index=index) for index in range(2) for labels in maps]
    images = [[directions[i], directions[i + 4]] for i in range(4)]
    basis = fitted(images, pathway).solve(3)
    rows = rows_of(basis, images, walk)
    found = KMeans(3, n_init=5, random_state=0).fit_predict(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert adjusted_rand_score(torch.cat([labels.flatten() for labels in maps]).numpy(), found) == 1


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("shapes", [EQUAL, RESOLUTIONS], ids=["equal", "resolutions"])
@pytest.mark.parametrize("dense_below", [0, 8192], ids=["conjugate_gradients", "dense"])
def test_the_walk_is_the_inverse_of_the_restarted_walk(pathway, shapes, dense_below, monkeypatch):
    monkeypatch.setattr(walk, "_DENSE_BELOW", dense_below)
    images = dataset(shapes[:3])
    basis = fitted(images, pathway).solve(4)
    plain = basis.project(images[1], 0.0).eigenvectors.flatten(1).T.double()
    problem = build_problem(images[1], SpectralConfig(pathway, NearestNeighbors(20)))
    affinity, mass = problem.affinity.to_dense().double(), problem.mass.to_dense().double()
    expected = 0.1 * torch.linalg.inv(mass - 0.9 * affinity) @ mass @ plain
    found = basis.project(images[1], 0.9).eigenvectors.flatten(1).T.double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_default_walk_is_on_for_what_and_a_walk_without_restart_is_refused():
    images = dataset(EQUAL[:2])
    layout = fitted(images, "where").solve(2)
    assert torch.equal(layout.project(images[0]).eigenvectors, layout.project(images[0], 0).eigenvectors)
    basis = fitted(images).solve(2)
    assert not torch.equal(basis.project(images[0]).eigenvectors, basis.project(images[0], 0).eigenvectors)
    assert basis.project(images[0], 0).solver["walk"] == 0
    with pytest.raises(SpectralError, match="`walk`: expected a number from 0 to 0.999, got 1.0"):
        basis.project(images[0], 1.0)


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("dense_below", [0, 600], ids=["krylov", "dense"])
def test_constant_images_have_the_trivial_eigenvector_only(pathway, dense_below, monkeypatch):
    monkeypatch.setattr(eigen_room, "_DENSE_BELOW", dense_below)
    records = [random_record(index=index) for index in range(2)]
    for record, name in itertools.product(records, ("query", "key", "value")):
        getattr(record, name)[:] = getattr(record, name)[:, :, :1]
    accumulator = fitted([records, records], pathway)
    basis = accumulator.solve(1)
    assert basis.eigenvalues[0] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(rows_of(basis, [records, records]), 96**-0.5, rtol=1e-4)
    with pytest.raises(SpectralError, match="expected at most the 1 that the tokens of 2 images determine, got 2"):
        accumulator.solve(2)


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("dense_below", [0, 600], ids=["krylov", "dense"])
def test_fewer_tokens_than_columns(pathway, dense_below, monkeypatch):
    monkeypatch.setattr(eigen_room, "_DENSE_BELOW", dense_below)
    images = dataset([[(2, 3)] * 3] * 2, heads=4, dim=16)
    values, vectors = scipy.linalg.eigh(dense_joint(images, pathway)[0])
    basis = fitted(images, pathway).solve(5)
    np.testing.assert_allclose(1 - basis.eigenvalues.numpy(), values[::-1][:5], atol=1e-5)
    assert scipy.linalg.subspace_angles(rows_of(basis, images), vectors[:, ::-1][:, :5]).max() < 1e-3


def test_zero_and_opposite_tokens_stay_finite():
    record = random_record()
    record.query[:, :, 0] = 0
    record.key[:, :, 1:] = -record.query[:, :, 1:2]
    record.query[:, :, 1:] = record.query[:, :, 1:2]
    basis = fitted([[record]], "where").solve(1)
    assert torch.isfinite(basis.project([record]).eigenvectors).all()
    unlike = dataclasses.replace(record, key=-basis.sums[0][:10].float().view(1, 2, 1, 5).expand(1, 2, 48, 5))
    assert torch.isfinite(basis.project([unlike]).eigenvectors).all()


def test_repeated_eigenvalues_span_their_eigenspace():
    # Four orthogonal clusters of equal size: one eigenvalue of multiplicity three after the trivial one.
    record = random_record(4, 8, heads=1, dim=4)
    record.value[:] = torch.eye(4)[torch.arange(32) % 4]
    basis = fitted([[record]] * 3).solve(4)
    np.testing.assert_allclose(basis.eigenvalues, [0, 0.8, 0.8, 0.8], atol=1e-6)
    rows = rows_of(basis, [[record]] * 3)
    np.testing.assert_allclose(rows.T @ rows, np.eye(4), atol=1e-5)


def test_deterministic_whatever_the_seed_and_the_order_of_images():
    images = dataset(ASPECTS)
    first = fitted(images).solve(4)
    torch.manual_seed(123)
    again, reversed_images = fitted(images).solve(4, seed=5), fitted(images[::-1]).solve(4)
    for other in (again, reversed_images):
        torch.testing.assert_close(torch.cat(other.projections), torch.cat(first.projections), rtol=1e-4, atol=1e-5)


def test_layer_weights_enter_the_joint_problem_and_may_change_after_the_passes():
    images = dataset(ASPECTS)
    expected = np.linalg.eigvalsh(dense_joint(images, "what", [0.25, 0, 0.75])[0])[::-1][:4]
    basis = fitted(images).solve(4, layer_weights={0: 1, 2: 3})
    np.testing.assert_allclose(1 - basis.eigenvalues.numpy(), expected, atol=1e-5)
    assert [layer.index for layer in basis.layers] == [0, 2]
    assert basis.weights == (0.25, 0.75)

    mixed = dataset(RESOLUTIONS)
    values = scipy.linalg.eigh(*dense_joint(mixed, "what", [0.2, 0.3, 0.5]), eigvals_only=True)[::-1][:4]
    weights = {0: 2.0, 1: 3.0, 2: 5.0}
    np.testing.assert_allclose(1 - fitted(mixed, layer_weights=weights).solve(4).eigenvalues, values, atol=1e-5)
    with pytest.raises(SpectralError, match="`layer_weights`: expected those given at the start"):
        fitted(mixed).solve(4, layer_weights=weights)


def test_layers_are_selected_from_either_end():
    images = dataset(EQUAL[:4])
    accumulator = BasisAccumulator(SpectralConfig("what", "cosine", layers=(-1, 0)))
    for verb in (accumulator.add_sums, accumulator.add_gram):
        for records in images:
            verb(records)
    same = fitted(images).solve(3, layer_weights={0: 1, 2: 1})
    torch.testing.assert_close(accumulator.solve(3).eigenvalues, same.eigenvalues)


def test_bounded_width_errs_less_the_wider_it_is():
    images = dataset(ASPECTS, heads=4, dim=16)
    exact = fitted(images).solve(4)
    errors = []
    for max_width in (48, 96, 160):
        accumulator = fitted(images, max_width=max_width)
        tensors = accumulator.state_dict()["tensors"]
        assert sum(block.shape[0] for name, block in tensors.items() if name.startswith("gram.")) <= max_width
        basis = accumulator.solve(4)
        value_error = (basis.eigenvalues - exact.eigenvalues).abs().max()
        angle = scipy.linalg.subspace_angles(rows_of(basis, images), rows_of(exact, images)).max()
        errors.append((float(value_error), float(np.sin(angle))))

    assert errors[0][0] > errors[-1][0]
    assert errors[-1][0] < 0.05
    assert errors[-1][1] < 0.3
    wide = fitted(images, max_width=10_000).solve(4)
    assert torch.equal(wide.eigenvalues, exact.eigenvalues)
    with pytest.raises(SpectralError, match="`max_width`: expected room for every one of 3 layers, got 4"):
        fitted(images, max_width=4)


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("max_width", [None, 24])
def test_a_basis_survives_the_disk_bit_by_bit(pathway, max_width, tmp_path):
    images = dataset(RESOLUTIONS[:4])
    backbone = {"id": "facebook/dinov2-small", "revision": "abc", "hidden_size": 384, "resolution": [20, 28]}
    basis = fitted(images, pathway, max_width=max_width).solve(4, backbone=backbone)
    folder = basis.save_pretrained(tmp_path / "deep" / "basis")
    assert sorted(path.name for path in folder.iterdir()) == ["basis.safetensors", "config.json"]
    loaded = SpectralBasis.from_pretrained(folder)
    for field in dataclasses.fields(basis):
        mine, theirs = getattr(basis, field.name), getattr(loaded, field.name)
        if field.name in ("projections", "sums"):
            assert all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))
        else:
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    assert torch.equal(loaded.project(images[0]).eigenvectors, basis.project(images[0]).eigenvectors)


def _edit_config(change):
    def edit(folder):
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return edit


def _edit_tensors(change):
    def edit(folder):
        tensors = load_file(folder / "basis.safetensors")
        change(tensors)
        save_file(tensors, folder / "basis.safetensors")

    return edit


def _edit_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def clustered(images):
    basis = fitted(images).solve(4)
    rows = torch.cat([unit_rows(basis.project(one).eigenvectors[:3]) for one in images])  # Not the last one.
    basis.keep_clusters(find_clusters(rows, 3, walk=0.5))
    return basis


def test_clusters_survive_the_disk_and_bring_their_walk(tmp_path):
    images = dataset(EQUAL[:3])
    basis = clustered(images)
    loaded = SpectralBasis.from_pretrained(basis.save_pretrained(tmp_path))
    for field in dataclasses.fields(basis.clusters):
        mine, theirs = getattr(basis.clusters, field.name), getattr(loaded.clusters, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    assert torch.equal(loaded.project(images[0]).eigenvectors, basis.project(images[0], walk=0.5).eigenvectors)
    assert "clusters: 3" in repr(loaded)


CLUSTER_DAMAGES = {
    "too many centers": _edit_config(lambda values: values["clusters"].update(num_centers=10**15)),
    "no segments": _edit_config(lambda values: values["clusters"].update(num_segments=0)),
    "a cluster beyond the number": _edit_config(lambda values: values["clusters"].update(num_segments=2)),
    "directions as text": _edit_config(lambda values: values["clusters"].update(num_directions="2")),
    "more channels than there are": _edit_config(lambda values: values["clusters"].update(num_channels=4)),
    "walk without restart": _edit_config(lambda values: values["clusters"].update(walk=1)),
    "missing size": _edit_config(lambda values: values["clusters"].pop("num_centers")),
    "a list": _edit_config(lambda values: values.update(clusters=[])),
    "not described": _edit_config(lambda values: values.pop("clusters")),
    "missing tensor": _edit_tensors(lambda tensors: tensors.pop("clusters.mean")),
    "other shape": _edit_tensors(lambda tensors: tensors.update({"clusters.mean": torch.zeros(7)})),
    "negative cluster": _edit_tensors(lambda tensors: tensors["clusters.cluster"].fill_(-1)),
}


@pytest.mark.parametrize("damage", CLUSTER_DAMAGES.values(), ids=CLUSTER_DAMAGES)
def test_damaged_clusters_are_refused(damage, tmp_path):
    folder = clustered(dataset(EQUAL[:2])).save_pretrained(tmp_path)
    damage(folder)
    with pytest.raises(SpectralError, match="`basis`: expected a folder that SpectralBasis.save_pretrained"):
        SpectralBasis.from_pretrained(folder)


def test_another_backbone_is_refused_with_the_difference():
    basis = fitted(dataset(EQUAL[:2])).solve(2, backbone={"id": "facebook/dinov2-small", "hidden_size": 384})
    basis.check_backbone({"id": "facebook/dinov2-small", "hidden_size": 384, "extra": 1})
    with pytest.raises(
        SpectralError, match="expected the backbone it was fitted on, hidden_size=384, got hidden_size=768"
    ):
        basis.check_backbone({"id": "facebook/dinov2-small", "hidden_size": 768})


def test_a_revision_counts_where_both_are_known():
    basis = fitted(dataset(EQUAL[:2])).solve(2, backbone={"revision": "a" * 40})
    basis.check_backbone({"revision": None})
    basis.check_backbone({"revision": "a" * 40})
    with pytest.raises(SpectralError, match="revision='bb"):
        basis.check_backbone({"revision": "b" * 40})


DAMAGES = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no tensors": lambda folder: (folder / "basis.safetensors").unlink(),
    "not JSON": _edit_bytes("config.json", lambda content: content[:-10]),
    "not UTF-8": _edit_bytes("config.json", lambda content: b"\xff" + content),
    "deep JSON": _edit_bytes("config.json", lambda content: b"[" * 100_000),
    "a list": _edit_bytes("config.json", lambda content: b"[]"),
    "extra key": _edit_config(lambda values: values.update(extra=1)),
    "missing key": _edit_config(lambda values: values.pop("weights")),
    "other format": _edit_config(lambda values: values.update(format="other")),
    "negative count": _edit_config(lambda values: values.update(num_images=-3)),
    "count as text": _edit_config(lambda values: values.update(num_nodes="3")),
    "huge width": _edit_config(lambda values: values["layers"][0].update(width=2**60, kept=2**60)),
    "negative width": _edit_config(lambda values: values["layers"][0].update(width=-1)),
    "kept above width": _edit_config(lambda values: values["layers"][0].update(kept=1000)),
    "too many eigenvectors": _edit_config(lambda values: values["config"].update(num_eigenvectors=10**12)),
    "other pathway": _edit_config(lambda values: values["config"].update(pathway="where")),
    "other affinity": _edit_config(lambda values: values["config"].update(affinity="exponential")),
    "unknown setting": _edit_config(lambda values: values["config"].update(color="red")),
    "NaN weight": _edit_config(lambda values: values.update(weights=[float("nan"), 0.5, 0.5])),
    "weights of another sum": _edit_config(lambda values: values.update(weights=[1.0, 1.0, 1.0])),
    "a layer twice": _edit_config(lambda values: values["layers"][1].update(index=0)),
    "a layer that is text": _edit_config(lambda values: values.update(layers=["a", "b", "c"])),
    "extra tensor": _edit_tensors(lambda tensors: tensors.update(more=torch.zeros(2))),
    "missing tensor": _edit_tensors(lambda tensors: tensors.pop("sum.0")),
    "other shape": _edit_tensors(lambda tensors: tensors.update(residuals=torch.zeros(3))),
    "other type": _edit_tensors(lambda tensors: tensors.update(residuals=torch.zeros(2).half())),
    "NaN": _edit_tensors(lambda tensors: tensors["projection.1"].fill_(torch.nan)),
    "no tokens": _edit_tensors(lambda tensors: tensors["num_tokens"].fill_(-1)),
    "unordered eigenvalues": _edit_tensors(lambda tensors: tensors["eigenvalues"].copy_(torch.tensor([1.0, 0.0]))),
    "tensors of another run": _edit_tensors(lambda tensors: tensors["projection.0"].mul_(2)),
    "bounded without a bound": _edit_config(lambda values: values["layers"][0].update(width=11)),
    "truncated": _edit_bytes("basis.safetensors", lambda content: content[:-5]),
    "cut in the header": _edit_bytes("basis.safetensors", lambda content: content[:40]),
    "empty": _edit_bytes("basis.safetensors", lambda content: b""),
    "huge header": _edit_bytes("basis.safetensors", lambda content: b"\xff" * 8 + content[8:]),
    "longer": _edit_bytes("basis.safetensors", lambda content: content + b"more"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_basis_is_refused_in_one_line_without_taking_memory(damage, tmp_path):
    folder = fitted(dataset(EQUAL[:2])).solve(2).save_pretrained(tmp_path / "basis")
    damage(folder)
    tracemalloc.start()
    with pytest.raises(SpectralError, match="`basis`: expected a folder that SpectralBasis.save_pretrained") as caught:
        SpectralBasis.from_pretrained(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (lambda images: images[1][:2], "expected each of 3 layers once, all with the same images, got no layer.2"),
        (lambda images: [*images[1], images[1][0]], "got 4 records of 3 layers"),
        (lambda images: [random_record(dim=9, index=i) for i in range(3)], "of width 10, got layer.0 of width 18"),
    ],
)
def test_images_that_do_not_fit_are_refused_and_leave_no_trace(records, message):
    images = dataset(EQUAL[:3])
    accumulator = BasisAccumulator(SpectralConfig("what", "cosine"))
    for verb in (accumulator.add_sums, accumulator.add_gram):
        verb(images[0])
        before = {name: tensor.clone() for name, tensor in accumulator.state_dict()["tensors"].items()}
        with pytest.raises(SpectralError, match=message):
            verb(records(images))
        assert all(torch.equal(before[name], now) for name, now in accumulator.state_dict()["tensors"].items())


def test_numbers_that_are_not_finite_are_refused_even_in_the_first_image():
    records = dataset(EQUAL[:1])[0]
    accumulator = BasisAccumulator(SpectralConfig("what", "cosine"))
    # Of a record made by hand, the constructor asks; of a capture, the accumulator.
    broken = dataclasses.replace(records[0], value=torch.full_like(records[0].value, torch.nan), num_layers=3)
    with pytest.raises(SpectralError, match="expected finite numbers, got NaN or infinity"):
        accumulator.add_sums([broken, *records[1:]])
    assert accumulator.num_images == (0, 0)
    accumulator.add_sums(records)
    with pytest.raises(SpectralError, match="expected finite numbers, got NaN or infinity"):
        accumulator.add_gram([broken, *records[1:]])
    assert accumulator.num_images == (1, 0)


def test_passes_out_of_order_are_refused():
    images = dataset(EQUAL[:2])
    accumulator = BasisAccumulator(SpectralConfig("what", "cosine"))
    with pytest.raises(SpectralError, match="expected at least one image, got none in the first pass"):
        accumulator.add_gram(images[0])
    for records in images:
        accumulator.add_sums(records)
    accumulator.add_gram(images[0])
    with pytest.raises(SpectralError, match="no more sums once the second pass has begun"):
        accumulator.add_sums(images[0])
    with pytest.raises(SpectralError, match="expected the second pass over the 2 images of the first, got 1 images"):
        accumulator.solve(2)


def test_settings_that_cannot_stream_are_refused():
    with pytest.raises(SpectralError, match=r"Use SpectralConfig\('where', 'cosine'\)"):
        BasisAccumulator(SpectralConfig("where"))
    with pytest.raises(SpectralError, match="`max_width`: expected an integer of at least 1"):
        BasisAccumulator(SpectralConfig("what", "cosine"), 0)
    windowed = [random_record(windowed=True)]
    with pytest.raises(SpectralError, match="Try pathway='what'"):
        fitted([windowed], "where")


def test_projection_refuses_missing_layers_and_batches():
    images = dataset(EQUAL[:2])
    basis = fitted(images).solve(2)
    with pytest.raises(SpectralError, match="expected all 3 layers of the basis, got none of layer.0"):
        basis.project(images[0][1:])
    with pytest.raises(SpectralError, match="expected one image, got 2 images"):
        basis.project([_stacked([one[layer] for one in images]) for layer in range(3)])


def test_memory_does_not_grow_with_the_number_of_images():
    """No matrix of all tokens by all tokens: 40 images of 400 tokens would take a gigabyte."""
    accumulator = fitted(dataset([[(20, 20)] * 2] * 40, heads=1, dim=4))
    assert sum(tensor.numel() for tensor in accumulator.state_dict()["tensors"].values()) < 200
    assert accumulator.solve(4).num_nodes == 16_000


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_passes_that_saw_other_numbers_are_an_error_and_no_basis(pathway):
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="equal"))
    for records in dataset(EQUAL):
        accumulator.add_sums(records)
    for records in dataset(EQUAL[:1]) * len(EQUAL):
        accumulator.add_gram(records)
    with pytest.raises(SpectralError, match="`eigenvalues`: expected numbers from 0 to 2.* got -0"):
        accumulator.solve(1)
