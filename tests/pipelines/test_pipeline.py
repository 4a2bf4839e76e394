"""The pipeline as users meet it: every kind of input, every backbone, every mistake."""

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessor, Siglip2ImageProcessor

import hf_spectral
from hf_spectral import GradientSolver, SpectralError
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, build_dinov2
from tests.synthetic import photo


@pytest.fixture(scope="module")
def pipe():
    model = BACKBONES["dinov2"].model()
    return transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR, num_eigenvectors=4)


def test_result_has_the_shapes_that_are_promised(pipe):
    output = pipe(photo(), pathway="where", num_segments=3)
    assert output["eigenvectors"].shape == (4, 5, 8)
    assert output["eigenvectors"].dtype == torch.float32
    assert output["grid"] == (5, 8)
    assert output["eigenvalues"].shape == output["residuals"].shape == (4,)
    assert (output["eigenvalues"].diff() >= 0).all()
    assert len(output["layers"]) == 3
    assert output["segmentation"].mode == "P"
    assert output["segmentation"].size == (90, 60)
    assert set(np.unique(output["segmentation"])) == set(range(len(output["segments"])))
    for index, found in enumerate(output["segments"]):
        assert set(found) == {"label", "score", "mask"}
        assert np.array_equal(np.asarray(found["mask"]) == 255, np.asarray(output["segmentation"]) == index)


def test_both_pathways_equal_each_alone(pipe):
    both = pipe(photo(), pathway="both")
    for pathway in ("where", "what"):
        alone = pipe(photo(), pathway=pathway)
        assert torch.equal(both[pathway]["eigenvectors"], alone["eigenvectors"])


def test_no_segmentation_on_request(pipe):
    output = pipe(photo(), num_segments=None)
    assert "segmentation" not in output
    assert "segments" not in output


def test_instances_on_request(pipe):
    output = pipe(photo(), instances=True)
    assert all(found["mask"].size == (90, 60) and 0 <= found["score"] <= 1 for found in output["instances"])


def assert_same(one, other):
    torch.testing.assert_close(one["eigenvectors"], other["eigenvectors"], atol=1e-4, rtol=0)
    assert one["segmentation"].size == other["segmentation"].size


def test_every_kind_of_input_gives_the_same(pipe, tmp_path):
    image = photo()
    path = tmp_path / "photo.png"
    image.save(path)
    expected = pipe(image)
    for source in (str(path), np.asarray(image), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, path):
        assert_same(pipe(source), expected)


def test_lists_batches_and_mixed_sizes_give_the_same_as_one_by_one(pipe):
    images = [photo(60, 90), photo(90, 60), photo(60, 90, seed=1), photo(40, 40), photo(90, 60, seed=2)]
    expected = [pipe(image, pathway="both") for image in images]
    for batch_size in (1, 2, 5):
        found = pipe(images, pathway="both", batch_size=batch_size)
        assert len(found) == 5
        for one, other in zip(found, expected, strict=True):
            assert_same(one["where"], other["where"])
            assert_same(one["what"], other["what"])


def test_an_empty_list_gives_an_empty_list(pipe):
    assert pipe([]) == []


def test_generators_stream(pipe):
    drawn = []

    def generate():
        for seed in range(3):
            drawn.append(seed)
            yield photo(seed=seed)

    outputs = pipe(generate())
    first = next(iter(outputs))
    assert drawn[0] == 0
    assert len(drawn) < 3
    assert_same(first, pipe(photo(seed=0)))


def test_datasets_in_memory_streaming_and_columns(pipe):
    images = [photo(seed=seed) for seed in range(3)]
    expected = [pipe(image) for image in images]
    rows = datasets.Dataset.from_dict({"picture": images, "label": [0, 1, 2]}).cast_column("picture", datasets.Image())
    for inputs in (rows, rows["picture"], rows.to_iterable_dataset()):
        found = list(pipe(inputs))
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_a_dataset_without_an_image_column_lists_its_columns(pipe):
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(SpectralError, match="among the columns text, label.*Pass image_column"):
        pipe(rows)


def test_the_short_door_is_the_same_pipeline(tmp_path):
    model = build_dinov2()
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    short = hf_spectral.pipeline(str(tmp_path), num_eigenvectors=3)
    idiom = transformers.pipeline("spectral-pathways", model=str(tmp_path), num_eigenvectors=3)
    loaded = hf_spectral.pipeline(transformers.AutoModel.from_pretrained(tmp_path), num_eigenvectors=3)
    for other in (idiom, loaded):
        assert_same(short(photo()), other(photo()))


def test_device_map_and_half_precision(tmp_path):
    model = BACKBONES["dinov2"].model()
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    full = hf_spectral.pipeline(str(tmp_path), device_map="cpu")(photo())
    half = hf_spectral.pipeline(str(tmp_path), dtype=torch.bfloat16)(photo())
    assert half["eigenvectors"].dtype == torch.float32
    torch.testing.assert_close(half["eigenvalues"], full["eigenvalues"], atol=0.05, rtol=0)


