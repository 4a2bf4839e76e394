"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from hf_spectral import FitReport, SpectralBasis, SpectralError, SpectralResult
from hf_spectral.atomic import replacing, require_writable, save_picture
from hf_spectral.basis import as_basis
from hf_spectral.report import LayerReport
from hf_spectral.report.table import ReportRow
from tests.synthetic import EQUAL, dataset, fitted, photo


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for content in ("one", "two"):
        with replacing(path) as partial:
            partial.write_text(content)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError("no space left")

    with pytest.raises(SpectralError, match=r"`path`: expected a place that can be written, got .*no space left"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def made():
    """Everything that is saved, each with the name of the argument that says where."""
    records = dataset(EQUAL[:2])
    basis = fitted(records).solve(2)
    result = basis.project(records[0])
    report = LayerReport((ReportRow("what", 0, None, None, "layer", 0.1, 0.2, 0.3, 12, 100),))
    return [
        basis.save_pretrained,
        result.save_pretrained,
        FitReport(1, (), 1, 0.5).to_json,
        report.save_pretrained,
        lambda path: save_picture(photo(), path),
    ]


@pytest.mark.parametrize("place", ["file/x", "/proc/none/x", "n" * 300, "nul\0", "dangling/x"])
def test_whatever_is_saved_says_where_it_cannot_be_written(made, place, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "dangling").symlink_to("nowhere")
    for save in made:
        with pytest.raises(SpectralError, match="expected a place that can be written, got"):
            save(tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling"}


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        require_writable(folder, "output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("text")
    for folder in ("file", "file/x", "n" * 300, "nul\0"):
        with pytest.raises(SpectralError, match="`output`: expected a place that can be written, got"):
            require_writable(tmp_path / folder, "output")


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    with replacing(tmp_path / ("n" * 255)) as partial:
        partial.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


ABSENT = [Path("nowhere"), "nowhere", "/nowhere/at/all", "n" * 300, "nul\0", "folder/result.safetensors", "a/nowhere"]


@pytest.mark.parametrize("source", [*ABSENT, ""])
def test_where_nothing_lies_there_is_nothing_to_load(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load, argument in ((SpectralResult.from_pretrained, "source"), (SpectralBasis.from_pretrained, "basis")):
        with pytest.raises(SpectralError, match=f"`{argument}`: expected ") as caught:
            load(source)
        assert "\n" not in str(caught.value)
        said = "or folder of that name" if source == "a/nowhere" else "': " if source else "an empty one"
        assert said in str(caught.value)


def test_a_result_is_no_basis_and_a_basis_no_result(tmp_path):
    records = dataset(EQUAL[:2])
    basis = fitted(records).solve(2)
    result = basis.project(records[0])
    path = result.save_pretrained(tmp_path / "result.safetensors")
    folder = basis.save_pretrained(tmp_path / "basis")
    for wrong in (result, 1, 1.5, [], {}, b"x", None, True, SpectralBasis, photo()):
        with pytest.raises(SpectralError, match=f"`basis`: expected a path.*got a {type(wrong).__name__}"):
            as_basis(wrong)
    assert as_basis(basis) is basis
    assert as_basis(folder).config == basis.config
    with pytest.raises(SpectralError, match="`basis`: expected a folder that SpectralBasis.save_pretrained wrote"):
        SpectralBasis.from_pretrained(path)
    with pytest.raises(SpectralError, match="`source`: expected a file that SpectralResult.save_pretrained wrote"):
        SpectralResult.from_pretrained(folder)
