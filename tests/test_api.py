"""The public names: none is missing in the documentation, and few are imported before they are asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_spectral
from hf_spectral import SpectralConfig, SpectralResult, TokenGrid
from hf_spectral.result import SolveStatus
from tests.synthetic import planted_record, three_blobs

ROOT = Path(__file__).parent.parent
LAZY = {"CardDetails", "SpectralDiffusionPipeline", "push_space", "push_to_hub"}


def test_every_public_name_is_on_a_page_of_the_documentation():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pages" / "api").iterdir())
    shown = re.findall(r"^::: hf_spectral\.(?:\w+\.)*(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(shown) == sorted([*hf_spectral.__all__, "metrics", "visualization"])


def test_names_that_are_imported_on_demand_are_listed():
    assert set(hf_spectral.__all__) >= LAZY
    assert set(dir(hf_spectral)) >= {*hf_spectral.__all__, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hf_spectral.nothing  # noqa: B018


def test_without_diffusers_all_names_can_be_imported_and_none_is_imported_early():
    script = """
        import sys
        from importlib import util
        found = util.find_spec
        util.find_spec = lambda name, *rest: None if name == "diffusers" else found(name, *rest)
        import hf_spectral
        assert not {"diffusers", "datasets", "gradio", "matplotlib", "hf_spectral.hub"} & set(sys.modules)
        from hf_spectral import *
        assert "diffusers" not in sys.modules and push_to_hub.__name__ == "push_to_hub"
    """
    subprocess.run([sys.executable, "-c", "\n".join(map(str.strip, script.splitlines()))], check=True)


def result(**changes):
    settings = {
        "eigenvalues": torch.tensor([0.0, 0.25]),
        "eigenvectors": torch.ones(2, 3, 4),
        "residuals": torch.tensor([1e-7, 2e-6]),
        "status": SolveStatus.CONVERGED,
        "steps": 3,
        "grid": TokenGrid(3, 4),
        "layers": ("a", "b"),
        "layer_weights": (0.5, 0.5),
        "config": SpectralConfig("where", num_eigenvectors=2),
        "solver": {"name": "EigenSolver"},
    }
    return SpectralResult(**{**settings, **changes})


def test_a_result_and_a_basis_are_shown_in_a_few_lines():
    assert repr(result()).splitlines() == [
        "SpectralResult",
        "  pathway: where",
        "  eigenvectors: 2 on a grid of 3 x 4 tokens",
        "  eigenvalues: 0.0000, 0.2500",
        "  layers: 2",
        "  status: converged, largest residual 2.0e-06",
    ]
    assert "<td>&lt;b&gt; stretched</td>" in result(notes=("<b> stretched",))._repr_html_()
    accumulator = hf_spectral.BasisAccumulator(SpectralConfig("what", "cosine"))
    records = [planted_record(three_blobs(6, 7), noise=1.0)]
    accumulator.add_sums(records)
    accumulator.add_gram(records)
    basis = accumulator.solve(7, seed=0, backbone={"id": "user/backbone"})
    lines = str(basis).splitlines()
    assert lines[:3] == ["SpectralBasis", "  pathway: what", "  eigenvectors: 7 of 1 layers"]
    assert lines[3].endswith(f"{float(basis.eigenvalues[4]):.4f}, ...")
    assert lines[4:] == ["  fitted on: 1 images, 42 tokens, 0 skipped", "  backbone: user/backbone"]
    assert basis._repr_html_().startswith("<table><caption>SpectralBasis</caption><tr><th>pathway</th><td>what</td>")


def test_what_is_kept_has_the_names_of_the_hosts(tmp_path):
    kept = result()
    for place, file in (("folder", "folder/result.safetensors"), ("photo.safetensors", "photo.safetensors")):
        path = kept.save_pretrained(tmp_path / place)
        assert path == tmp_path / place
        assert (tmp_path / file).is_file()
        for source in (path, tmp_path / file):
            assert SpectralResult.from_pretrained(source).eigenvectors.equal(kept.eigenvectors)
    for one in (SpectralResult, hf_spectral.SpectralBasis):
        assert {"from_pretrained", "save_pretrained", "push_to_hub"} <= set(dir(one))
        assert not {"save", "load"} & set(dir(one))
