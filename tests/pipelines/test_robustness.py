"""Three hundred odd images through the pipeline, the command line and a fit: a result or one line each."""

import faulthandler
import json
import re

import datasets
import pytest
import transformers

from hf_spectral import SpectralError, fit
from hf_spectral.cli import main
from tests.pipelines.odd_images import COUNT, odd_files

# Pillow says what it finds wrong with a file that it reads all the same.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Files that are damaged, lie about their size, hold no picture, or numbers that are none.
BROKEN = re.compile("cut|changed|says|empty|one-byte|text|page|vector|nan|infinite")


@pytest.fixture(scope="module")
def pipe(backbone):
    return transformers.pipeline("spectral-pathways", model=backbone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, content in odd_files():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def outcomes(pipe, folder):
    """What the pipeline says of each file: None for a result, else the sentence."""
    found = {}
    for path in sorted(folder.iterdir()):
        faulthandler.dump_traceback_later(60, exit=True)  # What hangs ends the run and says where.
        try:
            output = pipe(str(path), num_eigenvectors=2, num_segments=None)
            assert output["eigenvectors"].isfinite().all()
            found[path.name] = None
        except SpectralError as error:
            found[path.name] = str(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return found


def test_the_files_are_many_and_the_same_every_time(folder):
    assert len(list(folder.iterdir())) == COUNT == 300
    assert dict(odd_files()) == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_gives_a_result_or_one_line(outcomes):
    sentences = [text for text in outcomes.values() if text is not None]
    assert len(outcomes) == COUNT
    assert all("\n" not in text and 20 < len(text) < 600 for text in sentences)
    whole = {name: text for name, text in outcomes.items() if not BROKEN.search(name)}
    assert len(whole) > 90
    assert [name for name, text in whole.items() if text is not None] == []
    assert all(text is not None for name, text in outcomes.items() if re.search("empty|text|page|vector|nan|inf", name))


def test_the_command_line_names_the_bad_and_writes_the_good(outcomes, folder, backbone, tmp_path):
    words = ["--model", backbone, "--pathway", "what", "--num-eigenvectors", "2", "--num-segments", "none"]
    assert main(["analyze", str(folder), *words, "--output", str(tmp_path)]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    failed = {one["image"].rpartition("/")[2] for one in summary["failed"]}
    assert failed == {name for name, text in outcomes.items() if text is not None}
    assert len(summary["images"]) + len(failed) == COUNT


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_fit_skips_the_bad_and_lists_them(outcomes, pipe, folder, kind):
    dataset = folder
    if kind == "table":
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.iterdir())]
        features = datasets.Features({"image": datasets.Image(decode=False)})
        dataset = datasets.Dataset.from_dict({"image": rows}, features).cast_column("image", datasets.Image())
    basis = fit(pipe, dataset, num_eigenvectors=2, on_error="skip", progress=False)
    assert basis.num_images == sum(text is None for text in outcomes.values())
    assert basis.num_images + len(basis.skipped) == COUNT
