"""`hf_spectral.pipeline` finds out whose a model is: folders, the cache, the Hub, objects, and neither."""

import functools
import http.server
import json
import shutil
import sys
import threading
import time

import diffusers
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError

import hf_spectral
from hf_spectral import SpectralError, SpectralPathwaysPipeline, UnsupportedBackboneError
from hf_spectral.pipelines import host_of
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.tiny_backbones import PROCESSOR, build_bert, build_convnext, build_dinov2
from tests.families.tiny_denoisers import build_unet
from tests.pipelines.tiny_diffusion import PIPELINES, host_pipeline
from tests.synthetic import photo

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    build_dinov2().save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    host_pipeline("dit").save_pretrained(folder)
    return folder


def use_hub(monkeypatch, endpoint):
    template = endpoint + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch):
    """A server that knows a diffusers and a transformers repository, and counts what it is asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.answer()

        def do_GET(self):
            self.answer()
            self.wfile.write(b"{}")

        def answer(self):
            found = self.path.startswith("/someone/diffusion/")
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", '"1"')
                self.send_header("Content-Length", "2")
            else:
                missing = "EntryNotFound" if self.path.startswith("/someone/vision/") else "RepoNotFound"
                self.send_header("X-Error-Code", missing)
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_folders_give_the_pipeline_of_their_host(transformers_folder, diffusers_folder):
    vision = hf_spectral.pipeline(transformers_folder, num_eigenvectors=3, device="cpu")
    assert isinstance(vision, SpectralPathwaysPipeline)
    assert vision(photo())["eigenvectors"].shape[0] == 3
    diffusion = hf_spectral.pipeline(str(diffusers_folder), device="cpu", dtype=torch.bfloat16)
    assert isinstance(diffusion, SpectralDiffusionPipeline)
    assert diffusion.dtype == torch.bfloat16
    assert diffusion(photo(), num_eigenvectors=3).eigenvectors.shape == (3, 8, 8)


@pytest.mark.parametrize("family", PIPELINES)
def test_pipelines_and_models_are_taken_as_they_are(family):
    host = host_pipeline(family)
    found = hf_spectral.pipeline(host)
    assert isinstance(found, SpectralDiffusionPipeline)
    assert found.denoiser is (getattr(host, "unet", None) or host.transformer)
    assert isinstance(hf_spectral.pipeline(found), SpectralDiffusionPipeline)


def test_a_transformers_model_is_a_transformers_model():
    assert isinstance(
        hf_spectral.pipeline(build_dinov2(), image_processor=PROCESSOR, device="cpu"), SpectralPathwaysPipeline
    )


@pytest.mark.parametrize(("kind", "folder"), [("transformers", 0), ("diffusers", 1)])
def test_the_task_may_come_first_as_in_transformers(kind, folder, transformers_folder, diffusers_folder):
    folder = (transformers_folder, diffusers_folder)[folder]
    for make in (
        lambda: hf_spectral.pipeline("spectral-pathways", model=folder, device="cpu"),
        lambda: hf_spectral.pipeline("spectral-pathways", folder, device="cpu"),
        lambda: hf_spectral.pipeline(task="spectral-pathways", model=folder, device="cpu"),
        lambda: hf_spectral.pipeline(model=folder, device="cpu"),
    ):
        assert isinstance(make(), SpectralPathwaysPipeline if kind == "transformers" else SpectralDiffusionPipeline)
    with pytest.raises(
        SpectralError, match="`task`: expected 'spectral-pathways' beside a model, got depth-estimation"
    ):
        hf_spectral.pipeline("depth-estimation", model=folder)


def test_the_hub_is_asked_small_questions_and_not_again(hub, tmp_path):
    for _ in range(2):
        assert host_of("someone/diffusion", cache_dir=tmp_path) == "diffusers"
        assert host_of("someone/vision", revision="v2", cache_dir=tmp_path) == "transformers"
        assert hub == [
            "/someone/diffusion/resolve/main/model_index.json",
            "/someone/vision/resolve/v2/model_index.json",
            "/someone/vision/resolve/v2/config.json",
        ]
    with pytest.raises(SpectralError, match="`model`: expected a repository or folder of transformers or diffusers"):
        host_of("someone/nothing", cache_dir=tmp_path)
    assert len(hub) == 4


def _cached(folder, repository, name, text):
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "snapshots" / COMMIT / name).write_text(text)


def test_the_cache_answers_without_the_hub(hub, tmp_path, monkeypatch):
    _cached(tmp_path, "a/diffusion", "model_index.json", "{}")
    _cached(tmp_path, "a/vision", "config.json", '{"model_type": "dinov2"}')
    assert host_of("a/diffusion", cache_dir=tmp_path) == "diffusers"
    assert host_of("a/vision", cache_dir=tmp_path) == "transformers"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SpectralError, match="without the Hub, give a folder"):
        host_of("someone/diffusion", cache_dir=tmp_path)
    assert hub == []


def test_without_the_hub_the_message_says_what_to_do(monkeypatch):
    use_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # The host tries again after a while.
    with pytest.raises(SpectralError, match=r"'someone/diffusion' \(.*without the Hub, give a folder"):
        hf_spectral.pipeline("someone/diffusion")


def test_what_belongs_to_neither_host_is_refused(tmp_path, diffusers_folder):
    with pytest.raises(SpectralError, match="a folder with neither model_index.json nor config.json"):
        hf_spectral.pipeline(tmp_path)
    with pytest.raises(SpectralError, match=r"`model`: .*got 'no/such/name'"):
        hf_spectral.pipeline("no/such/name")  # No name of a repository.
    with pytest.raises(SpectralError, match=r"got 'Linear' \(an object of neither\)"):
        hf_spectral.pipeline(torch.nn.Linear(1, 1))
    with pytest.raises(SpectralError, match="a whole diffusers pipeline.*which holds a DiTTransformer2DModel alone"):
        hf_spectral.pipeline(diffusers_folder / "transformer")
    with pytest.raises(SpectralError, match=r"got UNet2DConditionModel\. Give the pipeline"):
        hf_spectral.pipeline(build_unet())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpectralError, match=r"its config\.json cannot be read"):
        hf_spectral.pipeline(tmp_path)


def refusal_of(make):
    with pytest.raises(SpectralError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        1,
        1.5,
        True,
        [],
        {},
        (),
        b"x",
        "",
        "a\0b",
        "x" * 300,
        build_dinov2,
        type(build_dinov2()),
        torch.zeros(3),
        PROCESSOR,
    ],
)
def test_what_is_no_model_is_refused_in_one_line(model):
    assert refusal_of(lambda: hf_spectral.pipeline(model)).startswith("`model`: expected ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "nonsense"}'),
        ("config.json", '{"model_type": "dinov2", "hidden_size": "abc"}'),
        ("config.json", '{"model_type": "bert"}'),
        ("model.safetensors", "damaged" * 20),
        ("model.safetensors", None),
        ("preprocessor_config.json", "{"),
        ("preprocessor_config.json", None),
        ("model_index.json", "{"),
        ("model_index.json", '{"_class_name": "Nonsense"}'),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(transformers_folder, tmp_path, name, text):
    folder = shutil.copytree(transformers_folder, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    said = refusal_of(lambda: hf_spectral.pipeline(folder, device="cpu"))
    assert said.startswith("`image_processor`: " if name.startswith("preprocessor") else "`model`: expected ")


@pytest.mark.parametrize("device", ["cuda:99", "x", "", -5, 99, 1.5, [], {}, "meta", float("nan"), 10**30, object()])
def test_what_is_no_device_of_this_machine_is_refused_at_both_doors(transformers_folder, device):
    expected = "`device`: expected a device of this machine, such as 'cpu', 'cuda:0' or 'mps', got "
    assert refusal_of(lambda: hf_spectral.pipeline(transformers_folder, device=device)).startswith(expected)
    settings = {"model": build_dinov2(), "image_processor": PROCESSOR, "device": device}
    assert refusal_of(lambda: transformers.pipeline("spectral-pathways", **settings)).startswith(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")
def test_cuda_without_cuda_is_refused(transformers_folder, diffusers_folder):
    for folder in (transformers_folder, diffusers_folder):
        assert "got 'cuda' (" in refusal_of(lambda folder=folder: hf_spectral.pipeline(folder, device="cuda"))


def test_arguments_of_the_call_are_defaults_of_a_diffusers_pipeline(diffusers_folder):
    pipe = hf_spectral.pipeline(diffusers_folder, device="cpu", num_eigenvectors=3, num_segments=None, seed=5)
    found = pipe(photo(), return_result=True)
    assert (found.eigenvectors.shape[0], found.segmentation, found.result.config.seed) == (3, None, 5)
    assert pipe(photo(), num_eigenvectors=4).eigenvectors.shape[0] == 4
    with pytest.raises(SpectralError, match="`num_eigenvectors`: expected an integer of at least 1"):
        hf_spectral.pipeline(diffusers_folder, device="cpu", num_eigenvectors=0)


def test_without_diffusers_the_pip_line_is_named(diffusers_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in [name for name in sys.modules if name.startswith("hf_spectral.pipelines.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SpectralError, match=r"pip install 'hf-spectral\[diffusers\]'"):
        hf_spectral.pipeline(diffusers_folder)


def test_a_config_of_another_kind_is_left_to_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "other"}))
    assert host_of(tmp_path) == "transformers"
    assert host_of(None) == "transformers"
    assert host_of(transformers.Dinov2Config()) == "transformers"


def _poisoned(folder, **changes):
    """Make every file of weights unreadable, and change entries of JSON files by their paths."""
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(b"poison")
    for path, entries in changes.items():
        file = folder / f"{path.replace('__', '/')}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_index": {"unet": ["diffusers", "UNet3DConditionModel"]}},
            "one of .*UNet2D.*, got UNet3DConditionModel",
        ),
        ({"model_index": {"unet": ["diffusers", "UNetOfTomorrow"]}}, "one of .*UNet2D.*, got UNetOfTomorrow"),
        ({"model_index": {"unet": [None, None]}}, r"StableDiffusionPipeline \(it has neither a `unet` nor a `transf"),
        ({"unet__config": {"encoder_hid_dim": 4096}}, r"UNet2DConditionModel \(it is.*encoder_hid_dim=4096\)"),
        (
            {"unet__config": {"class_embed_type": "projection"}},
            r"UNet2DConditionModel.*class_embed_type='projection'",
        ),
        # Inpainting, editing and depth.
        (
            {"unet__config": {"in_channels": 9}},
            r"UNet2DConditionModel \(its input holds 5 more channels than the 4",
        ),
        (
            {"unet__config": {"in_channels": 8}},
            r"UNet2DConditionModel \(its input holds 4 more channels than the 4",
        ),
        (
            {"unet__config": {"in_channels": 5}},
            r"UNet2DConditionModel \(its input holds 1 more channels than the 4",
        ),
        (
            {"unet__config": {"in_channels": 9, "out_channels": 9}},
            "expected latents of 9 channels.*got 4 channels from",
        ),
    ],
)
@pytest.mark.parametrize("load", [hf_spectral.pipeline, SpectralDiffusionPipeline.from_pretrained])
def test_an_unsupported_denoiser_is_refused_before_its_weights(load, changes, message, tmp_path):
    host_pipeline("sd").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match=message):
        load(_poisoned(tmp_path, **changes))
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UnsupportedBackboneError, match=message):
        load(str(tmp_path))


def test_a_supported_denoiser_is_loaded_and_given_parts_stand_in_for_the_repository(tmp_path):
    host_pipeline("sd").save_pretrained(tmp_path)
    _poisoned(tmp_path / "unet", config={"in_channels": 9})
    given = {"unet": build_unet()}
    assert SpectralDiffusionPipeline.from_pretrained(tmp_path, **given).denoiser is given["unet"]
    with pytest.raises(UnsupportedBackboneError, match="got UNet1DModel"):
        SpectralDiffusionPipeline.from_pretrained(tmp_path, unet=diffusers.UNet1DModel(block_out_channels=(32,) * 3))
    with pytest.raises(SpectralError, match="`vae`: expected the VAE whose latents of 4 channels"):
        SpectralDiffusionPipeline.from_pretrained(tmp_path, vae=None, **given)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (build_bert, r"BertModel \(no vision tower: takes no pixel_values\)"),
        (build_convnext, r"ConvNextModel \(no self-attention"),
    ],
)
def test_an_unsupported_backbone_is_refused_before_its_weights(build, message, tmp_path):
    build().save_pretrained(tmp_path)
    _poisoned(tmp_path)
    for load in (hf_spectral.pipeline, functools.partial(transformers.pipeline, "spectral-pathways")):
        with pytest.raises(UnsupportedBackboneError, match=message):
            load(model=str(tmp_path), device="cpu")


def test_a_text_model_that_names_where_it_came_from_is_refused(tmp_path):
    build_bert().save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match="BertModel"):
        hf_spectral.pipeline(model)


def test_a_supported_backbone_reads_its_weights(transformers_folder, tmp_path):
    shutil.copytree(transformers_folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(SafetensorError):
        transformers.pipeline("spectral-pathways", model=str(_poisoned(tmp_path)))
