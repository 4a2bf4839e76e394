"""The true client libraries against the local Hub: run by `test_hub.py`, in a process whose addresses are set first.

Nothing here may reach beyond this machine: an audit hook sees every connection that Python opens.
"""

import base64
import contextlib
import dataclasses
import doctest
import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

HUB = os.environ.get("HF_ENDPOINT", "")
if not os.environ.get("HF_SPECTRAL_TEST_HUB"):
    pytest.skip("run by test_hub.py", allow_module_level=True)

STRAYED = []


def guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        # A lookup of names is a connection too.
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            STRAYED.append(address)
            raise AssertionError(f"a connection to {address}")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        STRAYED.append(arguments[0])
        raise AssertionError(f"a look-up of {arguments[0]}")


sys.addaudithook(guard)

import datasets  # noqa: E402
import httpx  # noqa: E402
import huggingface_hub  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import hf_spectral  # noqa: E402
from hf_spectral import SpectralBasis, SpectralError, SpectralResult, push_space, push_to_hub  # noqa: E402
from hf_spectral.cli import main  # noqa: E402
from hf_spectral.hub import CardDetails  # noqa: E402
from hf_spectral.hub.rows import basis_of_rows  # noqa: E402
from hf_spectral.report import LayerReport, ReportRow  # noqa: E402
from tests import pages  # noqa: E402
from tests.families.tiny_backbones import BACKBONES, PROCESSOR  # noqa: E402
from tests.synthetic import photo  # noqa: E402

BOB = "hf_bobwrites"
BACKBONE = "alice/tiny-dinov2"
ROWS = [ReportRow("what", layer, None, None, "layer", 0.1, 0.2, 0.3, 4, 9) for layer in (0, 1, None)]


def ask(method, control, /, **values):
    return httpx.request(method, f"{HUB}/_control/{control}", json=values or None).json()


def on_the_hub(kind, name):
    found = ask("GET", f"repository/{kind}/{name}")
    return found and {**found, "files": {path: base64.b64decode(data) for path, data in found["files"].items()}}


@pytest.fixture(autouse=True)
def _stays_at_home():
    STRAYED.clear()
    yield
    ask("POST", "mend")
    assert STRAYED == []


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Let retries of the clients follow each other at once."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def pipe():
    datasets.config.USE_PARQUET_EXPORT = False  # Else it asks a server beside the Hub.
    huggingface_hub.utils.disable_progress_bars()
    BACKBONES["dinov2"].model().push_to_hub(BACKBONE)
    PROCESSOR.push_to_hub(BACKBONE)
    huggingface_hub.metadata_update(BACKBONE, {"license": "bsd-3-clause"}, overwrite=True)
    return hf_spectral.pipeline(BACKBONE)


@pytest.fixture(scope="module")
def table():
    images = [photo(60 + 16 * (seed % 2), 90, seed) for seed in range(4)]
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


@pytest.fixture(scope="module")
def basis(pipe, table):
    return hf_spectral.fit(pipe, table, num_eigenvectors=4, progress=False)


@pytest.fixture(scope="module")
def rows(pipe, table, basis):
    return hf_spectral.transform(pipe, table, basis, num_segments=3, progress=False)


