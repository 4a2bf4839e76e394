"""The page of the public names says what the docstrings say, and leaves none out."""

import hf_spectral
from tests import make_api


def test_the_page_is_what_the_docstrings_say():
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "write it anew: python -m tests.make_api"


def test_every_public_name_is_on_the_page():
    named = {name for names in make_api.GROUPS.values() for name in names}
    assert named >= set(hf_spectral.__all__)
    assert " object at 0x" not in make_api.page()


def test_sections_become_lists():
    found = make_api.prose("Do it.\n\nArgs:\n    one: First,\n        in two lines.\n\nReturns:\n    Nothing.")
    assert "- `one`: First," in found
    assert found[found.index("- `one`: First,") + 1] == "  in two lines."
    assert found[-1] == "Nothing."
