"""Defaults given to a pipeline hold wherever a call leaves them out, and only there."""

import inspect

import datasets
import numpy as np
import pytest
import torch
import transformers

import hf_spectral
from hf_spectral import SpectralError, fit, layer_report, transform
from hf_spectral.report import list_layers
from tests.families.tiny_backbones import BACKBONES, PROCESSOR
from tests.pipelines.tiny_diffusion import RESOLUTION, host_pipeline
from tests.synthetic import photo

MODEL = BACKBONES["dinov2"].model()


def pipe_with(**defaults):
    return transformers.pipeline("spectral-pathways", model=MODEL, image_processor=PROCESSOR, **defaults)


@pytest.fixture(scope="module")
def table():
    rows = {"image": [photo(seed=seed) for seed in range(4)], "other": [photo(seed=9)] * 4}
    features = datasets.Features({"image": datasets.Image(), "other": datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def bases(table):
    """One basis for each pathway, fitted at two resolutions."""
    settings = {"image_column": "image", "num_eigenvectors": 3, "progress": False}
    return {
        pathway: fit(pipe_with(), table, pathway=pathway, resolution=resolution, **settings)
        for pathway, resolution in (("what", 96), ("where", 128))
    }


def grid(image, resolution):
    return pipe_with()(image, resolution=resolution, num_segments=None)["grid"]


DEFAULTS = {
    "pathway": "where",
    "num_eigenvectors": 3,
    "layers": (0, 2),
    "layer_weights": "equal",
    "resolution": 96,
    "seed": 7,
    "batch_size": 2,
    "image_column": "image",
}


def test_fit_with_defaults_of_the_pipeline_is_fit_with_these_arguments(table):
    expected = fit(pipe_with(), table, progress=False, **DEFAULTS)
    found = fit(pipe_with(**DEFAULTS), table, progress=False)
    assert found.config == expected.config
    assert found.backbone == expected.backbone
    assert (found.config.pathway, found.config.seed, found.backbone["resolution"]) == ("where", 7, 96)
    assert torch.equal(found.eigenvalues, expected.eigenvalues)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_each_default_holds_and_the_call_says_otherwise(table, name, monkeypatch):
    """What reaches the body of each function is looked at, for every argument that it shares with the pipeline."""
    pipe = pipe_with(**{name: DEFAULTS[name]})
    for function in (fit, layer_report, transform):
        name_here = "pathways" if name == "pathway" and function is layer_report else name
        if name_here not in inspect.signature(function).parameters:
            continue
        seen = []
        body = inspect.unwrap(function)

        def spy(*args, _body=body, _seen=seen, **kwargs):
            _seen.append(inspect.signature(_body).bind(*args, **kwargs).arguments)

        spy.__signature__ = inspect.signature(body)
        watched = hf_spectral.config.defaults_hold(spy)
        rest = ["basis"] if function is transform else []
        watched(pipe, table, *rest)
        watched(pipe, table, *rest, **{name_here: None})
        watched(pipe_with(), table, *rest)
        default = ("where",) if name_here == "pathways" else DEFAULTS[name]
        assert [one.get(name_here, "unsaid") for one in seen] == [default, None, "unsaid"]


def test_an_explicit_none_takes_the_size_of_the_backbone(table):
    pipe = pipe_with(resolution=96)
    settings = {"image_column": "image", "num_eigenvectors": 3, "progress": False}
    assert fit(pipe, table, **settings).backbone["resolution"] == 96
    assert fit(pipe, table, resolution=None, **settings).backbone["resolution"] is None
    assert fit(pipe, table, resolution=64, **settings).backbone["resolution"] == 64
    assert pipe(photo(), resolution=None)["grid"] == grid(photo(), None)


def test_reports_and_listings_read_at_the_default(table):
    report = layer_report(
        pipe_with(pathway="what", resolution=96, num_eigenvectors=3, image_column="image"), table, progress=False
    )
    expected = layer_report(
        pipe_with(),
        table,
        pathways=["what"],
        num_eigenvectors=3,
        image_column="image",
        resolution=96,
        progress=False,
    )
    assert report == expected
    both = pipe_with(pathway="both", image_column="image", num_eigenvectors=3)
    assert {row.pathway for row in layer_report(both, table, progress=False).rows} == {"where", "what"}
    rows = list_layers(pipe_with(resolution=128)).rows
    assert {(row.rows, row.columns) for row in rows} == {(16, 16)}


def test_transform_takes_basis_resolution_and_clusters_of_the_pipeline(table, bases):
    basis = bases["what"]
    pipe = pipe_with(basis=basis, resolution=64, num_segments=2, image_column="image", walk=0.5)
    rows = transform(pipe, table, dtype="float32", progress=False)
    alone = pipe_with()(table[0]["image"], basis=basis, resolution=64, walk=0.5)
    assert rows[0]["shape"] == [3, *alone["grid"]]
    found = torch.tensor(rows[0]["eigenvectors"]).view(rows[0]["shape"]) / basis.num_nodes**0.5
    torch.testing.assert_close(found, alone["eigenvectors"], atol=1e-5, rtol=1e-4)
    assert "segmentation" in rows.column_names
    other = transform(pipe, table, bases["where"], num_segments=None, progress=False)
    assert "segmentation" not in other.column_names
    plain = transform(pipe_with(image_column="image"), table, bases["where"], progress=False)
    assert plain[0]["shape"] == [3, *grid(photo(), 128)]


def test_a_pathway_that_fit_cannot_take_is_refused_by_name(table):
    with pytest.raises(SpectralError, match="`pathway`: expected one of 'where', 'what', got 'both'"):
        fit(pipe_with(pathway="both", image_column="image"), table)


@pytest.mark.parametrize("pipe", ["facebook/dinov2-small", MODEL, None])
def test_what_is_no_pipeline_is_refused(table, pipe):
    for call in (fit, layer_report, list_layers):
        with pytest.raises(SpectralError, match="`pipe`: expected a pipeline of hf_spectral, got a "):
            call(pipe, *[table] * (call is not list_layers))


def test_a_basis_in_the_call_brings_its_resolution(bases):
    what, where = bases["what"], bases["where"]
    pipe = pipe_with(basis=what)
    assert pipe(photo())["grid"] == grid(photo(), 96)
    found = pipe(photo(), basis=where, return_result=True)
    assert found["grid"] == grid(photo(), 128)
    assert found["result"].config.pathway == "where"
    assert pipe(photo(), basis=where, resolution=64)["grid"] == grid(photo(), 64)
    assert pipe_with(basis=what, resolution=64)(photo(), basis=where)["grid"] == grid(photo(), 64)
    assert pipe(photo())["grid"] == grid(photo(), 96)  # The call before has left nothing.


def test_no_basis_in_the_call_drops_that_of_the_constructor(bases):
    pipe = pipe_with(basis=bases["where"], walk=0.5)
    found, expected = pipe(photo(), basis=None), pipe_with()(photo())
    assert torch.equal(found["eigenvectors"], expected["eigenvectors"])
    assert len(pipe(photo(), basis=None, num_eigenvectors=5)["eigenvalues"]) == 5


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_and_streams_follow_the_call(bases, batch_size):
    pipe = pipe_with(basis=bases["what"], batch_size=batch_size)
    images = [photo(seed=seed) for seed in range(3)]
    for settings, resolution in (({}, 96), ({"basis": bases["where"]}, 128), ({"basis": None}, None)):
        expected = grid(photo(), resolution)
        assert [found["grid"] for found in pipe(images, **settings)] == [expected] * 3
        assert [found["grid"] for found in pipe((one for one in images), **settings)] == [expected] * 3


def test_settings_of_an_images_own_problem_beside_a_basis(bases):
    """In one place they contradict each other; as defaults they wait for calls without a basis."""
    basis = bases["what"]
    pipe = pipe_with(num_eigenvectors=5, layers=[0], pathway="both", solver="gradient", num_segments=2)
    found, expected = pipe(photo(), basis=basis), pipe_with()(photo(), basis=basis, num_segments=2)
    assert torch.equal(found["eigenvectors"], expected["eigenvectors"])
    assert len(found["segments"]) == len(expected["segments"])
    told = pipe_with(pathway="what", basis=basis, return_result=True)
    assert told(photo(), basis=bases["where"])["result"].config.pathway == "where"
    for make in (
        lambda: pipe_with(basis=basis, num_eigenvectors=5),
        lambda: pipe_with(basis=basis)(photo(), num_eigenvectors=5),
        lambda: pipe_with()(photo(), basis=basis, num_eigenvectors=5),
    ):
        with pytest.raises(SpectralError, match="`num_eigenvectors`: expected none beside a basis"):
            make()
    with pytest.raises(SpectralError, match="`pathway`: expected none beside a basis, which was fitted for 'what'"):
        pipe_with(basis=basis)(photo(), pathway="where")
    assert pipe_with(basis=basis)(photo(), pathway="what")["grid"] == grid(photo(), 96)


def test_what_is_no_basis_is_refused_wherever_one_is_given(table, bases, tmp_path):
    result = pipe_with()(photo(), return_result=True)["result"]
    path = result.save_pretrained(tmp_path / "result.safetensors")
    for wrong in (result, path, str(path), tmp_path / "nowhere", 1, [], b"x", "", torch.zeros(2), type(result)):
        for give in (
            lambda wrong=wrong: pipe_with(basis=wrong),
            lambda wrong=wrong: pipe_with()(photo(), basis=wrong),
            lambda wrong=wrong: transform(pipe_with(), table, wrong, image_column="image", progress=False),
        ):
            with pytest.raises(SpectralError, match="`basis`: expected a "):
                give()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size`: expected an integer of at least 1, got 0"),
        ({"batch_size": "2"}, "`batch_size`: expected an integer of at least 1, got '2'"),
        ({"batch_size": True}, "`batch_size`"),
        ({"num_workers": -1}, "`num_workers`: expected an integer of at least 0, got -1"),
        ({"num_workers": 1.5}, "`num_workers`: expected an integer of at least 0, got 1.5"),
        ({"solver": []}, "`solver`: expected one of 'eigen', 'gradient'"),
        ({"picture": 1}, "`picture`: expected one of the arguments"),
    ],
)
def test_wrong_values_are_refused_in_the_constructor_and_in_the_call(settings, message):
    with pytest.raises(SpectralError, match=message):
        pipe_with(**settings)
    with pytest.raises(SpectralError, match=message):
        pipe_with()([photo()], **settings)


def test_numbers_of_numpy_are_numbers():
    pipe = pipe_with(batch_size=np.int64(2), num_workers=np.int64(0))
    assert len(pipe([photo()] * 3, batch_size=np.int32(3))) == 3


def test_at_of_a_diffusion_pipeline_sets_the_same_defaults(table):
    pipe = hf_spectral.pipeline(host_pipeline("dit"), resolution=RESOLUTION, num_eigenvectors=3)
    pipe.set_progress_bar_config(disable=True)
    told = pipe.at([50], seed=4, image_column="image", pathway="where")
    found = fit(told, table, progress=False)
    settings = {"pathway": "where", "num_eigenvectors": 3, "image_column": "image", "resolution": RESOLUTION, "seed": 4}
    expected = fit(hf_spectral.pipeline(host_pipeline("dit")).at([50], seed=4), table, **settings, progress=False)
    assert found.config == expected.config
    assert found.backbone == expected.backbone
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues)
    assert told(photo(), return_result=True).result.config.pathway == "where"
    assert told(photo(), pathway="what", return_result=True).result.config.seed == 4
    assert pipe(photo(), return_result=True).result.config.pathway == "what"
    with pytest.raises(SpectralError, match="`picture`: expected one of the arguments"):
        pipe.at(picture=1)


def test_a_default_walk_waits_for_a_basis(bases):
    pipe = pipe_with(walk=0.5)
    with pytest.raises(SpectralError, match="`walk`: expected a basis beside it, got 0.5"):
        pipe(photo())
    settings = {"basis": bases["what"], "num_segments": None}
    found, expected = pipe(photo(), **settings), pipe_with()(photo(), walk=0.5, **settings)
    assert torch.equal(found["eigenvectors"], expected["eigenvectors"])