@pytest.fixture(scope="module")
def details(pipe, basis):
    result = pipe(photo(), basis=basis, num_segments=None, return_result=True)["result"]
    return CardDetails(
        "Four pictures of noise.", "alice/noise", None, "cc-by-4.0", LayerReport(tuple(ROWS)), [(photo(), result)]
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text("print('hello')\n")
    (folder / "README.md").write_text("---\nsdk: gradio\napp_file: app.py\n---\n")
    (folder / "requirements.txt").write_text("gradio>=6\n")
    (folder / "space.json").write_text('{"basis": null, "title": "x"}')
    (folder / "examples").mkdir()
    (folder / "examples" / "a.png").write_bytes(b"\x89PNG")
    for name in (".env", "__pycache__/app.pyc", ".gradio/cache.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    return folder


def python_block(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def run_block(card):
    scope = {}
    exec(compile(python_block(card), "README.md", "exec"), scope)
    return scope


def same_basis(one, other):
    assert one.config == other.config
    assert torch.equal(one.eigenvalues, other.eigenvalues)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.projections, other.projections, strict=True))


def same_rows(found, rows):
    assert found.features == rows.features
    encoded = [
        one.cast_column("image", datasets.Image(decode=False)).cast_column("segmentation", datasets.Image(decode=False))
        for one in (found, rows)
    ]
    for mine, theirs in zip(*encoded, strict=True):
        assert mine["eigenvectors"] == theirs["eigenvectors"]
        assert mine["image"]["bytes"] == theirs["image"]["bytes"]
        assert mine["segmentation"]["bytes"] == theirs["segmentation"]["bytes"]


# ------------------------------------------------------------------------------------------------- there and back


def test_a_basis_goes_and_comes_back_byte_by_byte(pipe, basis, details, tmp_path, monkeypatch):
    info = push_to_hub(basis, "alice/basis", details=details)
    assert info.commit_url.startswith(HUB)
    there = on_the_hub("model", "alice/basis")
    folder = basis.save_pretrained(tmp_path / "basis")
    for name in ("config.json", "basis.safetensors"):
        assert there["files"][name] == (folder / name).read_bytes()
    pictures = {"images/eigenvectors.png", "images/layers.png"}
    assert set(there["files"]) == {".gitattributes", "README.md", "config.json", "basis.safetensors"} | pictures
    assert there["titles"] == ["initial commit", "Push a SpectralBasis by hf-spectral"]
    same_basis(SpectralBasis.from_pretrained("alice/basis"), basis)
    same_basis(SpectralBasis.from_pretrained("alice/basis", revision=info.oid, cache_dir=tmp_path / "cache"), basis)
    before = len(ask("GET", "requests"))
    same_basis(SpectralBasis.from_pretrained("alice/basis", local_files_only=True), basis)
    assert len(ask("GET", "requests")) == before
    with pytest.raises(SpectralError, match="an answer from the Hub, or a copy in the cache, got neither"):
        SpectralBasis.from_pretrained("alice/basis", local_files_only=True, cache_dir=tmp_path / "empty")


def test_the_card_of_a_basis_says_how_to_load_it_and_its_code_runs(pipe, basis, details, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo().save("photo.jpg")
    push_to_hub(basis, "alice/basis", details=details)
    card = huggingface_hub.ModelCard.load("alice/basis")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "hf-spectral"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert metadata["base_model"] == BACKBONE
    assert metadata["datasets"] == ["alice/noise"]
    assert metadata["license"] == "cc-by-4.0"
    assert "what-pathway" in metadata["tags"]
    assert basis.backbone["revision"] == on_the_hub("model", BACKBONE)["refs"]["main"]
    assert len(python_block(card.text).splitlines()) == 3
    out = run_block(card.text)["out"]
    expected = pipe(photo(), basis=basis)
    assert out["eigenvectors"].shape == expected["eigenvectors"].shape
    assert torch.equal(out["eigenvalues"], basis.eigenvalues)
    for said in (basis.backbone["revision"], "| what | all | 0.100 | 0.200 |", "images/layers.png", "Four pictures"):
        assert said in card.text
    settings = json.loads(re.search(r"```json\n(.*?)```", card.text, re.DOTALL)[1])
    assert hf_spectral.SpectralConfig.from_dict(settings["config"]) == basis.config


def test_what_the_documentation_publishes_is_on_the_hub(tmp_path, monkeypatch, pipe):
    monkeypatch.chdir(tmp_path)
    load = hf_spectral.pipeline
    monkeypatch.setattr(hf_spectral, "pipeline", lambda task, model=BACKBONE, **settings: load(task, model, **settings))
    pages.run(pages.PUBLISH, {}, ids="alice/page-")
    for kind, name in (
        ("model", "alice/page-basis"),
        ("dataset", "alice/page-rows"),
        ("model", "alice/page-pipeline"),
        ("space", "alice/page-space"),
    ):
        assert "README.md" in on_the_hub(kind, name)["files"]


def test_a_basis_stands_for_the_backbone_that_it_names(basis, pipe, tmp_path):
    basis.push_to_hub("alice/basis")
    basis.save_pretrained(tmp_path)
    expected = pipe(photo(), basis=basis)["eigenvectors"]
    for make in (transformers.pipeline, hf_spectral.pipeline):
        assert torch.equal(
            make("spectral-pathways", model=BACKBONE, basis="alice/basis")(photo())["eigenvectors"], expected
        )
        for place in ("alice/basis", str(tmp_path)):
            found = make("spectral-pathways", model=place)
            assert found.describe_backbone()["id"] == BACKBONE
            assert torch.equal(found(photo())["eigenvectors"], expected)
            own = found(photo(), basis=None, num_eigenvectors=5)["eigenvectors"]
            assert torch.equal(own, pipe(photo(), num_eigenvectors=5)["eigenvectors"])
    assert make("alice/basis", basis=None, pathway="where").defaults == {"basis": None, "pathway": "where"}
    metadata = huggingface_hub.ModelCard.load("alice/basis").data.to_dict()
    assert (metadata["base_model"], metadata["base_model_relation"]) == (BACKBONE, "adapter")


def test_the_backbone_of_a_basis_is_the_commit_that_it_was_fitted_on(table):
    BACKBONES["dinov2"].model().push_to_hub("alice/changing")
    PROCESSOR.push_to_hub("alice/changing")
    basis = hf_spectral.fit(hf_spectral.pipeline("alice/changing"), table, num_eigenvectors=3, progress=False)
    basis.push_to_hub("alice/of-changing")
    BACKBONES["dinov2"].model(seed=1).push_to_hub("alice/changing")
    for make in (transformers.pipeline, hf_spectral.pipeline):
        assert torch.equal(
            make("spectral-pathways", model="alice/of-changing")(photo())["eigenvalues"], basis.eigenvalues
        )
    nameless = dataclasses.replace(basis, backbone={**basis.backbone, "id": "a-folder-elsewhere"})
    nameless.push_to_hub("alice/nameless")
    for make in (transformers.pipeline, hf_spectral.pipeline):
        message = refusal(lambda: make("spectral-pathways", model="alice/nameless"))  # noqa: B023
        assert "`model`: expected a basis that names the repository of its backbone, got one of 'a-folder-" in message


def found_by_a_fresh_process(script, tmp_path, places):
    """Return what a program that has not imported the package finds at some places, for the photo of these tests."""
    photo().save(tmp_path / "photo.png")
    command = [sys.executable, "-c", script, tmp_path / "found.pt", tmp_path / "photo.png", *places]
    subprocess.run(command, check=True)
    return torch.load(tmp_path / "found.pt")


FRESH = """
import sys, torch, transformers
assert "hf_spectral" not in sys.modules
sys.modules["hf_spectral"] = None  # As if it were not installed.
try:
    transformers.pipeline(model="alice/pipe", trust_remote_code=True)
except ImportError as error:
    assert "pip install hf-spectral" in str(error), error
else:
    raise AssertionError
del sys.modules["hf_spectral"]
found = {}
for place in sys.argv[3:]:
    pipe = transformers.pipeline(model=place, trust_remote_code=True)
    assert type(pipe) is sys.modules["hf_spectral"].SpectralPathwaysPipeline
    found[place] = repr(sorted({**pipe.defaults, "basis": None}.items())), pipe(sys.argv[2])["eigenvectors"]
torch.save(found, sys.argv[1])
"""


def test_pipelines_are_pushed_and_saved_with_their_defaults(pipe, basis, tmp_path):
    settings = {
        "layers": [1, 2],
        "num_eigenvectors": 5,
        "temperature": 0.2,
        "layer_weights": {1: 1.0, 2: 2.0},
        "solver": hf_spectral.EigenSolver(dense_below=9),
        "num_segments": 3,
        "resolution": 48,
        "batch_size": 2,
    }
    solving = hf_spectral.pipeline(BACKBONE, **settings)
    left_out = dataclasses.replace(basis, skipped=("diary-3.png: a file that is not a picture",))
    projecting = hf_spectral.pipeline(BACKBONE, basis=left_out, image_column="image")
    solving.push_to_hub("alice/pipe", commit_message="A pipeline")
    projecting.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="alice/fitted")
    solving.save_pretrained(tmp_path / "solving")
    own = {"alice/pipe": solving, str(tmp_path / "solving"): solving}
    own |= {"alice/fitted": projecting, str(tmp_path / "saved"): projecting}
    found = found_by_a_fresh_process(FRESH, tmp_path, own)
    for place, expected in own.items():
        assert found[place][0] == repr(sorted({**expected.defaults, "basis": None}.items()))
        # Another process may have another number of threads.
        torch.testing.assert_close(found[place][1], expected(photo())["eigenvectors"], atol=1e-4, rtol=0)
    # The package's own function runs no code of the repository, which need not be trusted.
    for again, place in (
        (hf_spectral.pipeline("alice/pipe"), "alice/pipe"),
        (hf_spectral.pipeline("spectral-pathways", model=tmp_path / "solving"), "alice/pipe"),
        (hf_spectral.pipeline("alice/fitted"), "alice/fitted"),
    ):
        torch.testing.assert_close(again(photo())["eigenvectors"], found[place][1], atol=1e-4, rtol=0)
        assert again.describe_backbone() == own[place].describe_backbone()
    assert again.defaults["basis"].skipped == ()
    assert hf_spectral.pipeline("alice/pipe").defaults == settings
    assert hf_spectral.pipeline("alice/pipe", basis=basis).defaults == {
        **{name: settings[name] for name in ("num_segments", "resolution", "batch_size")},
        "basis": basis,
    }
    assert not hasattr(solving.model.config, "custom_pipelines")
    there = on_the_hub("model", "alice/fitted")["files"]
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "spectral_pathways.py"}
    assert set(there) == names | {".gitattributes", "basis/config.json", "basis/basis.safetensors"}
    card = huggingface_hub.ModelCard.load("alice/pipe")
    assert (card.data.base_model, card.data.license, card.data.library_name) == (
        BACKBONE,
        "bsd-3-clause",
        "transformers",
    )
    assert json.loads(re.search(r"```json\n(.*?)```", card.text, re.DOTALL)[1])["num_eigenvectors"] == 5
    assert on_the_hub("model", "alice/pipe")["titles"][1:] == ["A pipeline"]
    message = refusal(lambda: solving.push_to_hub(BACKBONE))
    assert "which holds something else" in message


