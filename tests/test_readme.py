"""What users read is run: Python, commands and links of README and documentation, and the examples of docstrings."""

import ast
import base64
import doctest
import io
import json
import os
import re
import shlex
import subprocess

import pytest
import yaml
from PIL import Image

import hf_spectral
from hf_spectral import metrics, report, visualization
from hf_spectral.cli import build_parser
from hf_spectral.hub.cards import LIBRARY
from tests import pages
from tests.pipelines.tiny_diffusion import host_pipeline

README = pages.README.read_text(encoding="utf-8")
# What blocks of other languages are: a citation, a text.
SHOWN = ("bibtex", "text")


@pytest.fixture
def scope(tmp_path, monkeypatch):
    """What a page starts with: an empty folder, where the names of the Hub that pages load are folders."""
    monkeypatch.chdir(tmp_path)
    host_pipeline("sd").save_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    return {}


def test_the_python_of_the_readme_runs(scope):
    pages.run(pages.README, scope)
    assert scope["out"]["eigenvectors"].shape[0] == 16
    assert scope["out"]["segmentation"].size == (640, 427)
    assert len(scope["rows"]) == 4
    assert scope["rows"][0]["segmentation"].size == (320, 214)
    assert scope["out_of_sample"]["eigenvectors"].shape[0] == 128


@pytest.mark.parametrize("page", [one for one in pages.PAGES[1:] if one != pages.PUBLISH], ids=lambda page: page.stem)
def test_the_python_of_the_documentation_runs(page, scope):
    if not pages.blocks(page, "python"):
        pytest.skip("no Python")
    pages.run(page, scope)


def test_every_other_block_is_a_command_or_says_why_it_is_not_run():
    set_up = pages.blocks(pages.README, "bash")  # .ci/run runs them.
    for page in pages.PAGES:
        for language, text, why in pages.all_blocks(page):
            assert language in ("python", "sh", *SHOWN) or why or text in set_up, f"{page.name}: {text}"


def test_a_block_that_is_not_run_is_told_from_one_that_is(tmp_path):
    page = tmp_path / "page.md"
    text = "<!-- not run: pushes -->\n```py\npush()\n```\n\n1. One\n\n    ```python\n    a = 1\n    ```\n"
    page.write_text(text + "\n```\nleft\n```\n", encoding="utf-8")
    assert pages.all_blocks(page) == [("py", "push()\n", "pushes"), ("python", "a = 1\n", None), ("", "left\n", None)]


def test_the_readme_is_short_and_shows_python_by_line_30():
    assert README.count("\n") <= 130
    assert README[: README.index("```python")].count("\n") < 30


def test_two_commands_set_everything_up():
    commands = [line for block in pages.blocks(pages.README, "bash") for line in block.splitlines()]
    assert len(commands) == 2
    assert commands[0].endswith("hf-spectral quickstart")
    assert commands[1].endswith("python -m pytest -n 2 --dist loadfile")


LINES = {line for page in pages.PAGES for block in pages.blocks(page, "sh") for line in block.splitlines()}


@pytest.mark.parametrize("line", sorted(LINES))
def test_command_lines_parse(line):
    words = shlex.split(line, comments=True)
    if words[0] == "accelerate":
        words = ["hf-spectral", *words[words.index("hf_spectral") + 1 :]]
    assert words[0] == "hf-spectral"
    assert callable(build_parser().parse_args(words[1:]).command)


def test_contributing_names_what_is_there():
    text = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"(?:hf_spectral|tests|\.ci)/[\w./]*\w", text))
    assert {"hf_spectral/families/transformers/vit.py", "tests/solvers/test_solvers.py", ".ci/run"} <= paths
    assert [path for path in sorted(paths) if not (pages.ROOT / path).exists()] == []
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        assert re.search(rf"\b{name}\b", (pages.ROOT / path).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_a_newcomer_runs():
    workflow = yaml.safe_load((pages.ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": ".ci/run"}


def test_a_release_is_tested_checked_and_published_without_a_token():
    path = pages.ROOT / ".github" / "workflows" / "release.yml"
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as True.
    assert jobs["test"] == {"uses": "./.github/workflows/ci.yml"}
    assert [jobs[name]["needs"] for name in ("build", "publish")] == ["test", "build"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not re.search("secrets|password|token:(?! write)", text)
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands[-1] == ".ci/check_package dist"
    for tag, code in ((f"v{hf_spectral.__version__}", 0), ("v9.9.9", 1)):
        environment = {**os.environ, "GITHUB_REF_NAME": tag}
        assert subprocess.run(["sh", "-c", commands[1]], cwd=pages.ROOT, env=environment).returncode == code


def test_the_entry_for_huggingface_js_has_the_name_that_cards_state():
    text = (pages.ROOT / "docs" / "huggingface-js.md").read_text(encoding="utf-8")
    assert f'\t"{LIBRARY}": {{' in text
    assert '`path:"basis.safetensors" OR path:"result.safetensors"`' in text


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    """Those of the pages to what `docs/hooks.py` adds are checked by the strict build."""
    for target in re.findall(r"\]\((?!https?:|images/|claims/)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
    assert page != pages.README or "model_cards/images/pathways.png" in README


# `ImageSource` is a type, `layer_report` reads a dataset.
NOT_RUN = ("ImageSource", "layer_report")
ROOMS = (metrics, visualization, report)
EXPLAINED = {name: getattr(room, name) for room in ROOMS for name in room.__all__ if name not in NOT_RUN}


@pytest.mark.parametrize("name", EXPLAINED)
def test_examples_of_docstrings_run(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(EXPLAINED[name], name, module=False, globs={})
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_the_notebook_runs_from_top_to_bottom_and_shows_what_it_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((pages.ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, 11))
    scope = {}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "tour.ipynb", "exec"), scope)
        given = None if last is None else eval(compile(ast.Expression(last.value), "tour.ipynb", "eval"), scope)
        kept = [output["data"] for output in cell["outputs"]]
        assert len(kept) == (given is not None)
        if isinstance(given, Image.Image):
            picture = Image.open(io.BytesIO(base64.b64decode(kept[0]["image/jpeg"])))
            assert picture.size == given.size
        elif kept:
            assert "".join(kept[0]["text/plain"]).split()[0] == repr(given).split()[0]
