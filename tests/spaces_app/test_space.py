"""The Space without a browser: what it computes, what it refuses, what it serves, and how it bears a crowd."""

import ast
import asyncio
import collections
import concurrent.futures
import http.client
import importlib
import json
import os
import pickle
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
import transformers
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi
from PIL import Image

import hf_spectral
import spaces_app
from hf_spectral import SpectralError
from hf_spectral.cli import main
from hf_spectral.families import diffusers as denoisers
from hf_spectral.families import transformers as towers
from spaces_app import app
from spaces_app.engine import Engine
from spaces_app.interface import Demo
from spaces_app.pictures import MAX_PIXELS, MAX_SIDE, check_file, examples, open_picture
from spaces_app.settings import settings_of
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, build_siglip2_vision
from tests.pipelines.tiny_diffusion import host_pipeline
from tests.spaces_app import space_server
from tests.spaces_app.browser import OUTPUT
from tests.spaces_app.space_server import choices, downloaded
from tests.synthetic import photo

FOLDER = Path(spaces_app.__file__).parent
# After a first round of requests, a second one may raise the memory of the server by so much.
MEMORY_BOUND = 64 << 20


@pytest.fixture(scope="module")
def basis(backbone, tmp_path_factory):
    pipe = hf_spectral.pipeline(backbone)
    folder = tmp_path_factory.mktemp("basis")
    (folder / "in").mkdir()
    for seed in range(4):
        photo(seed=seed).save(folder / "in" / f"{seed}.png")
    hf_spectral.fit(pipe, str(folder / "in"), pathway="what", num_eigenvectors=6).save_pretrained(folder / "basis")
    return str(folder / "basis")


def in_a_loop(function, *arguments):
    """Call a function that builds a page; without a running loop, gradio makes loops of its own and closes none."""

    async def call():
        return function(*arguments)

    return asyncio.run(call())