FRESH_DIFFUSERS = """
import sys, torch
from diffusers import DiffusionPipeline
assert "hf_spectral" not in sys.modules
found = {}
for place in sys.argv[3:]:
    pipe = DiffusionPipeline.from_pretrained(place, trust_remote_code=True)
    assert type(pipe) is sys.modules["hf_spectral"].SpectralDiffusionPipeline
    pipe.set_progress_bar_config(disable=True)
    found[place] = repr(sorted({**pipe.defaults, "basis": None}.items())), pipe(sys.argv[2]).eigenvectors
torch.save(found, sys.argv[1])
"""


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # Diffusers' own use of it.
def test_a_diffusion_pipeline_is_pushed_and_saved_with_its_defaults(tmp_path):
    from hf_spectral import SpectralDiffusionPipeline
    from tests.pipelines.tiny_diffusion import host_pipeline, spectral

    host = host_pipeline("sd")
    host.push_to_hub("alice/tiny-sd")
    plain = spectral(SpectralDiffusionPipeline.from_pretrained("alice/tiny-sd")).at([50, 150], resolution=32)
    affinity = hf_spectral.NearestNeighbors(num_neighbors=9)
    solving = plain.at(prompt="a cat", seed=3, affinity=affinity, num_eigenvectors=5, layer_weights={0: 1.0, 1: 2.0})
    basis = hf_spectral.fit(plain, [photo(seed=1), photo(seed=2)], num_eigenvectors=4, progress=False)
    projecting = plain.at(basis=dataclasses.replace(basis, skipped=("diary-3.png",)))
    projecting.push_to_hub("alice/generative", commit_message="A pipeline")
    solving.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="alice/prompted")
    own = {"alice/generative": projecting, str(tmp_path / "saved"): solving}
    found = found_by_a_fresh_process(FRESH_DIFFUSERS, tmp_path, own)
    for place, expected in own.items():
        assert found[place][0] == repr(sorted({**expected.defaults, "basis": None}.items()))
        torch.testing.assert_close(found[place][1], expected(photo()).eigenvectors, atol=1e-3, rtol=0)
    # By the installed class, no code of the repository need be trusted.
    again = SpectralDiffusionPipeline.from_pretrained("alice/generative")
    assert again.defaults["basis"].skipped == ()
    assert again.describe_backbone() == plain.describe_backbone()
    assert hf_spectral.pipeline("alice/prompted", device="cpu", seed=4).defaults == {**solving.defaults, "seed": 4}
    there = on_the_hub("model", "alice/generative")
    assert {"pipeline.py", "README.md", "basis/basis.safetensors", "unet/config.json"} <= set(there["files"])
    assert json.loads(there["files"]["model_index.json"])["_class_name"] == ["pipeline", "SpectralDiffusionPipeline"]
    card = huggingface_hub.ModelCard.load("alice/prompted")
    assert (card.data.base_model, card.data.library_name) == ("alice/tiny-sd", "diffusers")
    assert json.loads(re.search(r"```json\n(.*?)```", card.text, re.DOTALL)[1])["timesteps"] == [50, 150]
    assert "which holds something else" in refusal(lambda: solving.push_to_hub("alice/tiny-sd"))
    given = plain.at(prompt_embeds=torch.zeros(1, 77, 24))
    assert "`prompt_embeds`: expected a default that a file can" in refusal(
        lambda: given.save_pretrained(tmp_path / "no")
    )


