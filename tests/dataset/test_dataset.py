"""A whole dataset: every kind of it, every mistake, and rows that hold what they promise."""

import copy
import dataclasses
import errno
import gc
import inspect
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

import hf_spectral
from hf_spectral import (
    BasisAccumulator,
    SpectralBasis,
    SpectralConfig,
    SpectralError,
    UnsupportedBackboneError,
    fit,
    layer_report,
    transform,
)
from hf_spectral.capture import capture_attention
from hf_spectral.dataset import rows
from hf_spectral.dataset.folder import list_pictures
from hf_spectral.dataset.opening import open_source
from hf_spectral.segmentation import label_image, leading_eigenvectors, semantic
from hf_spectral.visualization import eigenvectors_to_rgb
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, build_dinov2, saved_backbone
from tests.synthetic import photo

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def images():
    return [photo(60 + 16 * (seed % 2), 90, seed) for seed in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for number, image in enumerate(images):
        image.save(folder / ("below" if number < 2 else "") / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def table(images):
    values = {"picture": images, "label": list(range(NUM_IMAGES))}
    return datasets.Dataset.from_dict(values).cast_column("picture", datasets.Image())


@pytest.fixture(scope="module")
def fitted_basis(pipe, table):
    return fit(pipe, table, num_eigenvectors=5, progress=False)


@pytest.fixture
def basis(fitted_basis):
    return dataclasses.replace(fitted_basis)  # A transform may give it clusters.


def same(one: SpectralBasis, other: SpectralBasis, tolerance=1e-5):
    torch.testing.assert_close(one.eigenvalues, other.eigenvalues, atol=tolerance, rtol=0)
    for mine, theirs in zip(one.projections, other.projections, strict=True):
        torch.testing.assert_close(mine.abs(), theirs.abs(), atol=tolerance, rtol=0)


def nothing(features):
    return datasets.IterableDataset.from_generator(lambda: iter(()), features=features)


@pytest.mark.parametrize("pathway", ["what", "where"])
def test_fit_is_the_two_passes_of_the_accumulator(pipe, table, images, pathway):
    found = fit(pipe, table, pathway=pathway, num_eigenvectors=4, progress=False)
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))
    captures = []
    for image in images:
        with capture_attention(pipe.model) as capture:
            pipe.model(**pipe.preprocess(image)["inputs"])
        captures.append(capture.records)
    for records in captures:
        accumulator.add_sums(records)
    for records in captures:
        accumulator.add_gram(records)
    same(found, accumulator.solve(4))
    assert found.num_images == NUM_IMAGES


def test_no_picture_is_kept_where_none_is_cut(pipe, images):
    assert "picture" not in pipe.preprocess(images[0], keeps_picture=False)
    assert pipe.preprocess(images[0])["picture"].size == images[0].size


def test_every_kind_of_dataset_and_batch_gives_the_same(pipe, table, images, folder, basis):
    def stream():
        yield from ({"picture": image, "label": 0} for image in images)

    unknown = datasets.IterableDataset.from_generator(stream)
    assert unknown.features is None
    for dataset in (table.to_iterable_dataset(), unknown, folder, str(folder), table.with_format("torch")):
        same(fit(pipe, dataset, num_eigenvectors=5, batch_size=3, progress=False), basis)
    named = datasets.Dataset.from_dict({"path": [str(path) for path in sorted(folder.rglob("*.png"))]})
    same(fit(pipe, named, num_eigenvectors=5, image_column="path", progress=False), basis)


