"""Files that appear whole or not at all."""

import pytest

from hf_spectral import SpectralError
from hf_spectral.atomic import replacing


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