def test_what_no_file_can_hold_is_not_saved(pipe, tmp_path):
    class Own(hf_spectral.EigenSolver):
        pass

    odd = pipe.__class__(model=pipe.model, image_processor=pipe.image_processor, solver=Own())
    assert "`solver`: expected a default that a file can hold" in refusal(lambda: odd.save_pretrained(tmp_path / "odd"))
    (tmp_path / "file").write_text("")
    assert "`save_directory`: expected a folder" in refusal(lambda: pipe.save_pretrained(tmp_path / "file"))
    assert not hasattr(pipe.model.config, "custom_pipelines")
    adapted = BACKBONES["dinov2"].model()
    adapted.adapter = type("Linear", (torch.nn.Identity,), {"__module__": "peft.tuners.lora.layer"})()
    adapted = pipe.__class__(model=adapted, image_processor=PROCESSOR)
    assert "`model`: expected a backbone without adapters" in refusal(
        lambda: adapted.save_pretrained(tmp_path / "peft")
    )
    newer = BACKBONES["dinov2"].model()
    newer.config.custom_pipelines = {"spectral-pathways": {"defaults": {"unheard_of": 1}}}
    message = refusal(lambda: pipe.__class__(model=newer, image_processor=PROCESSOR))
    assert "`unheard_of`: expected one of the arguments affinity" in message


def test_rows_go_and_come_back_also_as_a_stream(basis, rows, table, pipe):
    for made in (rows.select([1]), rows.filter(lambda row: row["image_id"]), rows.map(lambda row: {"more": 1})):
        same_basis(basis_of_rows(made), basis)
    push_to_hub(rows, "alice/rows", details=CardDetails(license="mit"))  # Their basis lies beside them.
    assert basis.backbone["revision"] in huggingface_hub.DatasetCard.load("alice/rows").text
    same_rows(datasets.load_dataset("alice/rows", "tiny-dinov2-what", split="train"), rows)
    stream = datasets.load_dataset("alice/rows", "tiny-dinov2-what", split="train", streaming=True)
    for mine, theirs in zip(stream, rows, strict=True):
        assert mine["eigenvectors"] == theirs["eigenvectors"]
        assert mine["segmentation"].tobytes() == theirs["segmentation"].tobytes()
    assert len(datasets.load_dataset("alice/rows")["train"]) == len(rows)


def test_a_dataset_of_the_hub_is_fitted_by_its_name(pipe, table, basis, monkeypatch):
    datasets.DatasetDict(train=table, test=table.select([1])).push_to_hub("alice/photos")
    settings = {"split": "train", "num_eigenvectors": 4, "progress": False}
    for more in ({}, {"streaming": True, "num_workers": 2}, {"split": "train[:4]"}, {"revision": "main"}):
        same_basis(hf_spectral.fit(pipe, "alice/photos", **settings | more), basis)
    rows = hf_spectral.transform(pipe, "alice/photos", basis, split="test", progress=False)
    assert len(rows) == 1
    table.push_to_hub("alice/two", "a")
    table.push_to_hub("alice/two", "b")
    for name, more, message in (
        ("alice/photos", {"split": None}, "`split`: expected one of the splits train, test, got none"),
        (
            "alice/photos",
            {"split": "nope"},
            "expected a dataset that loads, for 'alice/photos', got Unknown",
        ),
        ("alice/photos", {"revision": "nope"}, "got none of that name in alice/photos"),
        ("alice/absent", {}, "got no alice/absent on the Hub, or none that your token may see; nor is there a file or"),
        ("alice/two", {}, "got Config name is missing. Check its split, or pass what datasets.load_dataset returns"),
    ):
        assert message in refusal(lambda: hf_spectral.fit(pipe, name, **settings | more))  # noqa: B023
    with monkeypatch.context() as away:
        away.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        away.setattr("datasets.config.HF_HUB_OFFLINE", True)
        same_basis(hf_spectral.fit(pipe, "alice/photos", **settings), basis)


def test_configurations_of_other_pathways_stand_beside_each_other(basis, rows, table, pipe):
    push_to_hub(rows, "alice/rows", basis=basis, details=CardDetails(license="mit"))
    where = hf_spectral.fit(pipe, table, pathway="where", num_eigenvectors=3, progress=False)
    others = hf_spectral.transform(pipe, table, where, progress=False)
    push_to_hub(others, "alice/rows", basis=where)
    push_to_hub(others, "alice/rows", basis=where)
    card = huggingface_hub.DatasetCard.load("alice/rows")
    names = ["tiny-dinov2-what", "tiny-dinov2-where"]
    assert [one["config_name"] for one in card.data.configs] == names
    assert [one["config_name"] for one in card.data.dataset_info] == names
    assert {"hf-spectral", "interpretability"} <= set(card.data.tags)
    assert card.data.license == "mit"
    assert card.data.pretty_name == "Rows"
    assert card.data.task_categories == ["image-segmentation", "image-feature-extraction"]
    assert re.findall(r"^## (tiny.*)$", card.text, re.MULTILINE) == names
    files = on_the_hub("dataset", "alice/rows")["files"]
    assert all(f"images/{name}-eigenvectors.png" in files for name in names)
    assert datasets.get_dataset_config_names("alice/rows") == names
    same_rows(datasets.load_dataset("alice/rows", names[0], split="train"), rows)
    assert run_block(card.text)["row"]["shape"] == rows[0]["shape"]


def test_a_license_that_nobody_states_is_looked_up_and_said(basis, rows, pipe, caplog):
    of_photos = CardDetails(dataset="alice/open-photos")
    datasets.Dataset.from_dict({"text": ["a"]}).push_to_hub("alice/open-photos")
    huggingface_hub.metadata_update("alice/open-photos", {"license": "cc0-1.0"}, repo_type="dataset")
    for push, license, why in (
        (lambda: push_to_hub(basis, "alice/licensed"), "bsd-3-clause", f"that of {BACKBONE}"),
        (lambda: push_to_hub(rows, "alice/licensed"), "unknown", "since no dataset on the Hub is named"),
        (
            lambda: push_to_hub(rows, "alice/licensed", details=CardDetails(dataset="alice/nothing")),
            "unknown",
            "since the card of alice/nothing cannot be read: no alice/nothing on the Hub",
        ),
        (lambda: push_to_hub(rows, "alice/licensed", details=of_photos), "cc0-1.0", "that of alice/open-photos"),
        (lambda: push_to_hub(rows, "alice/licensed"), "cc0-1.0", "as the card says already"),
    ):
        caplog.clear()
        push()
        assert any(message.startswith(f"License: {license}, {why}") for message in caplog.messages)
    huggingface_hub.metadata_update(BACKBONE, {"license": "other", "license_name": "own"}, overwrite=True)
    push_to_hub(
        pipe(photo(), return_result=True)["result"], "alice/licensed-3", details=CardDetails(base_model=BACKBONE)
    )
    data = huggingface_hub.ModelCard.load("alice/licensed-3").data
    assert (data.license, data.license_name) == ("other", "own")
    huggingface_hub.metadata_update(BACKBONE, {"license": "bsd-3-clause"}, overwrite=True)
    for kind in (huggingface_hub.ModelCard, huggingface_hub.DatasetCard):
        kind.load("alice/licensed").validate()


