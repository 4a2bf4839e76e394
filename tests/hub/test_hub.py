"""There and back again over HTTP: a local Hub, and the true client libraries in a process of their own."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

import hf_spectral
from tests.hub import local_hub

ROOT = Path(__file__).parents[2]


def test_every_scenario_passes_without_leaving_this_machine(tmp_path):
    words = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "tests/hub/hub_scenarios.py"]
    with local_hub.running(local_hub.Hub()) as address:
        environment = local_hub.environment_of(address, tmp_path) | {"HF_SPECTRAL_TEST_HUB": "1"}
        command = [sys.executable, "-m", "pytest", *words]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    report = ended.stdout[-12_000:] + ended.stderr[-2_000:]
    assert ended.returncode == 0, report
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None, report
    assert int(passed[1]) >= 40, report


def unmet(line):
    """Return what of a line of requirements, and of the extras it names, is not installed here."""
    asked = Requirement(line)
    found = importlib.metadata.distribution(asked.name)
    needs = [Requirement(need) for need in found.requires or ()]
    for need in (asked, *needs):
        if need.marker and not any(need.marker.evaluate({"extra": one}) for one in asked.extras):
            continue
        # An editable install keeps the number that it was installed with.
        version = hf_spectral.__version__ if need is asked else importlib.metadata.version(need.name)
        if not need.specifier.contains(version, prereleases=True):
            yield str(need)


@pytest.mark.skipif(importlib.util.find_spec("spaces_app") is None, reason="the app is not there")
def test_a_space_starts_from_a_clean_clone_and_answers(tmp_path):
    from gradio_client import Client, handle_file

    from tests.spaces_app.space_server import choices, downloaded, free_port, serving
    from tests.synthetic import photo

    hub = local_hub.Hub()
    with local_hub.running(hub) as address:
        command = [sys.executable, "-m", "hf_spectral", "space", "alice/space"]
        environment = local_hub.environment_of(address, tmp_path / "home")
        said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "/spaces/alice/space/commit/" in said.stdout
    repository = hub.repositories["space", "alice/space"]
    clone = tmp_path / "clone"
    for name, file in repository.commits[repository.refs["main"]].items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(file.data)
    lines = (clone / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if "spectral" in line] == [f"hf-spectral[app]=={hf_spectral.__version__}"]
    assert [need for line in lines for need in unmet(line)] == []
    photo(120, 160).save(tmp_path / "photo.png")
    # What somebody who has duplicated the Space changes.
    written = (clone / "app.py").read_text()
    assert 30 <= len(written.splitlines()) <= 60
    photo(60, 90).save(clone / "mine.png")
    for line, changed in (
        ('TITLE = "Where, and what"', 'TITLE = "My <own> page"'),
        ("EXAMPLES = examples()", 'EXAMPLES = {"my picture": "mine.png"}'),
        ('    "CLIP base": "openai/', '    "My backbone": "alice/mine",\n    "CLIP base": "openai/'),
    ):
        assert written.count(line) == 1
        written = written.replace(line, changed)
    (clone / "app.py").write_text(written)
    with serving(["app.py"], clone, free_port()) as app:
        config = httpx.get(f"{app.url}/config").json()
        assert config["title"] == "My <own> page"
        assert "<h1>My &lt;own&gt; page</h1>" in str(config["components"])
        (model,) = [one["props"] for one in config["components"] if one["props"].get("elem_id") == "model"]
        assert ["My backbone", "alice/mine"] in model["choices"]
        (gallery,) = [one["props"] for one in config["components"] if one["props"].get("elem_id") == "examples"]
        assert [one["caption"] for one in gallery["value"]] == ["my picture"]
        client = Client(app.url, verbose=False, download_files=str(tmp_path / "got"))
        answer = client.predict(handle_file(str(tmp_path / "photo.png")), *choices(resolution=336), api_name="/analyze")
    assert downloaded(answer).eigenvectors.shape[1:] == (18, 24)
