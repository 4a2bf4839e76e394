"""What comes out of both pipelines goes, as it is, where users of `datasets` and of the Hub send it."""

import numbers

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_spectral import Segmentation, SpectralResult
from tests.pipelines.tiny_diffusion import RESOLUTION
from tests.synthetic import photo

PHOTOS = [photo(60, 90, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def table():
    return datasets.Dataset.from_dict({"image": PHOTOS}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture(params=["pipe", "pixels"])
def either(request):
    """A pipeline of each host, and settings that keep it fast."""
    return request.getfixturevalue(request.param), {"num_eigenvectors": 3, "resolution": RESOLUTION, "num_segments": 3}


def assert_plain(value):
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            assert_plain(one)
    else:
        assert isinstance(value, (torch.Tensor, Image.Image, numbers.Real, str))


@pytest.mark.parametrize("pathway", ["what", "both"])
def test_outputs_are_plain_and_a_dataset_maps_the_pipeline(either, table, tmp_path, pathway):
    pipe, settings = either
    settings |= {"pathway": pathway, "instances": True}
    expected = pipe(PHOTOS[1], **settings)
    assert_plain(expected)
    table.map(pipe, input_columns="image", fn_kwargs=settings).save_to_disk(tmp_path)
    row = [*datasets.load_from_disk(tmp_path)][1]
    for found, one in [(row, expected)] if pathway == "what" else [(row[name], expected[name]) for name in expected]:
        assert {"eigenvectors", "segmentation", "segments", "instances"} <= one.keys() <= found.keys()
        torch.testing.assert_close(torch.tensor(found["eigenvectors"]), one["eigenvectors"])
        assert [found["grid"], found["layers"]] == [list(one["grid"]), list(one["layers"])]
        assert [part["score"] for part in found["segments"]] == [part["score"] for part in one["segments"]]


def test_pictures_inside_mapped_rows_are_read_once_their_columns_say_so(pipe, table):
    settings = {"num_eigenvectors": 3, "num_segments": 3}
    rows = table.map(pipe, input_columns="image", fn_kwargs=settings)
    assert isinstance(rows.features["segmentation"], datasets.Image)
    feature = {"label": datasets.Value("string"), "score": datasets.Value("float64"), "mask": datasets.Image()}
    rows = rows.cast_column("segments", datasets.List(feature))
    for row, image in zip(rows, PHOTOS, strict=True):
        expected = pipe(image, **settings)
        assert np.array_equal(row["segmentation"], expected["segmentation"])
        for one, other in zip(row["segments"], expected["segments"], strict=True):
            assert np.array_equal(one["mask"], other["mask"])
    in_batches = table.map(lambda batch: {"out": pipe(batch["image"], batch_size=2, **settings)}, batched=True)
    assert [one["eigenvalues"] for one in in_batches["out"]] == [pytest.approx(row["eigenvalues"]) for row in rows]


def test_the_objects_come_on_request(either):
    pipe, settings = either
    found = pipe(PHOTOS[0], return_result=True, **settings)
    assert isinstance(found["result"], SpectralResult)
    assert torch.equal(found["result"].eigenvectors, found["eigenvectors"])
    assert isinstance(found["hierarchy"], Segmentation)
    assert np.array_equal(found["hierarchy"].labels, found["segmentation"])
    assert not {"result", "hierarchy"} & pipe(PHOTOS[0], **settings).keys()
    assert "hierarchy" not in pipe(PHOTOS[0], return_result=True, **settings | {"num_segments": None})