def test_names_of_files_that_were_left_out_stay_at_home(basis):
    left_out = dataclasses.replace(basis, skipped=("diary-3.png: a file that is not a picture",))
    push_to_hub(left_out, "alice/left-out")
    files = on_the_hub("model", "alice/left-out")["files"]
    assert not any(b"diary" in content for content in files.values())
    assert "| left out | 1 that could not be read |" in files["README.md"].decode()
    assert SpectralBasis.from_pretrained("alice/left-out").skipped == ()
    assert len(left_out.skipped) == 1


def test_a_result_goes_and_comes_back_byte_by_byte(pipe, tmp_path):
    result = pipe(photo(), num_eigenvectors=5, return_result=True)["result"]
    result.push_to_hub("alice/result")
    there = on_the_hub("model", "alice/result")
    assert there["files"]["result.safetensors"] == result.save_pretrained(tmp_path / "r.safetensors").read_bytes()
    assert there["titles"][1:] == ["Push a SpectralResult by hf-spectral"]
    found = run_block(there["files"]["README.md"].decode())["result"]
    assert torch.equal(found.eigenvectors, result.eigenvectors)
    assert SpectralResult.from_pretrained("alice/result").config == result.config
    segments = hf_spectral.segment(result, num_segments=3)
    file = segments.save_pretrained(tmp_path / "segmentation.safetensors")
    huggingface_hub.HfApi().upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id="alice/result")
    again = hf_spectral.Segmentation.from_pretrained("alice/result")
    assert torch.equal(again.labels, segments.labels)
    assert repr(again).splitlines()[1] == f"  segments: 3, of {again.size[0]} x {again.size[1]} pixels"


def test_a_space_is_the_app_with_its_settings_and_nothing_private(basis, app):
    basis.push_to_hub("alice/basis")
    push_space("alice/space", basis="alice/basis", folder=app)
    there = on_the_hub("space", "alice/space")
    assert there["sdk"] == "gradio"
    assert there["titles"] == ["initial commit", "Push the app of hf-spectral"]
    assert set(there["files"]) == {
        ".gitattributes", "app.py", "README.md", "requirements.txt", "space.json", "examples/a.png"
    }  # fmt: skip
    assert there["files"]["app.py"] == (app / "app.py").read_bytes()
    assert there["files"]["requirements.txt"] == f"gradio>=6\nhf-spectral[app]=={hf_spectral.__version__}\n".encode()
    assert json.loads(there["files"]["space.json"]) == {"basis": "alice/basis", "title": "x"}
    push_space("alice/space", folder=app, commit_message="Without a basis")
    again = on_the_hub("space", "alice/space")
    assert json.loads(again["files"]["space.json"]) == {"basis": None, "title": "x"}
    assert again["titles"][2:] == ["Without a basis"]


def test_hardware_secrets_and_variables_of_a_new_space_and_of_one_that_exists(app, monkeypatch, caplog):
    push = lambda **settings: push_space("alice/set", folder=app, **settings)  # noqa: E731
    push(hardware="t4-small", secrets={"HF_TOKEN": "sesame-1"}, variables={"THEME": "dark"})
    said = {"hardware": "t4-small", "secrets": {"HF_TOKEN": "sesame-1"}, "variables": {"THEME": "dark"}}
    assert on_the_hub("space", "alice/set")["settings"] == said
    push()
    assert on_the_hub("space", "alice/set")["settings"] == said
    push(hardware="zero-a10g", secrets={"HF_TOKEN": "sesame-2", "OTHER": "sesame-3"})
    said |= {"hardware": "zero-a10g", "secrets": {"HF_TOKEN": "sesame-2", "OTHER": "sesame-3"}}
    assert on_the_hub("space", "alice/set")["settings"] == said

    monkeypatch.setenv("FROM_HERE", "sesame-4")
    monkeypatch.setattr("hf_spectral.hub.space._installed_app", lambda: app)
    words = ("--secrets", "FROM_HERE", "--secrets", "OTHER=sesame=5", "--variables", "THEME=light")
    code, out, err = run(
        "space", "alice/set", *words, "--hardware", "t4-medium", "--requirement", "hf-spectral[app] @ x"
    )
    assert code == 0
    found = on_the_hub("space", "alice/set")
    assert found["settings"] == {
        "hardware": "t4-medium",
        "secrets": {"HF_TOKEN": "sesame-2", "OTHER": "sesame=5", "FROM_HERE": "sesame-4"},
        "variables": {"THEME": "light"},
    }
    assert found["files"]["requirements.txt"].endswith(b"\nhf-spectral[app] @ x\n")
    shown = [out, err, caplog.text, *map(repr, found["files"].items())]
    for name, status in (("secrets", 500), ("create", 400)):
        ask("POST", "fault", kind="status", status=status, path=name, times=1000)
        new = "alice/set" if name == "secrets" else "alice/new"
        shown.append(refusal(lambda new=new: push_space(new, folder=app, secrets={"A": "sesame-6"})))
        ask("POST", "mend")
    for wrong in ({"A": 7}, {"a b": "sesame"}, {"": "sesame"}, {"a=b": "sesame"}):
        shown.append(refusal(lambda wrong=wrong: push(secrets=wrong)))
    for words in (("--secrets", "sesame"), ("--secrets", "a b=sesame"), ("--secrets", "=sesame")):
        code, out, err = run("space", "alice/set", *words)
        assert code == 2
        shown += [out, err]
    assert not [text for text in shown if "sesame" in text]
    assert "`hardware`: expected one of cpu-basic, " in refusal(lambda: push(hardware="gpu"))
    # Nothing is changed in what belongs to something else.
    before = ask("GET", "requests")
    huggingface_hub.HfApi().create_repo("alice/foreign", repo_type="space", space_sdk="gradio")
    huggingface_hub.HfApi().upload_file(
        path_or_fileobj=b"1", path_in_repo="app.py", repo_id="alice/foreign", repo_type="space"
    )
    assert "something else" in refusal(lambda: push_space("alice/foreign", folder=app, secrets={"A": "b"}))
    assert not [path for _, path in ask("GET", "requests")[len(before) :] if path.endswith("/secrets")]


