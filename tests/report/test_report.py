"""Reports of planted backbones: one layer that knows positions, one that knows identity, one of noise."""

import csv
import dataclasses
import itertools
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_spectral import BasisAccumulator, SpectralConfig, capture_attention, layer_report
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid
from hf_spectral.records import AttentionRecord
from hf_spectral.report import LayerReport, ReportRow, score_layers
from hf_spectral.visualization import heat_maps, layer_chart
from hf_spectral.visualization.palette import SEQUENTIAL
from tests.synthetic import photo, random_record

SETTINGS = {"num_eigenvectors": 4, "num_segments": 16, "num_reference": 7}
SIZE = 12


def directions(count, seed):
    return torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)))[0][:count]


def layer(labels, index, generator, **fields):
    """Tokens of one label point the same way, in query, key and value alike."""
    tokens = 2 * directions(int(labels.max()) + 1, index)[labels.flatten()]
    tokens = tokens + 0.3 * torch.randn(tokens.shape, generator=generator)
    tokens = tokens.view(1, -1, 2, 6).transpose(1, 2).contiguous()
    return AttentionRecord(f"layer.{index}", index, tokens, tokens, tokens, 1.0, TokenGrid(*labels.shape), **fields)


def photos(count=12, batch=1, coarse=False):
    """Three layers: positions (the quarter of the picture), identity (objects in other places each time), noise."""
    generator = torch.Generator().manual_seed(0)
    quarters = torch.arange(4).view(2, 2).repeat_interleave(SIZE // 2, 0).repeat_interleave(SIZE // 2, 1)
    images = []
    for _ in range(count):
        objects = torch.randperm(4, generator=generator).view(2, 2)
        objects = objects.repeat_interleave(SIZE // 2, 0).repeat_interleave(SIZE // 2, 1)
        objects = objects.roll(torch.randint(SIZE, (2,), generator=generator).tolist(), (0, 1))
        if coarse:
            quarters = torch.arange(4).view(2, 2).repeat_interleave(3, 0).repeat_interleave(3, 1)
        noise = random_record(SIZE, SIZE, heads=2, dim=6, seed=len(images), index=2)
        images.append([layer(quarters, 0, generator), layer(objects, 1, generator), noise])
    return [joined(images[start : start + batch]) for start in range(0, count, batch)]


def joined(images):
    parts = [
        {name: torch.cat([getattr(one[i], name) for one in images]) for name in ("query", "key", "value")}
        for i in range(3)
    ]
    return [dataclasses.replace(record, **part) for record, part in zip(images[0], parts, strict=True)]


def by_layer(report, pathway):
    return {row.layer: row for row in report.rows if row.pathway == pathway}


@pytest.fixture(scope="module")
def report():
    images = photos()
    return score_layers(lambda: iter(images), **SETTINGS)


@pytest.mark.parametrize("pathway", ["where", "what"])
def test_each_layer_scores_what_was_planted_in_it(report, pathway):
    rows = by_layer(report, pathway)
    assert list(rows) == [0, 1, 2, None]
    assert rows[0].where_score > 0.8 > 0.2 > rows[0].what_score
    assert rows[1].what_score > 0.6 > 0.3 > rows[1].where_score
    assert max(rows[2].what_score, rows[2].where_score) < 0.2
    assert rows[0].where_score > rows[None].where_score > rows[1].where_score
    assert (rows[1].name, rows[None].name) == ("layer.1", "all")
    assert {(row.num_images, row.num_eigenvectors) for row in rows.values()} == {(12, 3)}


@pytest.mark.parametrize("pathway", ["where", "what"])
def test_weights_are_those_of_a_fit(report, pathway):
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))
    for add in (accumulator.add_sums, accumulator.add_gram):
        for records in photos():
            add(records)
    basis = accumulator.solve(4)
    rows = by_layer(report, pathway)
    weights = {index: rows[index].weight for index in range(3) if rows[index].weight}
    assert weights == pytest.approx(
        {one.index: weight for one, weight in zip(basis.layers, basis.weights, strict=True)}
    )
    assert 2 not in weights  # noise
    assert rows[None].weight is None
    panels = [report.chart(600), dataclasses.replace(report, rows=tuple(without(report.rows))).chart(600)]
    assert not np.array_equal(*map(np.asarray, panels))


def without(rows):
    return (dataclasses.replace(row, weight=None) for row in rows)


