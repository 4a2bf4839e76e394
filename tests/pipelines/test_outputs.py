"""What comes out of both pipelines goes, as it is, where users of `datasets` and of the Hub send it."""

import io
import json
import numbers
import sys
import typing
from collections.abc import Iterator

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.sam import image_processing_pil_sam as mask_generation

from hf_spectral import Segmentation, SpectralError, SpectralResult
from hf_spectral.visualization import segment_colors
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


@pytest.mark.parametrize("pathway", ["where", "both"])
def test_json_takes_what_is_asked_for_as_json(either, pathway):
    pipe, settings = either
    settings |= {"pathway": pathway, "instances": True}
    expected = pipe(PHOTOS[0], **settings)
    found = json.loads(json.dumps(pipe(PHOTOS[0], as_json=True, **settings), allow_nan=False))
    assert json.loads(json.dumps(pipe([PHOTOS[0]], as_json=True, **settings))) == [found]
    for one, other in (
        [(found[name], expected[name]) for name in expected] if pathway == "both" else [(found, expected)]
    ):
        assert one.keys() == other.keys()
        for name in ("eigenvectors", "eigenvalues", "residuals"):
            assert torch.equal(torch.tensor(one[name]), other[name])
        masks = [mask_generation._rle_to_mask(mask) for mask in one["segmentation"]]
        assert np.array_equal(np.argmax(masks, axis=0), other["segmentation"])
        assert np.sum(masks, axis=0).max() == 1
        for part in ("segments", "instances"):
            for mine, theirs in zip(one[part], other[part], strict=True):
                assert (mine["label"], mine["score"]) == (theirs["label"], theirs["score"])
                mask = torch.from_numpy(np.array(theirs["mask"]) > 0)
                assert mine["mask"] == mask_generation._mask_to_rle(mask[None])[0]


def test_objects_are_no_json(either):
    pipe, _ = either
    with pytest.raises(SpectralError, match="`as_json`: expected this or `return_result`, got both"):
        pipe(PHOTOS[0], as_json=True, return_result=True)


def test_a_segmentation_has_a_palette_wherever_it_goes(either):
    pipe, settings = either
    found = pipe(PHOTOS[0], return_result=True, **settings)
    for picture in (found["segmentation"], found["hierarchy"].to_image()):
        stored = datasets.Image().encode_example(picture)["bytes"]
        assert stored.startswith(b"\x89PNG")
        for one in (picture, Image.open(io.BytesIO(stored))):
            assert one.mode == "P"
            labels = np.asarray(one)
            assert np.array_equal(labels, found["hierarchy"].labels)
            assert np.array_equal(one.convert("RGB"), segment_colors(3)[labels])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="overloads are not kept")
def test_the_type_of_an_output_follows_that_of_the_input(pipe, pixels):
    types = [one.__annotations__["return"] for one in typing.get_overloads(type(pipe).__call__)]
    assert types == ["dict[str, Any]", "list[dict[str, Any]]", "Iterator[dict[str, Any]]"]
    types = [one.__annotations__["return"] for one in typing.get_overloads(type(pixels).__call__)]
    assert types == ["SpectralDiffusionOutput", "list[SpectralDiffusionOutput]"]


def test_many_pictures_are_an_iterator(pipe, table):
    expected = pipe(PHOTOS[0], num_segments=None)["eigenvectors"]
    for source in (table, (one for one in PHOTOS)):
        outputs = pipe(source, num_segments=None)
        assert isinstance(outputs, Iterator)
        torch.testing.assert_close(next(outputs)["eigenvectors"], expected)
        assert next(outputs, None) is not None
        assert next(outputs, None) is None
    assert len([*outputs]) == 0  # A generator is used up; a table begins anew.
    outputs = pipe(table, num_segments=None)
    assert [len([*outputs]) for _ in range(2)] == [2, 2]