def test_a_version_that_is_on_no_index_is_told(app, caplog):
    for version in ("9.9.9", "9.9.9.dev0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hf_spectral.hub.space.__version__", version)
            push_space("alice/version", folder=app)
        assert (
            f"hf-spectral[app]=={version}\n"
            in on_the_hub("space", "alice/version")["files"]["requirements.txt"].decode()
        )
        assert ("9.9.9.dev0 is on no index" in caplog.text) == (version == "9.9.9.dev0")


def test_branches_pull_requests_and_private_repositories(basis, rows):
    info = push_to_hub(basis, "alice/branches", private=True, revision="first")
    there = on_the_hub("model", "alice/branches")
    assert there["private"]
    assert "basis.safetensors" not in there["files"]
    assert there["refs"]["first"] == info.oid
    same_basis(SpectralBasis.from_pretrained("alice/branches", revision="first"), basis)
    with pytest.raises(SpectralError, match="no alice/branches on the Hub, or none that your token may see"):
        SpectralBasis.from_pretrained("alice/branches", token=False, cache_dir="elsewhere")
    proposed = push_to_hub(basis, "alice/branches", create_pr=True)
    assert proposed.pr_revision == "refs/pr/1"
    same_basis(SpectralBasis.from_pretrained("alice/branches", revision="refs/pr/1"), basis)
    push_to_hub(rows, "alice/more", basis=basis, revision="second")
    proposed = push_to_hub(rows, "alice/more", basis=basis, create_pr=True)
    refs = on_the_hub("dataset", "alice/more")["refs"]
    assert list(refs) == ["main", "second", "refs/pr/1"]
    assert refs["refs/pr/1"] == proposed.oid
    name = "tiny-dinov2-what"
    same_rows(datasets.load_dataset("alice/more", name, split="train", revision="refs/pr/1"), rows)


def test_examples_of_docstrings_run(pipe, table, app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_spectral.hub.space._installed_app", lambda: app)
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(table):
        row["image"].save(tmp_path / "photos" / f"{number}.png")
    scope = {"pipe": pipe.__class__(model=pipe.model, image_processor=pipe.image_processor, num_eigenvectors=4)}
    for call in (push_to_hub, push_space, CardDetails):
        examples = doctest.DocTestParser().get_examples(call.__doc__)
        assert examples
        for example in examples:
            exec(example.source.replace('"user/', '"alice/example-'), scope)
    assert "basis.safetensors" in on_the_hub("model", "alice/example-name")["files"]
    assert (
        json.loads(on_the_hub("space", "alice/example-space")["files"]["space.json"])["basis"] == "alice/example-name"
    )


# --------------------------------------------------------------------------------------------- what goes wrong


def refusal(call):
    with pytest.raises(SpectralError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    # Also what a traceback prints, the errors before it among them.
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search("hf_(alice|bob|nobody)", shown) is None
    return message


@pytest.mark.parametrize(
    ("dropped", "times"),
    [("_large", 1), ("_large", 1000), ("/commit/", 1)],
    ids=["a file once", "every file", "the commit"],
)
@pytest.mark.parametrize("kind", ["basis", "rows", "space"])
def test_a_connection_that_drops_in_mid_upload_leaves_nothing_half_done(
    kind, dropped, times, basis, rows, app, tmp_path
):
    name = f"alice/{kind}-{dropped.strip('_/')}-{times}"
    repository = {"basis": "model", "rows": "dataset", "space": "space"}[kind]
    call = {
        "basis": lambda: push_to_hub(basis, name),
        "rows": lambda: push_to_hub(rows, name, basis=basis),
        "space": lambda: push_space(name, folder=app),
    }[kind]
    ask("POST", "forget")
    ask("POST", "fault", kind="drop", path=dropped, times=times)
    if (dropped, times) != ("_large", 1):  # A file that fails once is sent again by the client itself.
        message = refusal(call)
        assert "the Hub within reach" in message
        assert "make the same call again" in message
        assert set(on_the_hub(repository, name)["files"]) == {".gitattributes"}
        ask("POST", "mend")
    call()
    files = on_the_hub(repository, name)["files"]
    if kind == "basis":
        same_basis(SpectralBasis.from_pretrained(name), basis)
        assert files["basis.safetensors"] == (basis.save_pretrained(tmp_path) / "basis.safetensors").read_bytes()
    elif kind == "rows":
        same_rows(datasets.load_dataset(name, "tiny-dinov2-what", split="train"), rows)
        assert "## tiny-dinov2-what" in files["README.md"].decode()
    else:
        assert files["app.py"] == (app / "app.py").read_bytes()


def test_rows_without_their_card_get_it_by_the_same_call(basis, rows):
    push = lambda: push_to_hub(rows, "alice/cardless", basis=basis)  # noqa: E731
    # The shards' commit passes; everything after it fails.
    ask("POST", "fault", kind="status", status=500, path="resolve/.*README.md", times=1000)
    assert "an answer from the Hub" in refusal(push)
    assert "## tiny" not in on_the_hub("dataset", "alice/cardless")["files"]["README.md"].decode()
    ask("POST", "mend")
    push()
    assert "## tiny-dinov2-what" in on_the_hub("dataset", "alice/cardless")["files"]["README.md"].decode()
    same_rows(datasets.load_dataset("alice/cardless", split="train"), rows)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (False, "`repo_id`: expected a token that the Hub accepts, got none"),
        ("hf_nobodysecret", "`repo_id`: expected a token that the Hub accepts, got none, or one that is not valid"),
        ("hf_alicereads", "expected a token that may write there, got one that may only read"),
        ("hf_bobwrites", "expected a token that may write there, got one that may only read, or that belongs to"),
        ("hf_alice\nwrites", "`token`: expected a token as the Hub shows it, got one with spaces, line ends"),
        ("", "`token`: expected a token as the Hub shows it"),
    ],
)
def test_tokens_that_do_not_serve(token, message, basis, rows, app):
    for call in (
        lambda: push_to_hub(basis, "alice/tokens", token=token),
        lambda: push_to_hub(rows, "alice/tokens", basis=basis, token=token),
        lambda: push_space("alice/tokens", folder=app, token=token),
    ):
        assert message in refusal(call)
    assert on_the_hub("model", "alice/tokens") is None