def test_batches_and_max_images_change_only_what_is_seen(report):
    images = photos(batch=3)
    batched = score_layers(lambda: iter(images), **SETTINGS)
    for one, two in zip(report.rows, batched.rows, strict=True):
        for name in ("where_score", "what_score", "image_score"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-3)
    first = photos(count=6)
    fewer, expected = (
        score_layers(lambda source=source: iter(source), **SETTINGS, max_images=6)
        for source in (photos(), photos()[:6])
    )
    assert fewer == expected
    assert fewer.rows[0].num_images == len(first)


def test_layers_of_different_resolution_are_reported_as_well():
    images = photos(coarse=True)
    rows = by_layer(score_layers(lambda: iter(images), ["what"], **SETTINGS), "what")
    assert rows[0].where_score > 0.8
    assert rows[1].what_score > 0.6 > 5 * max(rows[0].what_score, rows[2].what_score)
    assert set(rows) == {0, 1, 2, None}


def test_heads_are_layers_of_their_own():
    images = photos()
    generator = torch.Generator().manual_seed(1)
    for records in images:  # The second head of the layer of positions sees them out of order.
        records[0].value[:, 1] = records[0].value[:, 1, torch.randperm(SIZE * SIZE, generator=generator)]
    report = score_layers(lambda: iter(images), ["what"], by_head=True, **SETTINGS)
    assert [(row.layer, row.head) for row in report.rows] == [(i, j) for i in range(3) for j in range(2)] + [
        (None, None)
    ]
    assert report.rows[0].where_score > 0.6 > 0.3 > report.rows[1].where_score
    assert report.chart(600).width == 600


def test_timesteps_are_told_apart():
    images = []
    for records in photos():  # At the second timestep the layers of positions and of identity change places.
        early = [dataclasses.replace(record, timestep=50.0) for record in records]
        places = (records[1], records[0], records[2])
        late = [dataclasses.replace(place, index=index, timestep=150.0) for index, place in enumerate(places)]
        images.append([*early, *late])
    report = score_layers(lambda: iter(images), ["what"], **SETTINGS)
    rows = {(row.layer, row.timestep): row for row in report.rows}
    assert list(rows) == [(i, step) for step in (50.0, 150.0) for i in range(3)] + [(None, None)]
    for early, late in ((0, 1), (1, 0), (2, 2)):
        one, other = rows[early, 50.0], rows[late, 150.0]
        assert one.where_score == pytest.approx(other.where_score, abs=0.01)
        assert one.what_score == pytest.approx(other.what_score, abs=0.01)
    assert rows[0, 50.0].where_score > 0.8 > 0.2 > rows[0, 150.0].where_score
    assert rows[0, 150.0].what_score > 0.6
    pixels = np.asarray(report.chart(900)).astype(int)[:, :450]  # The where-score.
    blue = pixels[:, :, 2] - pixels[:, :, 0]
    first = blue[np.flatnonzero((blue > 60).any(1))[0] + 3]
    assert first[150] > 60 > 30 > first[400]  # Layer 0 finds positions at timestep 50 only.


def test_heads_and_timesteps_give_one_heat_map_a_timestep():
    rows = [
        ReportRow("what", layer, head, step, "layer", 0.1 * head, 0.2, 0.3, 12, 100)
        for step in (50.0, 150.0)
        for layer in range(3)
        for head in range(2)
    ]
    both = LayerReport(tuple(rows)).chart(600)
    one = LayerReport(tuple(rows[:6])).chart(600)
    assert both.height > 1.8 * one.height


def test_windowed_layers_have_no_where():
    images = [[records[0], dataclasses.replace(records[1], windowed=True), records[2]] for records in photos()]
    report = score_layers(lambda: iter(images), **SETTINGS)
    assert list(by_layer(report, "where")) == [0, 2, None]
    assert list(by_layer(report, "what")) == [0, 1, 2, None]


def test_deterministic(report):
    images = photos()
    assert score_layers(lambda: iter(images), **SETTINGS) == report


def test_table_as_csv_and_dataset(report, tmp_path):
    path = report.save_pretrained(tmp_path / "new" / "layers.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["0", "1", "2", ""] * 2
    assert [float(row["where_score"]) for row in rows] == [row.where_score for row in report.rows]
    assert [one.name for one in path.parent.iterdir()] == ["layers.csv"]
    assert report.to_dataset().to_list() == [dataclasses.asdict(row) for row in report.rows]
    assert LayerReport.from_pretrained(path) == report
    folder = report.save_pretrained(tmp_path / "folder")
    assert (folder / "layers.csv").read_bytes() == path.read_bytes()
    assert LayerReport.from_pretrained(folder) == report


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("where_score", "score"),
        lambda text: text.replace("layer.1", "layer.1,0"),
        lambda text: text.replace("where,", "elsewhere,"),
        lambda text: text[: len(text) // 2],
        lambda text: text + "x" * 140_000,  # longer than a cell may be
    ],
)
def test_what_is_no_table_of_a_report_is_refused(report, tmp_path, change):
    path = tmp_path / "layers.csv"
    path.write_text(change(report.save_pretrained(path).read_text()))
    expected = "a table that LayerReport.save_pretrained has written"
    with pytest.raises(SpectralError, match=rf"`path`: expected {expected}, got "):
        LayerReport.from_pretrained(path)
    with pytest.raises(SpectralError, match="No such file"):
        LayerReport.from_pretrained(tmp_path / "none.csv")


