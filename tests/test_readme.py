"""What users read is run: the Python, pictures and commands of the README, and the examples of docstrings."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_sample_image

from hf_spectral import metrics, report, visualization
from hf_spectral.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        Image.fromarray(load_sample_image(name)).resize((320, 214)).save(Path("photos") / name)
    Image.fromarray(load_sample_image("flower.jpg")).save("photo.jpg")
    scope = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["out"]["eigenvectors"].shape[0] == 16
    assert scope["out"]["segmentation"].size == (640, 427)
    assert len(scope["result"].layers) == 4
    assert len(scope["rows"]) == 2
    assert scope["rows"][0]["segmentation"].size == (320, 214)
    assert scope["out_of_sample"]["eigenvectors"].shape[0] == 32


def test_the_first_python_stands_by_line_30():
    assert README[: README.index("```python")].count("\n") < 30


def test_two_commands_set_everything_up():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 2
    assert commands[0].endswith("hf-spectral quickstart")
    assert commands[1].endswith("python -m pytest")


@pytest.mark.parametrize("line", [line for block in blocks("") for line in block.splitlines() if line.strip()])
def test_command_lines_parse(line):
    words = shlex.split(line, comments=True)
    if words[0] == "accelerate":
        words = ["hf-spectral", *words[words.index("hf_spectral") + 1 :]]
    assert words[0] == "hf-spectral"
    assert callable(build_parser().parse_args(words[1:]).command)


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"(?:hf_spectral|tests|\.ci)/[\w./]*\w", text))
    assert {"hf_spectral/families/transformers/vit.py", "tests/solvers/test_solvers.py", ".ci/run"} <= paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_a_newcomer_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": ".ci/run"}


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file()


# `ImageSource` is a type, `layer_report` reads a dataset.
NOT_RUN = ("ImageSource", "layer_report")
ROOMS = (metrics, visualization, report)
EXPLAINED = {name: getattr(room, name) for room in ROOMS for name in room.__all__ if name not in NOT_RUN}


@pytest.mark.parametrize("name", EXPLAINED)
def test_examples_of_docstrings_run(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(EXPLAINED[name], name, module=False, globs={})
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