def test_names_that_are_taken_keep_what_they_hold(basis, rows, app, pipe):
    before = on_the_hub("model", BACKBONE)
    message = refusal(lambda: push_to_hub(basis, BACKBONE))
    assert f"got {BACKBONE}, which holds something else: config.json, model.safetensors" in message
    assert on_the_hub("model", BACKBONE) == before
    basis.push_to_hub("alice/basis")
    assert "something else" in refusal(lambda: push_to_hub(pipe(photo(), return_result=True)["result"], "alice/basis"))
    datasets.Dataset.from_dict({"text": ["a"]}).push_to_hub("alice/texts")
    assert "something else: another dataset" in refusal(lambda: push_to_hub(rows, "alice/texts", basis=basis))
    api = huggingface_hub.HfApi()
    api.create_repo("alice/other-space", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="app.py", repo_id="alice/other-space", repo_type="space")
    assert "something else: app.py" in refusal(lambda: push_space("alice/other-space", folder=app))


@pytest.mark.parametrize(
    "name", ["basis", "a/b/c", "/tmp/x", "../x/y", "al ice/x", "alice/", "alice/../x", "", 7, None]
)
def test_names_that_are_none(name, basis, app):
    assert "expected a name such as user/name" in refusal(lambda: push_to_hub(basis, name))
    assert "expected a name such as user/name" in refusal(lambda: push_space(name, folder=app))


def test_what_is_asked_for_and_not_there(basis, app, tmp_path):
    push_to_hub(basis, "alice/gated")
    ask("POST", "gate", repository=["model", "alice/gated"])
    load = SpectralBasis.from_pretrained
    message = refusal(lambda: load("alice/gated", token=BOB, cache_dir=tmp_path))
    assert "expected a repository that is open to you, got alice/gated, which is gated" in message
    assert "no alice/absent on the Hub" in refusal(lambda: load("alice/absent"))
    assert "none of that name in alice/gated" in refusal(lambda: load("alice/gated", revision="nowhere"))
    assert f"got {BACKBONE}: config.json does not have the keys" in refusal(lambda: load(BACKBONE))
    assert "no alice/absent on the Hub" in refusal(lambda: SpectralResult.from_pretrained("alice/absent"))
    assert "result.safetensors: No such file" in refusal(lambda: SpectralResult.from_pretrained("alice/gated"))
    assert "`basis`: expected a repository that" in refusal(lambda: push_space("alice/s", basis="bob/no", folder=app))
    assert "`basis`: expected a repository that holds a basis" in refusal(
        lambda: push_space("alice/s", basis=BACKBONE, folder=app)
    )
    assert on_the_hub("space", "alice/s") is None
    assert "`basis`: expected a name such as" in refusal(lambda: push_space("alice/s", basis="./here", folder=app))
    assert "`folder`: expected an app with app.py" in refusal(lambda: push_space("alice/s", folder=tmp_path))


def test_a_gated_backbone_says_what_to_do(monkeypatch):
    BACKBONES["dinov2"].model().push_to_hub("alice/gated-model")
    ask("POST", "gate", repository=["model", "alice/gated-model"])
    monkeypatch.setenv("HF_TOKEN", BOB)
    message = refusal(lambda: hf_spectral.pipeline("alice/gated-model"))
    assert message.startswith(
        "`model`: expected a repository that is open to you, got alice/gated-model, which is gated"
    )
    assert "Ask for access on its page, and log in by: hf auth login; a Space needs a secret HF_TOKEN" in message


def test_a_hostile_basis_of_the_hub_is_refused():
    api = huggingface_hub.HfApi()
    api.create_repo("alice/hostile")
    for name, content in {"config.json": b"[" * 100_000, "basis.safetensors": b"\xff" * 64}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="alice/hostile")
    assert "got alice/hostile: " in refusal(lambda: SpectralBasis.from_pretrained("alice/hostile"))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (402, "a request for payment: Gradio Spaces ask for a PRO account"),
        (409, "a conflict with another commit"),
        (412, "a change by another commit"),
        (413, "files that are too large"),
        (429, "the limit that the Hub sets"),
        (500, "an error of the Hub (500)"),
    ],
)
def test_other_answers_of_the_hub(status, message, app):
    ask("POST", "fault", kind="status", status=status, path="/commit/", times=1000)
    assert message in refusal(lambda: push_space("alice/answers", folder=app))


def test_a_file_that_is_too_large(basis):
    ask("POST", "forget")
    ask("POST", "limit", max_bytes=100)
    assert "files that are too large for it (alice/large: 413)" in refusal(lambda: push_to_hub(basis, "alice/large"))
    ask("POST", "mend")
    push_to_hub(basis, "alice/large")
    same_basis(SpectralBasis.from_pretrained("alice/large"), basis)


def test_slow_answers(basis, tmp_path, monkeypatch):
    push_to_hub(basis, "alice/slow")
    ask("POST", "fault", kind="slow", seconds=0.3, path="", times=1000)
    same_basis(SpectralBasis.from_pretrained("alice/slow", cache_dir=tmp_path / "one"), basis)
    ask("POST", "mend")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    ask("POST", "fault", kind="slow", seconds=0.6, path="resolve", times=1000)
    message = refusal(lambda: SpectralBasis.from_pretrained("alice/slow", cache_dir=tmp_path / "two"))
    assert "make the same call again" in message
    same_basis(SpectralBasis.from_pretrained("alice/slow", cache_dir=tmp_path / "one"), basis)