def test_messages():
    images = photos(count=4)
    once = iter(images)
    with pytest.raises(SpectralError, match="`images`: expected the same 4 images at every call, got 0 at a later one"):
        score_layers(lambda: once, **SETTINGS)
    orders = itertools.cycle([images, images[::-1]])
    with pytest.raises(SpectralError, match="`images`: expected the same 4 images .* got others at a later one, or an"):
        score_layers(lambda: iter(next(orders)), **SETTINGS)
    with pytest.raises(SpectralError, match="`images`: expected at least 4, got 3"):
        score_layers(lambda: iter(images[:3]), **SETTINGS)
    with pytest.raises(SpectralError, match="`images`: expected at least 4, got 0"):
        score_layers(lambda: iter([]), **SETTINGS)
    with pytest.raises(SpectralError, match="`pathways`: expected 'where', 'what' or both"):
        score_layers(lambda: iter(images), ["who"])
    with pytest.raises(SpectralError, match="`num_eigenvectors`: expected at least 2"):
        score_layers(lambda: iter(images), num_eigenvectors=1)


def colored(picture, color):
    return np.abs(np.asarray(picture).astype(int) - color).sum(-1) < 12


def test_chart_draws_higher_scores_higher(report):
    picture = report.chart(900)
    assert (picture.mode, picture.width) == ("RGB", 900)
    assert np.array_equal(np.asarray(picture), np.asarray(report.chart(900)))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 7}):
        assert np.array_equal(np.asarray(picture), np.asarray(report.chart(900)))  # No settings but its own.
    rising = {"score": {"where": {0: 0.1, 1: 0.5, 2: 0.9, None: 0.5}}}
    rows, columns = np.nonzero(colored(layer_chart(rising, 900), (24, 119, 161)))
    chart = rows > 100  # Below the legend.
    left, right = (rows[chart & near].mean() for near in (columns < 300, (columns > 450) & (columns < 700)))
    assert left > right + 50


def test_chart_tells_pathways_apart_and_leaves_missing_layers_out():
    scores = {"score": {"where": {0: 0.1, 3: 0.2}, "what": {0: 0.3, None: 0.4}, "other": {1: 0.1}}}
    picture = layer_chart(scores)
    for color in ((24, 119, 161), (205, 92, 42), (104, 84, 168)):
        assert colored(picture, color).sum() > 100
    assert layer_chart({"score": {"what": {None: 0.0}}}).width == 1200


CELLS = {"one": {(0, 0): 0.0, (0, 1): 0.5, (0, 2): 1.0, (1, 0): 0.25}}


def cells_of(pixels):
    """Return the mean row and column of the cells of each value, light to dark."""
    values = sorted(CELLS["one"].values())
    colors = [SEQUENTIAL[int(min(255, 256 * value))] for value in values]
    return [np.argwhere((pixels == color).all(-1)).mean(0) for color in colors]


@pytest.mark.parametrize("columns", [1, 2])
def test_cells_of_a_heat_map_lie_in_order_and_are_darker_where_values_are_larger(columns):
    pixels = np.asarray(heat_maps(CELLS, ("layer", "head"), columns, 600))
    zero, quarter, half, one = cells_of(pixels)
    assert zero[1] < half[1] < one[1]
    assert zero[0] == pytest.approx(half[0], abs=2)
    assert one[0] == pytest.approx(half[0], abs=2)
    assert quarter[0] > zero[0] + 10
    assert quarter[1] == pytest.approx(zero[1], abs=2)
    empty = pixels[round(quarter[0]), round(half[1])]
    assert (empty == 255).all()


def test_names_of_columns_stand_below_a_heat_map():
    numbered, named = (
        np.asarray(heat_maps(CELLS, ("layer", "timestep"), 1, 600, names)) for names in ((), ("50", "150", "250"))
    )
    zero, quarter, half, one = cells_of(named)
    rows, columns = np.nonzero((numbered != named).any(-1))
    assert rows.min() > quarter[0]
    assert all(np.abs(columns - middle).min() < 15 for middle in (zero[1], half[1], one[1]))