class Pairs(torch.utils.data.Dataset):
    """Images with labels, as torchvision's datasets give them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.images[place], place


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        yield from self.images


KINDS = {
    "list": lambda table, images, folder: images,
    "tuple of arrays": lambda table, images, folder: tuple(map(np.asarray, images)),
    "array": lambda table, images, folder: np.stack(images),
    "paths": lambda table, images, folder: sorted(folder.rglob("*.png")),
    "bytes": lambda table, images, folder: list(map(png, images)),
    "rows": lambda table, images, folder: [{"image": image, "label": 1} for image in images],
    "column": lambda table, images, folder: table["picture"],
    "inner column": lambda table, images, folder: table.map(lambda row: {"all": {"of": row["picture"]}})["all"]["of"],
    "column of a stream": lambda table, images, folder: table.to_iterable_dataset()["picture"],
    "KeyDataset": lambda table, images, folder: KeyDataset(table, "picture"),
    "KeyDataset of a list": lambda table, images, folder: KeyDataset([{"a": image} for image in images], "a"),
    "DatasetDict": lambda table, images, folder: datasets.DatasetDict(train=table),
    "torch": lambda table, images, folder: Pairs(images),
    "torch stream": lambda table, images, folder: Stream(images),
    "function": lambda table, images, folder: lambda: iter(images),
    "generator function": lambda table, images, folder: Stream(images).__iter__,
    "function that gives rows": lambda table, images, folder: lambda: iter(table.rename_column("picture", "image")),
}


@pytest.fixture(scope="module")
def few(pipe, tmp_path_factory):
    """Four images of one size as a table, a list and a folder, and what they give."""
    images, folder = [photo(60, 90, seed) for seed in range(4)], tmp_path_factory.mktemp("few")
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    table = datasets.Dataset.from_dict({"picture": images}).cast_column("picture", datasets.Image())
    basis = fit(pipe, table, num_eigenvectors=4, batch_size=2, progress=False)
    return (table, images, folder), basis, transform(pipe, table, basis, progress=False)["eigenvectors"][:]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_bits_read_ahead_or_not(pipe, few, tmp_path, kind):
    forms, expected, eigenvectors = few
    dataset, before = KINDS[kind](*forms), threading.active_count()
    settings = {"num_eigenvectors": 4, "batch_size": 2, "progress": False, "checkpoint_dir": tmp_path}
    found = fit(pipe, dataset, **settings, num_workers=2)
    assert torch.equal(found.eigenvalues, expected.eigenvalues)
    assert all(map(torch.equal, found.projections, expected.projections))
    rows = transform(pipe, dataset, found, num_workers=1, progress=False)
    assert rows["image_id"][:] == list(range(4))
    assert rows["eigenvectors"][:] == eigenvectors
    column = "picture" if "picture" in rows.column_names else "image"
    assert [np.array_equal(*pair) for pair in zip(rows[column], forms[1], strict=True)] == [True] * 4
    # Images are known by their content: the same call only solves, and other images are refused.
    assert torch.equal(fit(pipe, dataset, **settings).eigenvalues, expected.eigenvalues)
    with pytest.raises(
        SpectralError, match="`checkpoint_dir`: expected (the images that it was made|a run of the same)"
    ):
        fit(pipe, forms[1][::-1], **settings)
    assert threading.active_count() == before


def test_a_folder_that_exists_comes_before_the_hub(pipe, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "photos").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(tmp_path / "user" / "photos" / f"{number}.png")
    assert fit(pipe, "user/photos", num_eigenvectors=3, progress=False).num_images == NUM_IMAGES
    with pytest.raises(SpectralError, match="`split`: expected the id of a dataset on the Hub .*beside 'user/photos'"):
        fit(pipe, "user/photos", split="train", progress=False)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_threads_that_read_ahead_end_after_errors_and_interrupts(pipe, images, monkeypatch, num_workers):
    settings = {"num_eigenvectors": 3, "num_workers": num_workers, "progress": False}
    before = threading.active_count()
    broken = [*images[:3], b"no picture", *images[3:]]
    with pytest.raises(SpectralError, match="got image 3: ") as caught:
        fit(pipe, broken, **settings)
    assert threading.active_count() == before
    found, report = fit(pipe, broken, **settings, on_error="skip", return_report=True)
    assert [one.position for one in report.skipped] == [3]
    assert torch.equal(found.eigenvalues, fit(pipe, images, num_eigenvectors=3, progress=False).eigenvalues)

    def failing():
        yield from images[:3]
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        fit(pipe, failing, **settings)
    assert threading.active_count() == before

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe, "records", interrupted)
    for call in (fit, layer_report):
        with pytest.raises(KeyboardInterrupt) as caught:
            call(pipe, images, **settings)
        assert threading.active_count() == before, caught
    assert multiprocessing.active_children() == []


def test_at_most_two_images_per_thread_are_read_ahead(pipe, images):
    given, taken = [], []

    def stream():
        for number, image in enumerate(images * 3):
            given.append(number)
            yield image

    original = pipe.records
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "records", lambda *args: taken.append(len(given)) or original(*args))
        fit(pipe, stream, num_eigenvectors=3, num_workers=1, progress=False)
    assert all(ahead - place <= 3 for place, ahead in enumerate(taken[: 3 * NUM_IMAGES]))


def test_layers_width_and_resolution_arrive(pipe, table):
    found = fit(pipe, table, num_eigenvectors=3, layers=[-2, 2], resolution=128, max_width=40, progress=False)
    assert [layer.index for layer in found.layers] == [1, 2]
    assert sum(layer.kept + 1 for layer in found.layers) <= 40
    assert found.backbone["resolution"] == 128
    assert found.num_nodes == sum(16 * (11 if seed % 2 == 0 else 14) for seed in range(NUM_IMAGES))


def test_one_image_and_identical_images(pipe, table):
    alone = fit(pipe, table.select([0]), num_eigenvectors=3, progress=False)
    copies = fit(pipe, table.select([0] * 4), num_eigenvectors=3, progress=False)
    torch.testing.assert_close(alone.eigenvalues, copies.eigenvalues, atol=1e-5, rtol=0)
    found = transform(pipe, table.select([0] * 3), copies, num_segments=4, progress=False)
    assert found[0]["segmentation"].tobytes() == found[2]["segmentation"].tobytes()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.select([]), {}, "`dataset`: expected at least one image, got none"),
        (lambda table: nothing(table.features), {}, "`dataset`: expected at least one image, got none"),
        (lambda table: nothing(None), {}, "`dataset`: expected at least one image, got none"),
        (lambda table: table.remove_columns("picture"), {}, "among the columns label. Pass image_column"),
        (lambda table: table, {"image_column": "photo"}, "got 'photo', among the columns picture, label"),
        (
            lambda table: datasets.DatasetDict(train=table, test=table),
            {},
            r"`split`: expected one of the splits train, test, got none. Pass split='train'",
        ),
        (lambda table: datasets.DatasetDict(a=table), {"split": "b"}, "one of the splits a, got 'b'. Pass split='a'"),
        (lambda table: table, {"split": "train"}, "`split`: expected the id of a dataset on the Hub beside it"),
        (lambda table: table, {"streaming": True}, "`streaming`: expected the id .* got True beside a Dataset"),
        (
            lambda table: str(Path(__file__).parent),
            {"revision": "v1"},
            "`revision`: expected the id .* got 'v1' beside",
        ),
        (lambda table: [1, 2], {}, "images that can be analyzed, got image 0: `image`: .* a int"),
        (lambda table: [], {}, "`dataset`: expected at least one image, got none"),
        (lambda table: 5, {}, "a folder of pictures, the id of .* got a int"),
        (lambda table: table[0]["picture"], {}, "a list of images.* got a PngImageFile"),
        (lambda table: np.asarray(table[0]["picture"]), {}, "a list of images.* got a ndarray"),
        (lambda table: {"image": table["picture"]}, {}, "a list of images.* got a dict"),
        (lambda table: iter(table), {}, "got a generator, which can be read once. Give a function that returns a new"),
        (lambda table: map(str, "ab"), {}, "got a map, which can be read once"),
        (lambda table: (lambda images: lambda: images)(iter("ab")), {}, "got a function, which can be read once"),
        (lambda table: lambda number: [], {}, "a function that returns an iterator and needs no argument"),
        (lambda table: [{"a": 1, "b": 2}], {}, "`image_column`: expected .* among the columns a, b"),
        (lambda table: table, {"num_workers": -1}, "`num_workers`: expected an integer of at least 0"),
        (lambda table: "nowhere", {}, "got 'nowhere'. Check that the folder exists"),
        (lambda table: table, {"num_eigenvectors": 90}, "`num_eigenvectors`: expected at most the"),
        (lambda table: table, {"num_eigenvectors": 0}, "`num_eigenvectors`: expected an integer of at least 1"),
        (lambda table: table, {"batch_size": 0}, "`batch_size`"),
        (lambda table: table, {"checkpoint_every": 0}, "`checkpoint_every`"),
        (lambda table: table, {"on_error": "ignore"}, "`on_error`: expected 'raise' or 'skip'"),
        (lambda table: table, {"pathway": "both"}, "`pathway`: expected one of 'where', 'what'"),
        (lambda table: table, {"layers": [9], "on_error": "skip"}, "`layers`: expected indices from -3 to 2"),
        (lambda table: table, {"resolution": -1, "on_error": "skip"}, "`resolution`"),
        (lambda table: table, {"max_width": 2}, "`max_width`: expected room"),
    ],
)
def test_mistakes_of_fit_are_named(pipe, table, change, arguments, message):
    with pytest.raises(SpectralError, match=message):
        fit(pipe, change(table), **arguments, progress=False)


def test_a_folder_holds_what_pillow_opens_and_nothing_hidden_or_written_by_us(tmp_path, caplog, monkeypatch):
    forms = {
        "a.jpg": "JPEG",
        "b.avif": "AVIF",
        "c.JFIF": "JPEG",
        "d.jp2": "JPEG2000",
        "e.jpe": "JPEG",
        "f.webp": "WEBP",
    }
    forms |= {
        "below/g.tif": "TIFF",
        "below/.h.png": "PNG",
        ".ipynb_checkpoints/a.jpg": "JPEG",
        "__MACOSX/a.jpg": "JPEG",
    }
    forms |= {"._a.jpg": "JPEG", "layers.png": "PNG", "report/layers.png": "PNG", "out/a.pathways.png": "PNG"}
    forms |= {f"out/a.what.{kind}.png": "PNG" for kind in ("eigenvectors", "segmentation", "labels")}
    for name, form in forms.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo().save(tmp_path / name, form)
    for name in ("report/layers.csv", "page.pdf", "page.eps", "film.mpg", "notes"):
        (tmp_path / name).write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "second").symlink_to(tmp_path / "below")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    expected = ["a.jpg", "b.avif", "below/g.tif", "c.JFIF", "d.jp2", "e.jpe", "f.webp", "layers.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)] == expected
    (line,) = caplog.messages
    reasons = (
        "8 pictures; left out: ",
        "4 hidden",
        "5 written by",
        "5 of other types (",
        ".pdf",
        "2 folders that a second",
    )
    assert all(reason in line for reason in (*reasons, "1 links to nothing"))
    monkeypatch.setenv("RANK", "1")
    source = open_source(str(tmp_path), None, None, whole_rows=True)
    assert [find().name for find in source.images(slice(None))] == expected
    assert len(caplog.messages) == 1


def test_an_empty_folder_says_so(pipe, tmp_path):
    with pytest.raises(SpectralError, match="a folder that holds pictures"):
        fit(pipe, tmp_path)


@pytest.fixture
def damaged(folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3b.png").write_bytes((tmp_path / "3.png").read_bytes()[:500])
    (tmp_path / "5b.jpg").write_text("text")
    return tmp_path


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_backbone_of_windows_is_to_blame_for_where_and_no_image_is(table, on_error):
    model = BACKBONES["swin"].model()
    swin = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    with pytest.raises(UnsupportedBackboneError, match="^`pathway`: expected a backbone with at least one layer"):
        fit(swin, table, pathway="where", on_error=on_error)


def test_a_corrupt_image_is_named_or_skipped_in_both_passes(pipe, damaged, basis, tmp_path):
    with pytest.raises(SpectralError, match="3b.png: .*Mend or remove it, or pass on_error='skip'"):
        fit(pipe, damaged, progress=False)
    settings = {"batch_size": 4, "on_error": "skip", "progress": False, "return_report": True}
    found, report = fit(pipe, damaged, num_eigenvectors=5, **settings)
    same(found, basis)
    assert [(one.position, one.name) for one in report.skipped] == [(4, "3b.png"), (7, "5b.jpg")]
    assert "not a picture" in report.skipped[1].reason
    assert str(damaged) not in json.dumps(report.to_dict())
    found = SpectralBasis.from_pretrained(found.save_pretrained(tmp_path / "basis"))
    assert [one.split(":")[0] for one in found.skipped] == ["3b.png", "5b.jpg"]
    assert found.skipped[1] == f"5b.jpg: {report.skipped[1].reason}"
    assert report.num_images == NUM_IMAGES


def test_settings_are_given_by_name_and_a_report_is_frozen(pipe, table, basis):
    for run in (
        lambda: fit(pipe, table, "what"),
        lambda: transform(pipe, table, basis, 3),
        lambda: layer_report(pipe, table, ["what"]),
    ):
        with pytest.raises(TypeError, match="too many positional arguments"):
            run()
    assert "report" not in {*inspect.signature(fit).parameters, *inspect.signature(transform).parameters}
    rows, report = transform(pipe, table, basis, progress=False, return_report=True)
    assert (report.num_images, report.skipped, report.num_processes) == (len(rows), (), 1)
    assert report.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.num_images = 0


def test_corrupt_rows_of_a_table_are_named_by_position(pipe, table, basis):
    encoded = table.cast_column("picture", datasets.Image(decode=False))
    broken = encoded.map(lambda row, index: {"picture": {"bytes": b"no", "path": "a.jpg"}} if index == 2 else row,
                         with_indices=True, features=encoded.features)  # fmt: skip
    broken = broken.cast_column("picture", datasets.Image())
    with pytest.raises(SpectralError, match=r"image 2 \(a.jpg\)"):
        fit(pipe, broken, progress=False)
    found, report = transform(pipe, broken, basis, on_error="skip", progress=False, return_report=True)
    assert found["image_id"][:] == [0, 1, 3, 4, 5, 6]
    assert [one.position for one in report.skipped] == [2]
    with pytest.raises(SpectralError, match="at least one image that can be analyzed, got none of 1: image 0"):
        fit(pipe, broken.select([2]), on_error="skip", progress=False)


def test_a_group_with_one_bad_member_loses_only_that_one(pipe, table, basis, monkeypatch):
    original = pipe.records
    bad = torch.as_tensor(pipe.preprocess(table[1]["picture"])["inputs"]["pixel_values"])

    def records(group, on_record, layers=None):
        if any(torch.equal(one["inputs"]["pixel_values"], bad) for one in group):
            raise SpectralError("model", expected="finite numbers", got="NaN", fix="Leave it out")
        original(group, on_record, layers)

    monkeypatch.setattr(pipe, "records", records)
    settings = {"batch_size": 7, "on_error": "skip", "progress": False, "return_report": True}
    found, report = fit(pipe, table, num_eigenvectors=5, **settings)
    monkeypatch.undo()
    assert [one.position for one in report.skipped] == [1]
    rest = table.select([0, 2, 3, 4, 5, 6])
    same(found, fit(pipe, rest, num_eigenvectors=5, progress=False))


def test_the_basis_knows_its_backbone(pipe, table, basis):
    assert basis.backbone["model_type"] == "dinov2"
    assert basis.backbone["num_layers"] == 3
    other = transformers.pipeline("spectral-pathways", model=build_dinov2(num_channels=3), image_processor=PROCESSOR)
    other.model.config.name_or_path = "somebody/else"
    with pytest.raises(SpectralError, match="the backbone it was fitted on, id=''"):
        transform(other, table, basis)
    with pytest.raises(SpectralError, match="the backbone it was fitted on"):
        transformers.pipeline("spectral-pathways", model=other.model, image_processor=PROCESSOR, basis=basis)


def test_a_backbone_from_a_folder_is_described_without_its_path(tmp_path):
    described = hf_spectral.pipeline(saved_backbone(tmp_path / "secret" / "tiny")).describe_backbone(64)
    assert described["id"] == "tiny"
    assert "secret" not in json.dumps(described)


# ---------------------------------------------------------------------------------- what a dataset shows of itself


def changed(image):
    return image.convert("L").transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def in_batches(change):
    return lambda batch: {**batch, "picture": [change(image) for image in batch["picture"]]}


def with_set_transform(table):
    table = table.select(range(len(table)))
    table.set_transform(in_batches(changed), columns=["picture"])
    return table


VIEWS = {
    "with_transform": (lambda table: table.with_transform(in_batches(changed)), changed),
    "set_transform": (with_set_transform, changed),
    "arrays": (lambda table: table.with_transform(in_batches(lambda image: np.asarray(changed(image)))), changed),
    "encoded": (
        lambda table: table.cast_column("picture", datasets.Image(decode=False)).with_transform(
            in_batches(lambda value: {"bytes": png(changed(Image.open(io.BytesIO(value["bytes"])))), "path": None})
        ),
        changed,
    ),
    "mode": (lambda table: table.cast_column("picture", datasets.Image(mode="L")), lambda image: image.convert("L")),
    "mode of a stream": (
        lambda table: table.cast_column("picture", datasets.Image(mode="L")).to_iterable_dataset(),
        lambda image: image.convert("L"),
    ),
    "map of a stream": (
        lambda table: table.to_iterable_dataset().map(lambda row: {"picture": changed(row["picture"])}),
        changed,
    ),
    "not decoded": (lambda table: table.cast_column("picture", datasets.Image(decode=False)), lambda image: image),
    "tensors": (lambda table: table.with_format("torch"), lambda image: image),
    "tensors of a stream": (lambda table: table.to_iterable_dataset().with_format("numpy"), lambda image: image),
}


def png(image):
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()


@pytest.mark.parametrize("name", VIEWS)
def test_images_are_read_and_stored_as_the_dataset_shows_them(pipe, table, images, name):
    view, change = VIEWS[name]
    expected = datasets.Dataset.from_dict({"picture": [change(image) for image in images]})
    expected = expected.cast_column("picture", datasets.Image())
    found = fit(pipe, view(table), num_eigenvectors=4, progress=False)
    same(found, fit(pipe, expected, num_eigenvectors=4, progress=False), 1e-6)
    rows = transform(pipe, view(table), found, progress=False)
    assert rows["label"][:] == list(range(NUM_IMAGES))
    pictures = rows.cast_column("picture", datasets.Image(mode=rows.features["picture"].mode))["picture"]
    for image, picture, maps in zip(images, pictures, rows["eigenvectors"][:], strict=True):
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(change(image).convert("RGB")))
        again = pipe(picture, basis=found, num_segments=None)["eigenvectors"].numpy() * found.num_nodes**0.5
        np.testing.assert_allclose(np.asarray(maps).reshape(again.shape), again, atol=2e-3)


def test_a_report_sees_what_fit_sees(pipe, table):
    settings = {"num_eigenvectors": 4, "progress": False}
    by_map = layer_report(pipe, table.map(in_batches(changed), batched=True), **settings)
    assert layer_report(pipe, table.with_transform(in_batches(changed)), **settings).rows == by_map.rows
    assert layer_report(pipe, table, **settings).rows != by_map.rows


def test_a_transform_that_gives_no_picture_or_fails_at_one_is_named(pipe, table, basis):
    without = table.with_transform(lambda batch: {"label": batch["label"]})
    with pytest.raises(SpectralError, match="got None, among the columns label. Pass image_column"):
        fit(pipe, without, progress=False)
    renamed = table.with_transform(lambda batch: {"gray": list(map(changed, batch["picture"])), "n": batch["label"]})
    assert transform(pipe, renamed, basis, progress=False)[2]["gray"].mode == "L"
    encoded = table.cast_column("picture", datasets.Image(decode=False))
    broken = encoded.map(lambda row, index: {"picture": {"bytes": b"no", "path": None}} if index == 2 else row,
                         with_indices=True, features=encoded.features)  # fmt: skip
    broken = broken.cast_column("picture", datasets.Image()).with_transform(in_batches(changed))
    with pytest.raises(SpectralError, match="`dataset`: expected images that can be analyzed, got image 2: "):
        fit(pipe, broken, progress=False)
    _, report = fit(pipe, broken, on_error="skip", progress=False, return_report=True)
    assert [one.position for one in report.skipped] == [2]


def test_columns_of_arrays_bytes_names_and_urls_are_read_alike(pipe, images, tmp_path, monkeypatch):
    images = images[::2]
    expected = fit(pipe, datasets.Dataset.from_dict({"image": images}), num_eigenvectors=3, progress=False)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    encoded, timeouts = {f"https://a.b/{number}.png": png(image) for number, image in enumerate(images)}, []
    monkeypatch.setattr(
        "hf_spectral.pipelines.images._downloaded", lambda url, timeout: timeouts.append(timeout) or encoded[url]
    )
    patient = transformers.pipeline("spectral-pathways", model=pipe.model, image_processor=PROCESSOR, timeout=7.0)
    pixels = datasets.Array3D((60, 90, 3), "uint8")
    columns = {
        "arrays": ([np.asarray(image) for image in images], pixels),
        "bytes": (list(map(png, images)), datasets.Value("binary")),
        "names": ([str(tmp_path / f"{number}.png") for number in range(len(images))], datasets.Value("string")),
        "urls": (list(encoded), datasets.Value("string")),
    }
    for values, feature in columns.values():
        table = datasets.Dataset.from_dict({"image": values}, features=datasets.Features({"image": feature}))
        for view in (table, table.to_iterable_dataset()):
            found = fit(patient, view, num_eigenvectors=3, image_column="image", progress=False)
            same(found, expected, 1e-6)
        found = transform(patient, table, expected, image_column="image", progress=False)
        assert found.features["image"] == feature
        assert found["image"][:] == table["image"][:]
    assert set(timeouts) == {7.0}
    encoded["https://a.b/2.png"], table = encoded["https://a.b/1.png"], table.select([0, 1, 2])
    fit(patient, table, num_eigenvectors=3, image_column="image", checkpoint_dir=tmp_path / "state", progress=False)
    encoded["https://a.b/2.png"] = encoded["https://a.b/0.png"]
    with pytest.raises(SpectralError, match=r"`checkpoint_dir`: .* got others: image 2 \(2.png\)"):
        fit(patient, table, num_eigenvectors=3, image_column="image", checkpoint_dir=tmp_path / "state", progress=False)


def test_a_stream_out_of_an_archive_is_read(pipe, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    stream = datasets.load_dataset(
        "imagefolder", data_files=str(tmp_path / "photos.zip"), streaming=True, split="train"
    )
    found = fit(pipe, stream, num_eigenvectors=5, progress=False)
    same(found, fit(pipe, folder, num_eigenvectors=5, progress=False), 1e-6)
    kept = transform(pipe, stream, found, progress=False).cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert (kept["path"], kept["bytes"]) == ("2.png", (folder / "2.png").read_bytes())


def shaken(images):
    """A stream that augments at random, from the fourth image on."""
    noise = np.random.default_rng(0)

    def rows():
        for number, image in enumerate(images):
            yield {"picture": image.rotate(float(noise.uniform(1, 90))) if number >= 3 else image}

    return datasets.IterableDataset.from_generator(rows)


@pytest.mark.parametrize("call", [fit, layer_report])
@pytest.mark.parametrize(
    "view",
    [
        lambda table: shaken(table["picture"]),
        lambda table: table.with_transform(in_batches(lambda image: image.rotate(float(torch.rand(()) * 90)))),
    ],
    ids=["stream", "transform"],
)
def test_a_dataset_that_augments_at_random_is_refused_by_the_first_image_that_differs(pipe, table, call, view):
    with pytest.raises(SpectralError, match=r"others than in the first pass: image [03]\. Turn off random"):
        call(pipe, view(table), num_eigenvectors=3, progress=False)


def test_a_stream_of_other_length_the_second_time_is_refused(pipe, images):
    lengths = [5, 4, 5, 6]

    def rows():
        yield from ({"picture": image} for image in images[: lengths.pop(0)])

    features = datasets.Features({"picture": datasets.Image()})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    with pytest.raises(SpectralError, match="first pass: 4 where there were 5"):
        fit(pipe, stream, progress=False)
    with pytest.raises(SpectralError, match="first pass: image 5, which is one more"):
        fit(pipe, stream, progress=False)


# --------------------------------------------------------------------------------------------------- transform


def test_rows_hold_what_they_promise(pipe, table, images, basis, tmp_path):
    found = transform(pipe, table, basis, num_segments=3, batch_size=4, output_dir=tmp_path / "rows", progress=False)
    added = ["eigenvectors", "shape", "eigenvectors_rgb", "segmentation", "confidence"]
    assert found.column_names == ["image_id", "picture", "label", *added]
    assert found.features["eigenvectors"] == datasets.List(datasets.List(datasets.List(datasets.Value("float16"))))
    numpy = found.with_format("numpy")
    assert found["image_id"][:] == found["label"][:] == list(range(NUM_IMAGES))
    for row, image, arrays in zip(found, images, numpy, strict=True):
        assert row["picture"].tobytes() == image.tobytes()
        assert row["segmentation"].size == image.size
        assert row["segmentation"].mode == "P"
        assert (row["confidence"].size, row["confidence"].mode) == (image.size, "L")
        maps = np.asarray(row["eigenvectors"], dtype=np.float32).reshape(row["shape"])
        expected = pipe(image, basis=basis, num_segments=None)["eigenvectors"].numpy() * basis.num_nodes**0.5
        np.testing.assert_allclose(maps, expected, atol=2e-3)
        assert np.array_equal(arrays["eigenvectors"], maps)
        colors = eigenvectors_to_rgb(maps, basis.eigenvalues, (image.height, image.width), scale=1.0)
        assert (row["eigenvectors_rgb"].mode, row["eigenvectors_rgb"].size) == ("RGB", image.size)
        assert np.abs(np.subtract(colors, row["eigenvectors_rgb"], dtype=float)).mean() < 4  # JPEG.
    values = np.concatenate([np.asarray(row["segmentation"]).ravel() for row in found])
    assert set(np.unique(values)) <= {0, 1, 2}
    again = datasets.load_from_disk(tmp_path / "rows")
    assert again.features == found.features
    assert again[:]["eigenvectors"] == found[:]["eigenvectors"]


def test_the_picture_of_the_eigenvectors_is_small_and_left_out_where_there_are_none(pipe):
    wide = datasets.Dataset.from_dict(
        {"image": [photo(100, 600)]}, features=datasets.Features({"image": datasets.Image()})
    )
    for count in (1, 2):
        found = transform(pipe, wide, fit(pipe, wide, num_eigenvectors=count, progress=False), progress=False)
        assert ("eigenvectors_rgb" in found.column_names) == (count > 1)
    assert found[0]["eigenvectors_rgb"].size == (256, 43)


def test_the_same_number_means_the_same_thing_in_every_image(pipe, table, basis):
    found = transform(pipe, table, basis, num_segments=3, dtype="float32", progress=False)
    again = transform(pipe, table, basis, num_segments=3, dtype="float32", batch_size=5, progress=False)
    for row, other in zip(found, again, strict=True):
        labels = np.asarray(row["segmentation"])
        assert np.mean(labels == np.asarray(other["segmentation"])) > 0.99
        maps = torch.tensor(row["eigenvectors"]).reshape(row["shape"])
        expected, confidence, _ = label_image(maps, basis.clusters, labels.shape)
        assert np.array_equal(labels, expected)
        np.testing.assert_allclose(np.asarray(row["confidence"]) / 255, confidence, atol=0.51 / 255)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_kept_basis_gives_any_image_the_cluster_of_the_rows(pipe, table, basis, tmp_path, dtype):
    half = table.select(range(4))
    found = transform(pipe, half, basis, num_segments=3, walk=0.5, dtype=dtype, output_dir=tmp_path, progress=False)
    assert (basis.clusters.num_segments, basis.clusters.walk) == (3, 0.5)
    kept = SpectralBasis.from_pretrained(tmp_path / "basis")
    for row, of_basis in zip(found, [kept, basis] * 2, strict=True):
        labels = np.asarray(row["segmentation"])
        for num_segments in (3, "auto"):
            out = pipe(row["picture"], basis=of_basis, num_segments=num_segments)
            assert np.mean(np.asarray(out["segmentation"]) == labels) > 0.99
            np.testing.assert_allclose(255 * out["confidence"], row["confidence"], atol=2 if dtype == "float32" else 20)
            assert {one["label"] for one in out["segments"]} == {f"cluster {index}" for index in np.unique(labels)}
    # Images that were not clustered, by the pipeline and by transform.
    others = table.select(range(4, NUM_IMAGES))
    rows_of_others = transform(pipe, others, kept, num_segments="auto", dtype=dtype, batch_size=2, progress=False)
    for row in rows_of_others:
        out = pipe(row["picture"], basis=basis)
        assert np.mean(np.asarray(out["segmentation"]) == np.asarray(row["segmentation"])) > 0.99
    # Another number cuts this picture alone.
    alone = pipe(table[0]["picture"], basis=kept, num_segments=2)
    assert {one["label"] for one in alone["segments"]} == {"segment 0", "segment 1"}


def test_clusters_take_eigenvectors_by_the_images_that_the_basis_was_fitted_on(pipe, table):
    few = fit(pipe, table.select(range(4)), num_eigenvectors=24, progress=False)
    transform(pipe, table, few, num_segments=3, progress=False)
    assert len(few.clusters.mean) + 1 == leading_eigenvectors(4) == 19
    assert few.config.num_eigenvectors == 24


def test_clusters_do_not_depend_on_those_found_before(pipe, table, basis):
    fresh, used = dataclasses.replace(basis, clusters=None), dataclasses.replace(basis, clusters=None)
    transform(pipe, table, used, num_segments=2, walk=0.2, progress=False)
    for one in (fresh, used):
        transform(pipe, table, one, num_segments=3, progress=False)
    assert torch.equal(fresh.clusters.centers, used.clusters.centers)
    assert fresh.clusters.walk == used.clusters.walk == 0.9


def test_a_folder_becomes_rows_with_the_pictures_inside(pipe, folder, basis, tmp_path):
    found = transform(pipe, folder, basis, output_dir=tmp_path, progress=False)
    assert found["file_name"][:] == ["2.png", "3.png", "4.png", "5.png", "6.png", "below/0.png", "below/1.png"]
    assert "segmentation" not in found.column_names
    encoded = found.cast_column("image", datasets.Image(decode=False))[5]["image"]
    assert encoded == {"bytes": (folder / "below" / "0.png").read_bytes(), "path": "0.png"}
    assert all(str(folder).encode() not in path.read_bytes() for path in tmp_path.glob("*.arrow"))


def test_streams_keep_columns_and_a_column_image_id_stays(pipe, table, basis):
    named = table.rename_column("label", "image_id").to_iterable_dataset()
    found = transform(pipe, named, basis, progress=False)
    assert found["image_id"][:] == list(range(NUM_IMAGES))
    assert found.features["image_id"] == datasets.Value("int64")


def test_strength_of_the_diffusion_arrives(pipe, table, basis):
    off = transform(pipe, table, basis, walk=0, dtype="float32", progress=False)
    expected = basis.num_nodes**0.5 * pipe(table[0]["picture"], basis=basis, walk=0)["eigenvectors"]
    np.testing.assert_allclose(off[0]["eigenvectors"], expected.numpy(), atol=1e-4)


def test_float16_holds_a_basis_of_any_number_of_images(pipe, table, basis):
    # Over a million images a unit eigenvector's entries fall below the normal numbers of float16.
    found = np.asarray(transform(pipe, table, basis, progress=False)[0]["eigenvectors"])
    assert 0.1 < np.abs(found).max() < 100


def test_many_parts_and_many_segments(pipe, table, basis, monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "PART_ROWS", 2)
    monkeypatch.setattr(semantic, "SAMPLE_TOKENS", 200)
    found = transform(pipe, table, basis, num_segments=300, output_dir=tmp_path, progress=False)
    assert len(list(tmp_path.glob("data-*.arrow"))) == 4
    assert found[0]["segmentation"].mode == "I;16"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("failing_call", [4, 7])
def test_a_full_disk_leaves_what_was_written_readable(pipe, table, basis, monkeypatch, tmp_path, failing_call):
    original, calls = rows.write_part, []

    def write_part(table, path):
        calls.append(path)
        if len(calls) >= failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(table, path)

    monkeypatch.setattr(rows, "PART_ROWS", 2)
    monkeypatch.setattr(rows, "write_part", write_part)
    with pytest.raises(SpectralError, match=r"`output_dir`: .*No space left on device.*load_from_disk"):
        transform(pipe, table, basis, num_segments=3, output_dir=tmp_path, progress=False)
    left = datasets.load_from_disk(tmp_path)
    assert len(left) == (4 if failing_call == 4 else NUM_IMAGES)
    assert left[3]["image_id"] == 3
    assert left[3]["picture"].size == (90, 76)
    assert not list(tmp_path.glob("*.partial"))


def test_an_error_leaves_the_rows_before_it_readable(pipe, damaged, basis, tmp_path):
    with pytest.raises(SpectralError, match="3b.png"):
        transform(pipe, damaged, basis, output_dir=tmp_path / "rows", progress=False)
    assert datasets.load_from_disk(tmp_path / "rows")["file_name"][:] == ["0.png", "1.png", "2.png", "3.png"]


def test_an_impatient_user_keeps_the_rows(pipe, table, basis, monkeypatch, tmp_path):
    original, calls = pipe.records, []

    def records(*arguments):
        calls.append(None)
        if len(calls) > 3:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(pipe, "records", records)
    with pytest.raises(KeyboardInterrupt):
        transform(pipe, table, basis, output_dir=tmp_path, progress=False)
    assert len(datasets.load_from_disk(tmp_path)) == 3


def test_killed_before_its_first_rows_a_folder_is_readable_and_can_be_written_anew(pipe, table, basis, tmp_path):
    script = """if True:
        import os, sys
        from tests.dataset.test_dataset_processes import make_pipe
        import datasets
        from hf_spectral import SpectralBasis, transform
        pipe = make_pipe()
        records, calls = pipe.records, []
        pipe.records = lambda *given: os._exit(9) if calls else calls.append(records(*given))
        table = datasets.load_from_disk(sys.argv[1])
        transform(pipe, table, SpectralBasis.from_pretrained(sys.argv[2]), output_dir=sys.argv[3], progress=False)"""
    table.save_to_disk(tmp_path / "table")
    basis.save_pretrained(tmp_path / "basis")
    paths = [str(tmp_path / name) for name in ("table", "basis", "rows")]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_spectral.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", script, *paths], env=environment, timeout=120, check=False)
    assert ran.returncode == 9
    assert len(datasets.load_from_disk(tmp_path / "rows")) == 0
    found = transform(pipe, table, basis, output_dir=tmp_path / "rows", progress=False)
    assert len(found) == len(datasets.load_from_disk(tmp_path / "rows")) == NUM_IMAGES
    with pytest.raises(SpectralError, match="`output_dir`: .*which holds files"):
        transform(pipe, table, basis, output_dir=tmp_path / "rows", progress=False)


def test_a_folder_in_which_another_transform_is_writing_is_refused(pipe, table, basis, tmp_path):
    with (
        rows.output_folder(tmp_path, datasets.Features({"a": datasets.Value("int64")})),
        pytest.raises(SpectralError, match="where another process is writing"),
    ):
        transform(pipe, table, basis, output_dir=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_written_is_found_before_any_picture_is_read(pipe, table, basis, tmp_path, name):
    (tmp_path / "taken").write_text("a file")
    reader = copy.copy(pipe)
    reader.preprocess = reader.records = None
    with pytest.raises(SpectralError, match="`output_dir`: expected a folder that can be written"):
        transform(reader, table, basis, output_dir=tmp_path / name, progress=False)
    with pytest.raises(SpectralError, match="`checkpoint_dir`: expected a folder that can be written"):
        fit(reader, table, checkpoint_dir=tmp_path / name, progress=False)


def test_a_temporary_folder_lives_as_long_as_its_rows(pipe, table, basis, damaged, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    left = lambda: gc.collect() and None or list((tmp_path / "temporary").glob("hf-spectral-*"))  # noqa: E731
    deleted = datasets.Dataset.__new__(datasets.Dataset)  # As the collector meets one that has lost its table.
    found = transform(pipe, table, basis, progress=False)
    assert len(left()) == 1
    some = found.select([3, 1])
    del found
    assert len(left()) == 1
    numbers = some.map(lambda row: {"label": row["label"] + 1})
    del some
    assert len(left()) == 1
    assert numbers["label"][:] == [4, 2]
    del numbers
    assert not left()
    assert not hasattr(deleted, "_data")
    with pytest.raises(SpectralError):
        transform(pipe, damaged, basis, progress=False)
    assert not left()


@pytest.mark.parametrize("first", [None, [], {"a": None}], ids=["null", "empty list", "inner null"])
def test_a_column_whose_first_values_are_none_keeps_the_later_ones(pipe, images, basis, first):
    later = {"list": ["x"], "dict": {"a": "x"}}.get(type(first).__name__, "x")

    def stream():
        for number in range(20):
            yield {"picture": images[number % NUM_IMAGES], "caption": first if number < 12 else later}

    found = transform(pipe, datasets.IterableDataset.from_generator(stream), basis, progress=False)
    assert found["caption"][:] == [first] * 12 + [later] * 8
    fit(pipe, datasets.IterableDataset.from_generator(stream), num_eigenvectors=2, progress=False)


@pytest.mark.parametrize("other", ["nine", 9.5, [9], None], ids=str)
def test_values_that_do_not_fit_their_column_are_an_error_of_this_package(pipe, images, basis, other):
    def stream():
        for number, image in enumerate(images * 2):
            yield {"picture": image, "caption": number if number < 9 else other}

    if other is None:
        found = transform(pipe, datasets.IterableDataset.from_generator(stream), basis, progress=False)
        assert found["caption"][:] == [*range(9), *[None] * 5]
        return
    with pytest.raises(SpectralError, match="`dataset`: expected values of one type.*got image 9: .*features="):
        transform(pipe, datasets.IterableDataset.from_generator(stream), basis, progress=False)


def test_a_name_that_is_not_utf_8_is_written_as_escapes(pipe, images, basis, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(png(images[0]))
    (tmp_path / "1.png").write_text("no picture")
    found, report = transform(pipe, tmp_path, basis, on_error="skip", progress=False, return_report=True)
    assert found["file_name"][:] == ["caf\\xe9.png"]
    assert np.array_equal(np.asarray(found[0]["image"]), np.asarray(images[0]))
    (tmp_path / "1.png").unlink()
    with open(path, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(SpectralError, match=r"caf\\xe9.png") as raised:
        fit(pipe, tmp_path, progress=False)
    str(raised.value).encode()


def test_an_image_that_only_the_second_pass_cannot_read_ends_the_fit(pipe, table, monkeypatch):
    original, calls = pipe.preprocess, []

    def preprocess(*arguments, **settings):
        calls.append(None)
        if len(calls) > NUM_IMAGES + 2:
            raise SpectralError("image", expected="a share within reach", got="none", fix="Connect it")
        return original(*arguments, **settings)

    monkeypatch.setattr(pipe, "preprocess", preprocess)
    with pytest.raises(SpectralError, match="image 2: .*The first pass could read it"):
        fit(pipe, table, on_error="skip", progress=False)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.select([]), {}, "at least one image, got none"),
        (lambda table: table.rename_column("label", "shape"), {}, "no columns named eigenvectors, shape.*got shape"),
        (lambda table: table, {"dtype": "int8"}, "`dtype`: expected 'float16' or 'float32'"),
        (lambda table: table, {"num_segments": 0}, "`num_segments`"),
        (lambda table: table, {"num_segments": "auto"}, "expected a number, or a basis that has clusters, got 'auto'"),
        (lambda table: table, {"num_segments": 60_000}, "at most the number of tokens of all images"),
        (lambda table: table, {"walk": 2}, "`walk`"),
        (lambda table: table, {"basis": "nowhere"}, "`basis`: expected a path"),
    ],
)
def test_mistakes_of_transform_are_named(pipe, table, basis, change, arguments, message):
    with pytest.raises(SpectralError, match=message):
        transform(pipe, change(table), **({"basis": basis} | arguments), progress=False)


def test_a_folder_that_holds_files_is_refused(pipe, table, basis, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SpectralError, match="a new or empty folder"):
        transform(pipe, table, basis, output_dir=tmp_path)


def test_without_datasets_the_extra_is_named_and_folders_can_still_be_fitted(pipe, folder, basis, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpectralError, match=r"pip install 'hf-spectral\[datasets\]'"):
        transform(pipe, folder, basis)
    same(fit(pipe, folder, num_eigenvectors=5, progress=False), basis)


def test_bars_show_images_per_second(pipe, table, capsys):
    transform(pipe, table, fit(pipe, table, num_eigenvectors=2), num_segments=2)
    shown = capsys.readouterr().err
    for title in ("fit, pass 1 of 2", "fit, pass 2 of 2", "transform", "segment"):
        assert f"{title}: 100%" in shown
    assert "image/s" in shown


# ------------------------------------------------------------------------------------------ the pipeline with a basis


def test_the_pipeline_with_a_basis(pipe, table, basis, tmp_path):
    basis.save_pretrained(tmp_path)
    with_folder = transformers.pipeline(
        "spectral-pathways", model=pipe.model, image_processor=PROCESSOR, basis=str(tmp_path), num_segments=3
    )
    images = [row["picture"] for row in table]
    outputs = with_folder(images, batch_size=3, return_result=True)
    for output, image in zip(outputs, images, strict=True):
        assert torch.equal(output["eigenvalues"], basis.eigenvalues)
        assert torch.equal(output["residuals"], basis.residuals)
        assert output["segmentation"].size == image.size
        assert output["result"].solver["name"] == "SpectralBasis"
    together = torch.cat([pipe(image, basis=basis, walk=0)["eigenvectors"].flatten(1) for image in images], 1)
    torch.testing.assert_close(together @ together.T, torch.eye(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pathway": "where"}, "`pathway`: expected none beside a basis, which was fitted for 'what', got where"),
        ({"pathway": "both"}, "`pathway`: expected none beside a basis"),
        ({"num_eigenvectors": 3}, "`num_eigenvectors`: expected none beside a basis"),
        ({"solver": "eigen"}, "`solver`: expected none beside a basis"),
        ({"walk": 1}, "`walk`: expected a number from 0"),
    ],
)
def test_settings_of_another_problem_are_refused_beside_a_basis(pipe, basis, arguments, message):
    with pytest.raises(SpectralError, match=message):
        pipe(photo(), basis=basis, **arguments)


def test_diffusion_without_a_basis_is_refused(pipe):
    with pytest.raises(SpectralError, match="`walk`: expected a basis beside it"):
        pipe(photo(), walk=0.5)


def test_a_basis_brings_its_resolution(pipe, table):
    basis = fit(pipe, table, num_eigenvectors=3, resolution=128, progress=False)
    assert pipe(photo(60, 90), basis=basis, num_segments=None)["grid"] == (11, 16)
    assert pipe(photo(60, 90), basis=basis, num_segments=None, resolution=64)["grid"] == (5, 8)
    found = transform(pipe, table, basis, progress=False)
    assert found[0]["shape"] == [3, 11, 16]


def test_layers_and_their_weights_mean_the_same_for_an_image_and_a_dataset(pipe, table):
    settings = {"layers": (1, -1), "layer_weights": [1, 2]}
    result = pipe(photo(), num_eigenvectors=3, return_result=True, **settings)["result"]
    assert result.layer_weights == pytest.approx((1 / 3, 2 / 3))
    basis = fit(pipe, table, num_eigenvectors=3, progress=False, **settings)
    assert [layer.index for layer in basis.layers] == [1, 2]
    assert basis.weights == pytest.approx((1 / 3, 2 / 3))
    sparse = fit(pipe, table, num_eigenvectors=3, progress=False, layer_weights=[0, 1, 2])
    assert [layer.index for layer in sparse.layers] == [1, 2]
    same(sparse, basis)
    for wrong in ([1, 2, 3], {0: 1.0}):
        with pytest.raises(SpectralError, match="^`layer_weights`: expected"):
            pipe(photo(), layers=(1, -1), layer_weights=wrong)
        for on_error in ("raise", "skip"):  # No image is to blame.
            with pytest.raises(SpectralError, match="^`layer_weights`: expected"):
                fit(pipe, table, progress=False, on_error=on_error, layers=(1, -1), layer_weights=wrong)


def test_fit_finds_all_eigenvectors_there_are_up_to_128(pipe, table):
    few = fit(pipe, table.select([0]), progress=False)
    count = len(few.eigenvalues)
    assert 5 < count < 128  # Of one picture's tokens.
    assert few.config.num_eigenvectors == count
    with pytest.raises(SpectralError, match="`num_eigenvectors`: expected at most the"):
        fit(pipe, table.select([0]), num_eigenvectors=128, progress=False)