def test_what_cannot_be_pushed(basis, rows, table):
    assert "a SpectralBasis, the rows that transform returned" in refusal(lambda: push_to_hub(7, "alice/x"))
    assert "with the columns eigenvectors and shape" in refusal(lambda: push_to_hub(table, "alice/x", basis=basis))
    of_the_hub = datasets.Dataset.from_list(list(rows), rows.features)
    message = refusal(lambda: push_to_hub(of_the_hub, "alice/x"))
    assert "`basis`: expected rows that transform has written, with one basis beside their files, got none" in message
    for license in ("mine", "other"):
        details = CardDetails(license=license)
        for call in (
            lambda: push_to_hub(basis, "alice/licenses", details=details),  # noqa: B023
            lambda: push_to_hub(rows, "alice/licenses", details=details),  # noqa: B023
        ):
            message = refusal(call)
            assert (
                "expected a card that the Hub takes, for alice/licenses, got Invalid metadata in README.md" in message
            )
            assert '- "license' in message
    both = refusal(lambda: push_to_hub(basis, "alice/x", revision="a", create_pr=True))
    assert "none beside create_pr=True" in both


def test_nothing_private_is_pushed(pipe, basis, details, app, table, tmp_path):
    folder = tmp_path / "somebody" / "secret-pictures"
    folder.mkdir(parents=True)
    for number, row in enumerate(table):
        row["image"].save(folder / f"{number}.png")
    found = hf_spectral.transform(pipe, str(folder), basis, output_dir=tmp_path / "rows", progress=False)
    push_to_hub(found, "alice/private-rows", basis=basis)
    push_to_hub(basis, "alice/private-basis", details=details)
    push_space("alice/private-space", folder=app)
    words = ["secret-pictures", str(tmp_path), str(Path.home()), str(Path.cwd()), "hf_alice"]
    # Names so short that they occur by chance prove nothing.
    words += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4]
    for kind, name in (("dataset", "rows"), ("model", "basis"), ("space", "space")):
        for path, content in on_the_hub(kind, f"alice/private-{name}")["files"].items():
            assert [word for word in words if word.encode() in content or word in path] == []


# ------------------------------------------------------------------------------------------------ the command line


def run(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def test_commands_push_what_commands_have_written(pipe, basis, app, tmp_path, monkeypatch, caplog):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(4):
        photo(seed=seed).save(pictures / f"{seed}.png")
    fitted, model = tmp_path / "basis", ("--model", BACKBONE)
    assert run("fit", pictures, *model, "--num-eigenvectors", 3, "--output", fitted)[0] == 0
    report = tmp_path / "report"
    assert run("report", pictures, *model, "--num-eigenvectors", 3, "--output", report)[0] == 0
    words = ("--example", pictures / "0.png", "--report", report / "layers.csv", "--license", "mit")
    code, out, _ = run("push", fitted, "alice/cli-basis", *words)
    assert (code, out.startswith(f"{HUB}/alice/cli-basis/commit/")) == (0, True)
    files = on_the_hub("model", "alice/cli-basis")["files"]
    assert {"images/eigenvectors.png", "images/layers.png"} <= set(files)
    assert b"| what | all |" in files["README.md"]
    words = ("--basis", "alice/cli-basis", "--output", tmp_path / "rows")  # It names its backbone.
    assert run("transform", pictures, *words)[0] == 0
    caplog.clear()
    code, out, _ = run("push", tmp_path / "rows", "alice/cli-rows", "--private")
    assert "License: unknown, since no dataset" in caplog.text
    assert (code, on_the_hub("dataset", "alice/cli-rows")["private"]) == (0, True)
    assert len(datasets.load_dataset("alice/cli-rows", split="train")) == 4
    assert run("analyze", pictures / "0.png", *model, "--pathway", "what", "--output", tmp_path / "one")[0] == 0
    assert run("push", tmp_path / "one" / "0.what.safetensors", "alice/cli-result", "--create-pr")[0] == 0
    pipe.save_pretrained(tmp_path / "pipeline")
    assert run("push", tmp_path / "pipeline", "alice/cli-pipeline")[0] == 0
    assert "spectral_pathways.py" in on_the_hub("model", "alice/cli-pipeline")["files"]
    monkeypatch.setattr("hf_spectral.hub.space._installed_app", lambda: app)
    code, out, _ = run("space", "alice/cli-space", "--basis", "alice/cli-basis")
    assert (code, out.startswith(f"{HUB}/spaces/alice/cli-space/commit/")) == (0, True)
    assert json.loads(on_the_hub("space", "alice/cli-space")["files"]["space.json"]) == {
        "basis": "alice/cli-basis",
        "title": "x",
    }


def test_mistakes_of_the_commands_give_one_line_and_exit_code_2(app, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_spectral.hub.space._installed_app", lambda: app)
    for words, message in (
        (("push", tmp_path, "alice/x"), "`PATH`: expected what fit, transform or analyze has written"),
        (("space", "alice/x", "--basis", "alice/absent"), "no alice/absent on the Hub"),
        (("space", "alice"), "expected a name such as user/name"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        (line,) = [line for line in err.splitlines() if line.startswith("hf-spectral:")]
        assert message in line


def test_the_installed_app_becomes_a_space(tmp_path):
    pytest.importorskip("spaces_app", reason="the app is another part of the work")
    push_space("alice/whole-space")
    there = on_the_hub("space", "alice/whole-space")["files"]
    assert {"app.py", "README.md", "requirements.txt", "space.json"} <= set(there)
    clone = Path(
        huggingface_hub.snapshot_download("alice/whole-space", repo_type="space", local_dir=tmp_path / "clone")
    )
    assert (clone / "app.py").read_bytes() == there["app.py"]
    assert np.array([line.strip() for line in there["requirements.txt"].decode().splitlines()]).size