def test_cells_without_room_for_numbers_have_a_scale_beside_them():
    many = {"one": {(0, column): column / 60 for column in range(60)}}
    pixels = np.asarray(heat_maps(many, ("layer", "head"), 1, 600))
    rows, columns = np.nonzero((pixels == SEQUENTIAL[255]).all(-1))
    assert columns.max() > 540  # Beside the cells, the last of which is the darkest.
    assert not (np.abs(pixels[rows.min() : rows.max(), :500].astype(int) - (40, 44, 52)).sum(-1) < 9).any()


@pytest.mark.parametrize("width", [300, 601, 1199, 2000])
def test_charts_have_the_width_that_is_asked_for(width):
    assert layer_chart({"score": {"what": {0: 0.1, 1: 0.3}}, "other": {}}, width).width == width
    assert heat_maps(CELLS, ("layer", "head"), 3, width).width == width


def test_without_matplotlib_the_message_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: layer_chart({"score": {"what": {0: 0.1}}}), lambda: heat_maps(CELLS, ("layer", "head"))):
        with pytest.raises(SpectralError, match=r"`matplotlib`: .* Run: pip install 'hf-spectral\[charts\]'\.$"):
            call()


def test_chart_messages():
    with pytest.raises(SpectralError, match="`panels`: expected at least one value, all finite, got none"):
        layer_chart({})
    with pytest.raises(SpectralError, match="`maps`: expected at least one value, all finite, got NaN"):
        heat_maps({"a": {(0, 0): float("nan")}}, ("layer", "head"))


def test_a_report_needs_no_images():
    rows = tuple(ReportRow("what", one, None, None, "layer", 0.1, 0.2, 0.3, 12, 100) for one in (0, 1, None))
    assert isinstance(LayerReport(rows).chart(), Image.Image)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        photo(60 + 16 * (number % 2), 90, number).save(folder / f"{number}.png")
    return folder


def table(report):
    return [[row.where_score, row.what_score, row.image_score] for row in report.rows]


def test_a_dataset_is_scored_as_its_records_are(pipe, pictures):
    def images():
        for path in sorted(pictures.iterdir()):
            with capture_attention(pipe.model) as capture:
                pipe.model(**pipe.preprocess(str(path))["inputs"])
            yield capture.records

    expected = score_layers(images, num_eigenvectors=4)
    for settings in ({}, {"batch_size": 4}):
        found = layer_report(pipe, pictures, num_eigenvectors=4, progress=False, **settings)
        np.testing.assert_allclose(table(found), table(expected), atol=1e-4)
    assert found.skipped == ()
    assert found.rows[0].num_images == 6


def test_an_image_is_skipped_in_every_pass_and_listed(pipe, pictures, tmp_path):
    for path in pictures.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "4b.png").write_text("text")
    settings = {"num_eigenvectors": 3, "pathways": ["what"], "progress": False}
    found = layer_report(pipe, tmp_path, on_error="skip", **settings)
    np.testing.assert_allclose(table(found), table(layer_report(pipe, pictures, **settings)), atol=1e-6)
    assert [one.name for one in found.skipped] == ["4b.png"]
    before_it = layer_report(pipe, tmp_path, max_images=4, **settings)
    assert before_it.rows[0].num_images == 4
    with pytest.raises(SpectralError, match=r"4b\.png"):
        layer_report(pipe, tmp_path, **settings)


def test_an_image_that_fails_in_a_later_pass_is_named_even_under_skip(pipe, pictures, monkeypatch):
    read, count = pipe.preprocess, iter(range(100))

    def failing(image, **kwargs):
        if next(count) == 8:
            raise SpectralError("image", expected="a picture", got="none", fix="Mend it")
        return read(image, **kwargs)

    monkeypatch.setattr(pipe, "preprocess", failing)
    with pytest.raises(SpectralError, match=r"2\.png.*The first pass could read it"):
        layer_report(pipe, pictures, num_eigenvectors=3, on_error="skip", progress=False)


def test_a_report_over_a_dataset_refuses_what_it_cannot_do(pipe, pictures, tmp_path):
    with pytest.raises(SpectralError, match="a folder that holds pictures"):
        layer_report(pipe, tmp_path)
    with pytest.raises(SpectralError, match="`max_images`"):
        layer_report(pipe, pictures, max_images=0)
    for number in range(2):
        (tmp_path / f"{number}.png").write_text("text")
    with pytest.raises(SpectralError, match="none of 2: 0.png"):
        layer_report(pipe, tmp_path, on_error="skip", progress=False)
