"""Whole datasets through a denoiser: timesteps as layers of their own, noise of each picture's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from accelerate import cpu_offload
from PIL import Image

import hf_spectral
from hf_spectral import BasisAccumulator, SpectralBasis, SpectralConfig, SpectralError, fit, layer_report, transform
from hf_spectral.cli import main
from tests.pipelines.tiny_diffusion import PIPELINES, RESOLUTION, host_pipeline, spectral
from tests.synthetic import photo

NUM_IMAGES = 4
STEPS = [50, 150, 250]


@pytest.fixture(scope="module")
def images():
    return [photo(60 + 30 * (seed % 2), 90, seed) for seed in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def table(images):
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return folder


def recorded(pipe, group):
    found = []
    pipe.records(group, found.append)
    return found


def assert_same(one: SpectralBasis, other: SpectralBasis, tolerance=1e-4):
    assert one.layers == other.layers
    torch.testing.assert_close(one.eigenvalues, other.eigenvalues, atol=tolerance, rtol=0)
    for mine, theirs in zip(one.projections, other.projections, strict=True):
        torch.testing.assert_close(mine.abs(), theirs.abs(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", PIPELINES)
def test_what_a_picture_gives_does_not_depend_on_its_group(family):
    pipe = spectral(host_pipeline(family)).at([50, 250])
    group = [pipe.preprocess(photo(60, 90, seed), RESOLUTION) for seed in range(3)]
    assert pipe.grouped(group) == [[0, 1, 2]]
    together = recorded(pipe, group)
    assert {record.num_images for record in together} == {3}
    assert {record.timestep for record in together} == {50.0, 250.0}
    for position, prepared in enumerate(group):
        for record, alone in zip(together, recorded(pipe, [prepared]), strict=True):
            assert (record.name, record.index, record.timestep) == (alone.name, alone.index, alone.timestep)
            one = record.image(position)
            for role in ("query", "key", "value"):
                torch.testing.assert_close(getattr(one, role), getattr(alone, role), atol=1e-4, rtol=1e-3)


def test_pictures_of_two_sizes_are_two_groups(sd, images):
    batch = [sd.preprocess(image, RESOLUTION) for image in images]
    assert sd.grouped(batch) == [[0, 2], [1, 3]]


def test_noise_is_of_each_pictures_own_and_of_the_seed(pixels, tmp_path):
    photo().save(tmp_path / "photo.png")
    one, other = pixels.preprocess(photo()), pixels.preprocess(photo(seed=1))
    assert pixels.preprocess(tmp_path / "photo.png")["digest"] == one["digest"] != other["digest"]
    reading = pixels.at(50, seed=3)._reading
    first, again = (torch.randn(4, generator=reading.generator(one["digest"])) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(4, generator=reading.generator(other["digest"])))
    assert not torch.equal(first, torch.randn(4, generator=pixels.at(50, seed=4)._reading.generator(one["digest"])))


@pytest.mark.parametrize("pathway", ["what", "where"])
def test_layers_at_all_timesteps_enter_one_problem_over_the_dataset(sd, table, images, pathway):
    pipe = sd.at(STEPS)
    found = fit(pipe, table, pathway=pathway, num_eigenvectors=4, resolution=RESOLUTION, progress=False)
    assert [layer.key for layer in found.layers] == [(index, float(step)) for step in STEPS for index in range(7)]
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine"))
    captures = [recorded(pipe, [pipe.preprocess(image, RESOLUTION)]) for image in images]
    for records in captures:
        accumulator.add_sums(records)
    for records in captures:
        accumulator.add_gram(records)
    assert_same(found, accumulator.solve(4))


def test_batches_order_and_kind_of_dataset_change_nothing(sd, table, folder):
    pipe = sd.at([50, 250])
    settings = {"num_eigenvectors": 4, "resolution": RESOLUTION, "progress": False}
    expected = fit(pipe, table, **settings)
    assert_same(fit(pipe, table, batch_size=3, **settings), expected)
    assert_same(fit(pipe, table.select(range(NUM_IMAGES - 1, -1, -1)), batch_size=2, **settings), expected)
    assert_same(fit(pipe, folder, batch_size=NUM_IMAGES, num_workers=2, **settings), expected)


def test_two_shards_add_up_to_the_whole(sd, images):
    pipe = sd.at([50, 250])
    captures = [recorded(pipe, [pipe.preprocess(image, RESOLUTION)]) for image in images]

    def accumulated(*shares):
        shards = [BasisAccumulator(SpectralConfig("what", "cosine")) for _ in shares]
        for shard, share in zip(shards, shares, strict=True):
            for records in share:
                shard.add_sums(records)
        for shard in shards[1:]:
            shards[0].merge(shard)
        for records in captures:
            shards[0].add_gram(records)
        return shards[0].solve(4)

    assert_same(accumulated(captures[:2], captures[2:]), accumulated(captures))


def test_two_processes_find_what_one_finds(folder, tmp_path, monkeypatch):
    host_pipeline("sd").save_pretrained(tmp_path / "model")
    words = ["fit", str(folder), "--model", str(tmp_path / "model"), "--device", "cpu", "--num-eigenvectors", "4"]
    words += ["--resolution", str(RESOLUTION), "--timesteps", "50", "250", "--batch-size", "2"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*launch, "-m", "hf_spectral", *words, "--output", str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(Path(hf_spectral.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[:3000]
    assert json.loads((tmp_path / "two" / "fit.json").read_text())["num_processes"] == 2
    assert_same(SpectralBasis.from_pretrained(tmp_path / "two"), SpectralBasis.from_pretrained(tmp_path / "one"))
    # A basis stands for its backbone, read at the timesteps of the fit; a folder is known by its last name.
    monkeypatch.chdir(tmp_path)
    pipe = hf_spectral.pipeline("spectral-pathways", model="one", device="cpu", seed=0)
    expected = hf_spectral.pipeline("model", device="cpu").at([50, 250])(photo(), basis="one")
    assert torch.equal(pipe(photo()).eigenvectors, expected.eigenvectors)
    with pytest.raises(
        SpectralError, match=r"a model of transformers, got one of the diffusion model 'model'\. Load it"
    ):
        transformers.pipeline("spectral-pathways", model="one")


def test_transform_projects_every_picture_and_refuses_another_reading(sd, table, tmp_path):
    pipe = sd.at([50, 250])
    basis = fit(pipe, table, num_eigenvectors=4, resolution=RESOLUTION, progress=False)
    basis.save_pretrained(tmp_path)
    rows = transform(pipe, table, tmp_path, num_segments=3, dtype="float32", batch_size=3, progress=False)
    assert rows["shape"][:] == [[4, 12, 16] if image.size == (90, 60) else [4, 16, 16] for image in table["image"]]
    assert rows[0]["segmentation"].size == (90, 60)
    plain = transform(pipe, table, basis, walk=0, dtype="float32", progress=False)
    for image, row in zip(table["image"], plain, strict=True):
        expected = basis.project(recorded(pipe, [pipe.preprocess(image, RESOLUTION)]), walk=0).eigenvectors
        found = torch.tensor(row["eigenvectors"]).view(row["shape"]) / basis.num_nodes**0.5
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for other, message in (
        (pipe.at([50]), r"timesteps=\[50, 250\], got timesteps=\[50\]"),
        (pipe.at(prompt="a cat"), "prompt='', got prompt='a cat'"),
        (pipe.at(seed=1), "noise_seed=0, got noise_seed=1"),
        (spectral(host_pipeline("dit")), "model_type='UNet2DConditionModel'.*got .*'DiTTransformer2DModel'"),
    ):
        with pytest.raises(SpectralError, match=message):
            transform(other, table, basis, progress=False)


def test_a_backbone_is_described_without_a_path_of_the_machine(tmp_path, pixels):
    host_pipeline("flux").save_pretrained(tmp_path / "flux-tiny")
    pipe = spectral(hf_spectral.pipeline(tmp_path / "flux-tiny", device="cpu")).at([12.5], "a cat", seed=2)
    described = pipe.describe_backbone(64)
    assert described == json.loads(json.dumps(described))
    weights = described.pop("attention_weights")
    assert "transformer_blocks.0.attn.to_q" in weights["projections"]
    assert described == {
        "id": "flux-tiny",
        "revision": None,
        "model_type": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoders": ["CLIPTextModel", "T5EncoderModel"],
        "noise": "flow",
        "timesteps": [12.5],
        "prompt": "a cat",
        "noise_seed": 2,
        "resolution": 64,
    }
    alone = pixels.describe_backbone()
    assert (alone["vae"], alone["text_encoders"], alone["noise"]) == (None, [], "diffusion")


def test_the_commit_of_a_repository_is_told(pixels):
    commit = "0123456789" * 4
    pixels.transformer.register_to_config(_name_or_path=f"/cache/models--a--b/snapshots/{commit}/transformer")
    assert pixels.describe_backbone()["revision"] == commit


def test_at_gives_defaults_to_calls_and_leaves_the_pipeline_as_it_is(sd):
    told = sd.at([50, 250], "a cat", seed=4)
    expected = sd(photo(), timesteps=[50, 250], prompt="a cat", seed=4, resolution=RESOLUTION)
    found = told(photo(), resolution=RESOLUTION, return_result=True)
    assert torch.equal(found.eigenvectors, expected.eigenvectors)
    assert (found.timesteps, found.result.config.seed) == ((50, 250), 4)
    assert told.at(100).describe_backbone()["prompt"] == "a cat"
    assert sd(photo(), resolution=RESOLUTION).timesteps == tuple(STEPS)
    assert told.unet is sd.unet
    assert told(photo(), prompt="", timesteps=50, resolution=RESOLUTION).timesteps == (50,)


def test_a_prompt_is_encoded_once_for_a_whole_dataset(table):
    host = host_pipeline("sd")
    calls = []
    host.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    fit(spectral(host), table, num_eigenvectors=3, resolution=RESOLUTION, progress=False)
    assert len(calls) == 1


def test_a_denoiser_that_is_offloaded_layer_by_layer_gives_the_same(table):
    pipe = spectral(host_pipeline("dit"))
    expected = fit(pipe, table, num_eigenvectors=3, resolution=RESOLUTION, progress=False)
    for model in (pipe.transformer, pipe.vae):
        cpu_offload(model, execution_device="cpu")
    assert pipe.device.type == "meta"
    assert_same(fit(pipe, table, num_eigenvectors=3, resolution=RESOLUTION, progress=False), expected)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda pipe: pipe.at([50, 50]), {}, r"`timesteps`: expected each one once over a dataset, got \[50, 50\]"),
        (lambda pipe: pipe.at([1000]), {}, "`timesteps`: expected integers from 0 to 999"),
        (lambda pipe: pipe.at(prompt="a " * 90), {}, "`prompt`: expected at most 77 tokens"),
        (lambda pipe: pipe, {"layers": [7]}, "`layers`: expected indices from -7 to 6"),
        (lambda pipe: pipe, {"resolution": 0}, "`resolution`: expected an integer of at least 1"),
    ],
)
def test_mistakes_are_named_before_any_picture_is_read(sd, change, settings, message):
    nowhere = datasets.Dataset.from_dict({"path": ["nowhere.png"]})
    with pytest.raises(SpectralError, match=message):
        fit(change(sd), nowhere, image_column="path", progress=False, **settings)


def test_linear_attention_has_no_where_over_a_dataset_either(table):
    pipe = spectral(host_pipeline("sana"))
    for run in (lambda: fit(pipe, table, pathway="where"), lambda: layer_report(pipe, table)):
        with pytest.raises(SpectralError, match="`pathway`: expected 'what' for Sana.*attends linearly"):
            run()
    fit(pipe, table, num_eigenvectors=3, resolution=RESOLUTION, progress=False)


def test_a_report_tells_timesteps_apart(sd, table):
    report = layer_report(
        sd.at([50, 250]),
        table,
        pathways=["what"],
        num_eigenvectors=3,
        resolution=RESOLUTION,
        batch_size=3,
        progress=False,
    )
    parts = [(row.layer, row.timestep) for row in report.rows]
    assert parts == [(index, step) for step in (50.0, 250.0) for index in range(7)] + [(None, None)]
    assert isinstance(report.chart(600), Image.Image)
    assert report.rows[0].name == "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def test_every_command_takes_a_diffusion_model(folder, tmp_path, capsys):
    host_pipeline("dit").save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    small = ["--resolution", str(RESOLUTION), "--timesteps", "50", "250"]

    def run(*words):
        return main([str(word) for word in words])

    assert run("analyze", folder / "0.png", *model, *small, "--output", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["backbone"]["timesteps"] == [50, 250]
    assert summary["backbone"]["model_type"] == "DiTTransformer2DModel"
    assert summary["images"][0]["pathways"]["where"]["num_layers"] == 4
    assert (tmp_path / "out" / "0.pathways.png").exists()

    fitted = [*model, *small, "--num-eigenvectors", 3]
    assert run("fit", folder, *fitted, "--output", tmp_path / "basis") == 0
    rows = ["--basis", tmp_path / "basis", "--num-segments", 2, "--output", tmp_path / "rows"]
    assert run("transform", folder, *model, *rows) == 0
    assert len(datasets.load_from_disk(tmp_path / "rows")) == NUM_IMAGES
    assert run("report", folder, *fitted, "--pathway", "where", "--output", tmp_path / "report") == 0
    said = capsys.readouterr().out
    assert "timestep" in said
    assert "250" in said.split("Table and chart")[0]
    assert (tmp_path / "report" / "layers.png").exists()
    assert run("analyze", folder / "0.png", *model, "--timesteps", "5000") == 2
    assert "`timesteps`: expected integers from 0 to 999" in capsys.readouterr().err


def test_a_call_with_a_basis_gives_what_transform_gives(table, tmp_path):
    pipe = spectral(host_pipeline("dit"))
    basis = fit(pipe, table, num_eigenvectors=4, resolution=RESOLUTION, progress=False)
    basis.save_pretrained(tmp_path)
    row = transform(pipe, table.select([0]), basis, dtype="float32", progress=False)[0]
    image = table[0][pipe.image_column(table.features, table.column_names)]
    for given in (basis, tmp_path):
        found = pipe(image, basis=given, return_result=True).result
        expected = torch.tensor(row["eigenvectors"]).view(row["shape"]) / basis.num_nodes**0.5
        torch.testing.assert_close(found.eigenvectors, expected, atol=1e-5, rtol=1e-3)
        assert found.solver["name"] == "SpectralBasis"
    for settings, message in (
        ({"pathway": "where"}, "`pathway`: expected none beside a basis"),
        ({"num_eigenvectors": 16}, "`num_eigenvectors`: expected none beside a basis"),
        ({"timesteps": [100]}, "timesteps"),
    ):
        with pytest.raises(SpectralError, match=message):
            pipe(image, basis=basis, **settings)
    with pytest.raises(SpectralError, match="`walk`: expected a basis beside it"):
        pipe(image, walk=0.5)