@pytest.fixture(scope="module", autouse=True)
def _own_folder_for_pictures(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield


@pytest.fixture(scope="module")
def demo(backbone):
    return in_a_loop(Demo, backbone)


@pytest.fixture(scope="module")
def server(backbone, tmp_path_factory):
    with space_server.demo(tmp_path_factory.mktemp("server"), "--model", backbone) as running:
        yield running


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def click(left, top):
    return gr.SelectData(None, {"index": (left, top), "value": None})


def analyze(demo, picture, **changes):
    """Return what the page would show, by the id of its component."""
    (values,) = list(demo.analyze(picture, *choices(**changes), progress=lambda *_: None))
    (listener,) = [one for one in demo.blocks.fns.values() if one.api_name == "analyze"]
    return {part.elem_id or part._id: value for part, value in zip(listener.outputs, values, strict=True)}


@pytest.fixture
def picture(tmp_path):
    photo().save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_both_pathways_are_what_the_pipeline_gives(demo, backbone, picture):
    shown = analyze(demo, picture, pathway="both", num_segments=3)
    settings = {"pathway": "both", "num_eigenvectors": 5, "num_segments": 3}
    found = hf_spectral.pipeline(backbone)(photo(), return_result=True, **settings)
    for name in ("where", "what"):
        image, sections = shown[f"{name}-segments"]
        labels = np.asarray(found[name]["segmentation"])
        assert image.size == (90, 60)
        assert [label for _, label in sections] == ["1", "2", "3"]
        for index, (mask, _) in enumerate(sections):
            assert np.array_equal(mask > 0, labels == index)
        for count in (2, 7):
            hierarchy = found[name]["hierarchy"]
            _, sections = demo.recut(picture, hierarchy, count)
            for index, (mask, _) in enumerate(sections):
                assert np.array_equal(mask > 0, hierarchy.at(count).labels.numpy() == index)
            assert len(sections) == count
        tiles = shown[f"{name}-eigenvectors"]
        assert len(tiles) == 4
        assert tiles[1][1].startswith(f"2  ·  λ {float(found[name]['eigenvalues'][2]):.3f}  ·  layout ")
        assert shown[f"{name}-colors"][1].size == (90, 60)
    assert 'pathway="both", num_eigenvectors=5, num_segments=3)' in shown["code"]


def test_one_pathway_hides_the_other(demo, picture):
    shown = analyze(demo, picture, pathway="where")
    assert shown["what-colors"] is None
    assert shown["what-result"] is None
    assert shown["where-colors"] is not None


def test_code_that_is_shown_gives_the_same(demo, backbone, picture, tmp_path, monkeypatch):
    shown = analyze(demo, picture, pathway="where", model=backbone)
    photo().save(tmp_path / "photo.jpg", format="PNG")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(shown["code"], scope)
    assert len(scope["out"]["eigenvectors"]) == 1 + len(shown["where-eigenvectors"])
    assert 'pathway="where"' in shown["code"]


def test_a_click_lights_up_the_row_of_that_token(demo, backbone, picture):
    settings = settings_of("", "", "both", 4, "auto", "")
    values = demo.affinity(picture, settings, click(80, 10))
    assert [value["visible"] for value in values[::3]] == [True, True]
    assert [caption for _, caption in values[5]] == ["layer 0", "layer 1", "layer 2"]
    assert values[1].size == (90, 60)
    found = Engine(backbone).affinity(photo(), settings, (10 / 60, 80 / 90))
    assert found["what"].token == (0, 7)
    records = []
    pipe = hf_spectral.pipeline(backbone)
    pipe.records([pipe.preprocess(photo())], records.append)
    matrix = hf_spectral.build_problem(records, hf_spectral.SpectralConfig("where")).affinity.to_dense()
    torch.testing.assert_close(found["where"].joint.flatten(), matrix[7], atol=1e-6, rtol=1e-4)
    with pytest.raises(gr.Error, match="Press Analyze first"):
        demo.affinity(picture, None, click(1, 1))


def test_a_basis_gives_colors_that_mean_the_same_in_every_picture(backbone, basis, tmp_path):
    """A picture and a copy of it inside a session with others: same colors, and those of the basis' own scale."""
    demo = in_a_loop(Demo, backbone, basis)
    for name in ("a", "b"):
        photo(seed=3).save(tmp_path / f"{name}.png")
    photo(seed=9).save(tmp_path / "other.png")
    shown = [analyze(demo, str(tmp_path / f"{name}.png"), basis=basis) for name in ("a", "other", "b")]
    assert shown[0]["where-colors"] is None
    first, _, again = (np.asarray(one["what-colors"][1]) for one in shown)
    assert np.array_equal(first, again)
    loaded = hf_spectral.SpectralBasis.from_pretrained(basis)
    found = hf_spectral.pipeline(backbone)(photo(seed=3), basis=loaded)
    scale = loaded.num_nodes**-0.5
    expected = hf_spectral.visualization.eigenvectors_to_rgb(
        found["eigenvectors"], found["eigenvalues"], (60, 90), scale=scale
    )
    assert np.array_equal(first, np.asarray(expected))
    text, model = demo.describe_basis(basis, "")
    assert "**what** basis of 4 pictures, 6 eigenvectors" in text
    assert "value" not in model


def test_a_basis_with_clusters_gives_their_ids_whatever_their_number(backbone, basis, tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        photo(seed=seed).save(tmp_path / "photos" / f"{seed}.png")
    pipe, folder = hf_spectral.pipeline(backbone), tmp_path / "rows"
    rows = hf_spectral.transform(pipe, tmp_path / "photos", basis, num_segments=70, output_dir=folder, progress=False)
    demo = in_a_loop(Demo, backbone, str(folder / "basis"))
    picture = str(tmp_path / "photos" / "0.png")
    _, sections = analyze(demo, picture, basis=str(folder / "basis"), num_segments="auto")["what-segments"]
    labels = np.asarray(pipe(picture, basis=folder / "basis")["segmentation"])
    assert np.mean(labels == np.asarray(rows[0]["segmentation"])) > 0.99
    assert labels.max() > 32
    assert [name for _, name in sections] == [str(index + 1) for index in np.unique(labels)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pathway": "why"}, "`pathway`: expected both or where or what"),
        ({"num_eigenvectors": 1000}, "`eigenvectors`: expected a number from 4 to 32, got 1000"),
        ({"num_segments": "many"}, "`segments`: expected a number from 2 to 32 or auto, got 'many'"),
        ({"num_segments": float("nan")}, "`segments`"),
        ({"resolution": 100_000}, "`resolution`: expected one of 336"),
        ({"resolution": 784}, "`resolution`: expected at most 640 pixels, for a backbone that cuts patches of 8"),
        ({"model": "../../etc"}, "`model`: expected a repository of the Hub"),
        ({"model": "/"}, "`model`: expected a repository of the Hub"),
        ({"basis": "nobody"}, "`basis`: expected a repository of the Hub"),
        ({"basis": "../state/basis"}, "`basis`: expected a repository of the Hub"),
    ],
)
def test_settings_out_of_bounds_are_refused_in_a_sentence(demo, picture, changes, message):
    with pytest.raises(Exception, match=message) as caught:
        analyze(demo, picture, **changes)
    assert type(caught.value).__module__.startswith("gradio")
    assert "\n" not in str(caught.value.message)


def test_folders_are_for_the_owner_alone(demo, backbone, basis, picture, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in Path(backbone).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    settings = settings_of(str(tmp_path / "copy"), "", "what", 4, "auto", "")
    with pytest.raises(SpectralError, match="a repository of the Hub"):
        Engine(backbone).analyze(photo(), settings)
    assert "what" in Engine(backbone, allow_folders=True).analyze(photo(), settings)
    with pytest.raises(SpectralError, match="a repository of the Hub"):
        Engine(backbone).basis(basis)
    assert Engine(backbone, basis).basis(basis).num_images == 4


# What `config.json` of each repository says; the vision tower is read.
MODEL_TYPES = {
    "facebook/dinov2-base": "dinov2",
    "facebook/dinov2-with-registers-small": "dinov2_with_registers",
    "facebook/dinov3-vits16-pretrain-lvd1689m": "dinov3_vit",
    "google/siglip2-base-patch16-naflex": "siglip2_vision_model",
    "openai/clip-vit-base-patch32": "clip_vision_model",
    "facebook/sam-vit-base": "sam_vision_model",
    "facebook/vit-mae-base": "vit_mae",
    "google/vit-base-patch16-224": "vit",
}


def test_each_backbone_of_the_list_is_of_a_family():
    listed = {repository: label for label, repository in app.BACKBONES.items()}
    assert next(iter(listed)) == ""
    assert set(listed) == {"", *MODEL_TYPES, "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    for repository, model_type in MODEL_TYPES.items():
        example = towers.FAMILIES[model_type].example
        assert repository.rpartition("-")[0] == example.rpartition("-")[0]
        assert ("gated" in listed[repository]) == ("dinov3" in repository)
    assert "UNet2DConditionModel" in denoisers.FAMILIES


@pytest.mark.parametrize("name", ["dinov3_vit", "siglip2", "clip_vision", "sam_vision"])
def test_backbones_of_the_list_answer_at_the_automatic_resolution(name, tmp_path, monkeypatch):
    monkeypatch.setattr("spaces_app.engine.DEFAULT_RESOLUTION", 96)
    is_naflex = name == "siglip2"
    (build_siglip2_vision() if is_naflex else BACKBONES[name].model()).save_pretrained(tmp_path)
    (transformers.Siglip2ImageProcessor(patch_size=8) if is_naflex else PROCESSOR).save_pretrained(tmp_path)
    engine, settings = Engine(str(tmp_path)), settings_of("", "", "what", 4, 2, "auto")
    resolution = engine.resolved(settings).resolution
    assert resolution == (None if name == "sam_vision" else 96)
    found, direct = engine.analyze(photo(), settings), hf_spectral.pipeline(str(tmp_path))
    expected = direct(photo(), num_eigenvectors=5, num_segments=2, resolution=resolution)
    assert torch.equal(found["what"]["eigenvectors"], expected["eigenvectors"])
    assert engine.affinity(photo(), settings, (0, 0))["what"].grid == hf_spectral.TokenGrid(*expected["grid"])


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusion")
    host_pipeline("sd").save_pretrained(folder)
    return str(folder)


def test_a_generative_backbone_is_read_with_noise(diffusion, backbone, picture):
    demo = in_a_loop(lambda: Demo(backbone, allow_folders=True))
    shown = analyze(demo, picture, model=diffusion, pathway="both", resolution="auto")
    found = hf_spectral.pipeline(diffusion)(photo(), pathway="both", num_eigenvectors=5)
    for name in ("where", "what"):
        assert np.array_equal(shown[f"{name}-segments"][1][0][0] > 0, np.asarray(found[name]["segmentation"]) == 0)
        assert len(found[name].timesteps) == 3
    settings = settings_of(diffusion, "", "both", 4, "auto", "auto")
    values = demo.affinity(picture, settings, click(80, 10))
    assert [caption for _, caption in values[5]] == [caption for _, caption in values[2]]
    assert len(values[5]) * 3 == len(found["what"].layers)


class FakeSpaces:
    """Records what is decorated, and runs it as ZeroGPU does: elsewhere, with nothing but what can be pickled."""

    def __init__(self):
        self.decorated, self.runs = {}, collections.Counter()

    def GPU(self, task=None, duration=None):
        if task is None:
            return lambda task: self.GPU(task, duration)
        self.decorated[task.__name__] = duration

        def run(*arguments):
            self.runs[task.__name__] += 1
            arguments, ended = pickle.loads(pickle.dumps(arguments)), []

            def call():
                try:
                    ended.append((pickle.dumps(task(*arguments)), None))
                except Exception as error:  # noqa: BLE001 - to be told apart below
                    ended.append((None, error))

            thread = threading.Thread(target=call, daemon=True)
            thread.start()
            thread.join(60)
            assert ended, "it waits for a lock that its caller holds"
            if ended[0][1] is not None:
                # Of other errors, ZeroGPU tells the name alone.
                raise ended[0][1] if type(ended[0][1]).__module__.startswith("gradio") else RuntimeError("GPU task")
            return pickle.loads(ended[0][0])

        return run


@pytest.fixture
def spaces(monkeypatch):
    fake = FakeSpaces()
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return fake


def test_zero_gpu_lends_a_gpu_to_what_computes(spaces, backbone, picture):
    demo = in_a_loop(Demo, backbone)
    shown = analyze(demo, picture, pathway="where")
    assert spaces.decorated == {"_solve": 60, "_compare": 60}
    plain = hf_spectral.pipeline(backbone)(photo(), pathway="where", num_eigenvectors=5)
    labels = np.asarray(plain["segmentation"])
    assert np.array_equal(shown["where-segments"][1][0][0] > 0, labels == 0)
    values = demo.affinity(picture, settings_of("", "", "where", 4, "auto", ""), click(80, 10))
    assert len(values[2]) == 3
    assert spaces.runs == {"_solve": 1, "_compare": 1}
    with pytest.raises(Exception, match="`position`: expected two numbers from 0 to 1"):
        demo._engine.affinity(photo(), settings_of("", "", "where", 4, "auto", ""), (2, 0))


@pytest.mark.parametrize(("value", "module"), [(None, FakeSpaces()), ("false", FakeSpaces()), ("true", None)])
def test_elsewhere_nothing_is_decorated(value, module, backbone, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "spaces", module)
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    if value is not None:
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
    assert "what" in Engine(backbone).analyze(photo(), settings_of("", "", "what", 4, 2, ""))
    assert module is None or not module.decorated
    assert ("without the package `spaces`" in caplog.text) == (value == "true")


def test_answers_for_examples_are_kept_and_bounded(backbone, monkeypatch, tmp_path):
    monkeypatch.setattr("spaces_app.engine.DEFAULT_RESOLUTION", 96)
    calls = []
    forward = hf_spectral.SpectralPathwaysPipeline._forward
    monkeypatch.setattr(
        hf_spectral.SpectralPathwaysPipeline,
        "_forward",
        lambda *given, **more: calls.append(1) or forward(*given, **more),
    )
    photo(seed=7).save(tmp_path / "own.png")
    photo(1000, 1500, seed=5).save(tmp_path / "large.png")
    pictures = {"small": photo(), "large": str(tmp_path / "large.png")}
    demo = in_a_loop(lambda: Demo(backbone, allow_folders=True, pictures=pictures))

    def count(path, **changes):
        before = len(calls)
        shown = analyze(demo, path, resolution="auto", **changes)
        return len(calls) - before, shown["what-segments"][1]

    # As a tap does: the form's picture is filled, and its file analyzed.
    (form,) = [one for one in demo.blocks.blocks.values() if one.elem_id == "picture"]
    tapped = {name: form.postprocess(demo._examples[name]).path for name in pictures}
    first = {name: count(path) for name, path in tapped.items()}
    assert [number for number, _ in first.values()] == [1, 1]
    assert count(tapped["small"], model=backbone)[0] == 1  # Another name of the backbone is another setting.
    loaded = demo._engine._pipe
    for name, path in tapped.items():
        number, masks = count(path)
        assert number == 0
        assert all(np.array_equal(one, two) for (one, _), (two, _) in zip(masks, first[name][1], strict=True))
    assert demo._engine._pipe is loaded
    assert [count(tmp_path / "own.png")[0] for _ in range(2)] == [1, 1]
    monkeypatch.setattr("spaces_app.engine.MAX_KEPT", 2)
    for number in (5, 6, 7, 8):
        assert count(tapped["small"], num_eigenvectors=number)[0] == 1
    assert len(demo._engine._kept) == 2
    assert [count(tapped["small"], num_eigenvectors=number)[0] for number in (8, 7, 6)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": 9 << 30}, "got 9.0 GiB of them"),
        ({"pytorch_model.bin": 1000}, "weights as safetensors"),
    ],
)
def test_large_weights_and_pickles_are_not_loaded(backbone, monkeypatch, files, message):
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    with pytest.raises(SpectralError, match=message):
        Engine(backbone).analyze(photo(), settings_of("some/model", "", "what", 4, "auto", ""))


def test_a_repository_that_cannot_be_reached_is_told(backbone, monkeypatch):
    monkeypatch.setattr("spaces_app.engine.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(SpectralError, match="no answer for 'some/model'"):
        Engine(backbone).analyze(photo(), settings_of("some/model", "", "what", 4, "auto", ""))


def test_pictures_are_bounded_before_they_are_decoded(tmp_path):
    Image.new("1", (MAX_PIXELS // 5000 + 100, 5000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    with pytest.raises(SpectralError, match="at most 50 megapixels"):
        check_file(tmp_path / "large.png")
    Image.new("1", (30_000, 7_000)).save(tmp_path / "bomb.png")
    with pytest.raises(SpectralError, match="too many pixels"):
        check_file(tmp_path / "bomb.png")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(SpectralError, match="none of these"):
        check_file(tmp_path / "script.eps")
    photo(1200, 3000).save(tmp_path / "wide.png")
    Image.fromarray((np.arange(256) * 4095 // 255).astype(np.uint16).reshape(16, 16)).save(tmp_path / "deep.png")
    assert np.asarray(open_picture(str(tmp_path / "deep.png")))[..., 0].ravel().tolist() == list(range(256))
    assert open_picture(str(tmp_path / "wide.png")).size == (MAX_SIDE, round(MAX_SIDE * 0.4))
    with pytest.raises(SpectralError, match="Upload one"):
        open_picture(None)


def test_a_mistake_reaches_the_visitor_without_a_traceback(client, picture, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for values, message in (
        ([None, *choices()], "Upload one"),
        ([handle_file(str(tmp_path / "text.png")), *choices()], "a JPEG, PNG, WebP"),
        ([handle_file(picture), *choices(model="not a name")], "a repository of the Hub"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict(*values, api_name="/analyze")
        assert "Traceback" not in str(caught.value)


def test_only_what_a_visitor_needs_is_in_the_api(client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/analyze"]


def raw(url, path):
    """Ask for a path as it is: clients tidy dots away."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_nothing_outside_is_served(server, client, backbone, picture, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of this test")
    started_in = server.process.cwd()
    upward, from_cache = os.path.relpath(secret, started_in), os.path.relpath(secret, server.cache)
    paths = [str(secret), upward, f"{server.cache}/{from_cache}", f"file://{secret}", f"{backbone}/config.json"]
    paths += [str(FOLDER / "app.py"), f"{started_in}/log.txt", "log.txt", "/proc/self/environ", "/etc/passwd"]
    for path in paths:
        for form in (path, quote(path, safe=""), quote(quote(path, safe=""), safe="")):
            for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/"):
                status, body = raw(server.url, prefix + form)
                assert status in (400, 403, 404, 405), (prefix + form, status)
                for part in (b"the secret", b"hidden_size", b"Entry point", b"Running on", b"root:", b"PATH="):
                    assert part not in body
    # What the app has made is served by the same route.
    answer = client.predict(handle_file(picture), *choices(), api_name="/analyze")
    assert answer
    made = next(path for path in server.cache.rglob("*.safetensors"))
    assert raw(server.url, f"/gradio_api/file={made}")[0] == 200


def test_a_file_of_the_server_is_no_picture_to_analyze(server, tmp_path):
    photo().save(tmp_path / "private.png")
    data = [{"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}, *choices()]
    with httpx.Client(base_url=server.url, timeout=20) as http_client:
        event = http_client.post("/gradio_api/call/analyze", json={"data": data}).json()["event_id"]
        answer = http_client.get(f"/gradio_api/call/analyze/{event}").text
    assert "event: error" in answer
    assert "event: complete" not in answer


def test_four_clients_at_once_get_their_own_answers_and_memory_stays_flat(server, backbone, tmp_path):
    pipe = hf_spectral.pipeline(backbone)
    expected = []
    for number in range(20):
        picture = photo(48 + 8 * (number % 5), 96, seed=number)
        picture.save(tmp_path / f"{number}.png")
        expected.append(pipe(picture, pathway="what", num_eigenvectors=5)["eigenvectors"])
    clients = [Client(server.url, verbose=False, download_files=str(tmp_path / str(number))) for number in range(4)]

    def ask(number):
        sent = handle_file(str(tmp_path / f"{number}.png"))
        answer = clients[number % 4].predict(sent, *choices(num_segments=2), api_name="/analyze")
        return downloaded(answer)

    memory, answers = [], []
    with concurrent.futures.ThreadPoolExecutor(10) as crowd:
        for half in (range(10), range(10, 20)):
            answers += crowd.map(ask, half)
            memory.append(server.process.memory_info().rss)
    for number, answer in enumerate(answers):
        same = [
            other.shape == answer.eigenvectors.shape and torch.allclose(other, answer.eigenvectors, atol=1e-3)
            for other in expected
        ]
        assert same == [other == number for other in range(20)]
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "load.json").write_text(json.dumps({"answers": 20, "mib_after_10_and_20": [one >> 20 for one in memory]}))
    assert memory[1] - memory[0] < MEMORY_BOUND


def test_files_for_downloads_are_removed_once_gradio_has_copied_them(demo, picture):
    before = set(os.listdir(tempfile.gettempdir()))
    answers = demo.analyze(picture, *choices(), progress=lambda *_: None)
    values = next(answers)
    files = [Path(value) for value in values if isinstance(value, str) and value.endswith((".safetensors", ".png"))]
    assert len(files) == 3
    assert all(file.is_file() for file in files)
    answers.close()
    assert not any(file.exists() for file in files)
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - before if name == files[0].parent.name}


def test_uploads_queue_and_age_of_files_are_bounded(demo, server):
    assert demo.blocks._queue.max_size == 32
    assert demo.blocks.delete_cache == (600, 3600)
    large = {"files": ("large.png", b"0" * (21 << 20), "image/png")}
    assert httpx.post(f"{server.url}/gradio_api/upload", files=large, timeout=60).status_code == 413


def test_only_public_names_are_used():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_spectral"):
                public = importlib.import_module(node.module).__all__
                assert {name.name for name in node.names} <= set(public), path.name


def test_examples_come_from_installed_packages():
    pictures = examples()
    assert len(pictures) == 6
    assert all(picture.mode == "RGB" and min(picture.size) > 200 for picture in pictures.values())


def test_the_folder_of_a_space_starts_from_a_clean_copy(tmp_path):
    """As on the Hub: `python app.py` in a folder that holds the Space's files only, the package being installed."""
    for name in spaces_app.SPACE_FILES:
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    photo(120, 160).save(tmp_path / "photo.png")
    with space_server.serving(["app.py"], tmp_path, space_server.free_port()) as running:
        client = Client(running.url, verbose=False, download_files=str(tmp_path / "got"))
        answer = client.predict(handle_file(str(tmp_path / "photo.png")), *choices(resolution=336), api_name="/analyze")
    assert downloaded(answer).eigenvectors.shape == (5, 18, 24)


def test_readme_and_requirements_of_the_space():
    front = (FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1]
    keys = dict(line.split(":", 1) for line in front.strip().splitlines() if not line.startswith(" "))
    assert keys["sdk"].strip() == "gradio"
    assert keys["app_file"].strip() == "app.py"
    pinned = (FOLDER.parent / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={keys['sdk_version'].strip()}\n" in pinned
    assert (FOLDER / "requirements.txt").read_text().split() == ["hf-spectral[app]"]


def test_demo_names_the_pip_line_where_gradio_is_missing(monkeypatch, capsys):
    for name in ("app", "interface"):
        monkeypatch.setitem(sys.modules, f"spaces_app.{name}", None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'hf-spectral[app]'" in capsys.readouterr().err


def test_demo_command_serves_the_page_and_tells_a_taken_port(backbone, basis, monkeypatch, capsys):
    called = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: called.update(options))
    assert in_a_loop(main, ["demo", "--model", backbone, "--basis", basis, "--port", "7999"]) == 0
    assert called["server_name"] == "127.0.0.1"
    assert called["server_port"] == 7999
    assert called["share"] is False
    assert "allowed_paths" not in called
    assert in_a_loop(main, ["demo", "--model", backbone, "--basis", "/nowhere"]) == 2

    def refuse(self, **options):
        raise OSError(f"Cannot find empty port in range: {options['server_port']}-{options['server_port']}.")

    monkeypatch.setattr("gradio.Blocks.launch", refuse)
    assert in_a_loop(main, ["demo", "--model", backbone, "--port", "7999"]) == 2
    assert "`--port`: expected a free port, got 7999" in capsys.readouterr().err
