"""The registry of families: complete, and the only place that names one."""

import ast
from pathlib import Path

import pytest

import hf_spectral
from hf_spectral.errors import UnsupportedBackboneError
from hf_spectral.families import diffusers, transformers
from tests import make_tables
from tests.families.tiny_backbones import BACKBONES
from tests.families.tiny_denoisers import DENOISERS

ROOT = Path(hf_spectral.__file__).parent.parent
NAMES = {*transformers.FAMILIES, *diffusers.FAMILIES}


def test_no_file_outside_the_families_names_one():
    named = []
    for path in [*ROOT.glob("hf_spectral/**/*.py"), *ROOT.glob("spaces_app/**/*.py")]:
        if "families" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in NAMES:
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert named == []


def test_every_tiny_model_is_of_a_registered_family():
    for name, tiny in BACKBONES.items():
        tower = tiny.build()
        assert tower.config.model_type in transformers.FAMILIES, name
        assert tower.config.model_type in transformers.family_of(tower).model_types
    for name, tiny in DENOISERS.items():
        assert diffusers.family_of(type(tiny.build())) in diffusers.FAMILIES.values(), name


def test_a_derived_class_is_of_its_parents_family():
    class Mine(type(DENOISERS["flux"].build())):
        pass

    assert diffusers.family_of(Mine) is diffusers.FAMILIES["FluxTransformer2DModel"]
    with pytest.raises(UnsupportedBackboneError, match="expected a denoiser, one of .*, got dict"):
        diffusers.family_of(dict)


def test_the_tables_of_backbones_are_those_of_the_registries():
    written, readme = (path.read_text(encoding="utf-8") for path in (make_tables.PAGE, make_tables.README))
    assert written == make_tables.page(), "write it anew: python -m tests.make_tables"
    assert readme == make_tables.readme(readme), "write it anew: python -m tests.make_tables"
    assert [name for name in NAMES if f"`{name}`" not in written] == []