@pytest.mark.parametrize("family", sorted(BACKBONES))
def test_every_family_from_picture_to_segments(family):
    tiny = BACKBONES[family]
    model = tiny.model()
    if family == "siglip2_naflex":
        processor = Siglip2ImageProcessor(patch_size=8)
    else:
        processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=processor, num_eigenvectors=4)
    output = pipe(photo(), pathway="what", num_segments=3)
    assert torch.isfinite(output["eigenvectors"]).all()
    assert output["segmentation"].size == (90, 60)


def test_layers_from_either_end(pipe):
    assert pipe(photo(), layers=[-1])["layers"] == pipe(photo(), layers=[2])["layers"]
    assert len(pipe(photo(), layers=[0, -1])["layers"]) == 2


def test_resolution_is_the_longer_side(pipe):
    assert pipe(photo(), resolution=128)["grid"] == (11, 16)
    assert pipe(photo(300, 3), resolution=64)["grid"] == (8, 1)


def test_a_fixed_backbone_is_fed_its_size():
    tiny = BACKBONES["sam_vision"]
    pipe = transformers.pipeline("spectral-pathways", model=tiny.model(), image_processor=PROCESSOR, num_eigenvectors=3)
    size = pipe.model.config.image_size
    assert pipe(photo())["grid"][0] == pipe(photo())["grid"][1]
    with pytest.raises(SpectralError, match=f"this backbone reads {size} x {size} pixels only"):
        pipe(photo(), resolution=size + 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pathway": "how"}, "`pathway`: expected one of 'where', 'what'"),
        ({"solver": "magic"}, "`solver`: expected one of 'eigen', 'gradient'"),
        ({"layers": [7]}, r"`layers`: expected indices from -3 to 2"),
        ({"resolution": 0}, "`resolution`: expected an integer of at least 1"),
        ({"num_eigenvectors": 41}, "at most the number of tokens, 5 x 8 = 40"),
        ({"num_segments": 0}, "`num_segments`"),
        ({"num_segments": 1000}, "`num_segments`"),
        ({"number_of_segments": 3}, "`number_of_segments`: expected one of the arguments"),
        ({"pathway": "both", "affinity": "attention"}, "one that serves the 'what' pathway"),
        (
            {"affinity": "cosine", "temperature": 0.01},
            r"`temperature`: expected none beside affinity=Cosine\(\), got 0",
        ),
        (
            {"pathway": "where", "num_neighbors": 5},
            r"`num_neighbors`: expected none beside affinity=Attention",
        ),
        ({"pathway": "both", "threshold": 0.2}, r"beside affinity=Attention\(\) and Exponential.*affinity='knn'"),
        ({"affinity": hf_spectral.NearestNeighbors(5), "temperature": 0.2}, "`temperature`: expected none"),
        ({"temperature": 0}, "`temperature`: expected a number from 0.0001 to 10000, got 0"),
    ],
)
def test_mistakes_are_named(pipe, arguments, message):
    with pytest.raises(SpectralError, match=message):
        pipe(photo(), **arguments)


def test_an_affinity_by_name_with_parameters_is_the_object(pipe):
    short = pipe(photo(), pathway="both", temperature=0.2, return_result=True)
    assert short["where"]["result"].config.affinity == hf_spectral.Attention()
    assert short["what"]["result"].config.affinity == hf_spectral.Exponential(0.2)
    first, second = (
        pipe(photo(), affinity=affinity, return_result=True, **parameters)["result"]
        for affinity, parameters in (("knn", {"num_neighbors": 5}), (hf_spectral.NearestNeighbors(5), {}))
    )
    assert first.config == second.config
    assert torch.equal(first.eigenvectors, second.eigenvectors)


def test_gradient_solver_by_name_and_by_object(pipe):
    solver = GradientSolver(max_steps=5, accumulation_steps=1, hidden_channels=8)
    output = pipe(photo(), solver=solver, return_result=True)
    assert output["result"].solver["max_steps"] == 5


def test_nan_weights_are_named():
    model = BACKBONES["dinov2"].model()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    broken = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    with pytest.raises(SpectralError, match="NaN"):
        broken(photo())


def test_a_constant_picture_gives_finite_eigenvectors(pipe):
    for pathway in ("where", "what"):
        output = pipe(Image.new("RGB", (90, 60), "gray"), pathway=pathway)
        assert torch.isfinite(output["eigenvectors"]).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (3, 500)])
def test_extreme_sizes(pipe, size):
    output = pipe(Image.new("RGB", size, "red"), num_eigenvectors=2)
    assert output["segmentation"].size == size


def test_models_without_attention_are_refused_by_name():
    model = transformers.ConvNextModel(transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8]))
    with pytest.raises(hf_spectral.UnsupportedBackboneError, match="ConvNextModel.*no self-attention"):
        hf_spectral.pipeline(model, image_processor=PROCESSOR)


def test_a_model_object_without_a_processor_says_so():
    with pytest.raises(Exception, match="image processor"):
        hf_spectral.pipeline(build_dinov2())
