"""Every figure that is published comes from a run whose rows are kept, and has a command."""

import json
import re
import shlex

import pytest

from tests.benchmarks import all as claims
from tests.benchmarks.claims import CLAIMS

REMEDY = "write it anew: python -m tests.benchmarks.all --render"


def test_the_table_of_claims_is_what_the_kept_results_say():
    assert (claims.HERE / "README.md").read_text(encoding="utf-8") == claims.table_of_claims(), REMEDY


def test_the_figures_of_the_readme_are_what_the_kept_results_say():
    readme = claims.README.read_text(encoding="utf-8")
    assert readme == claims.with_figures(readme), REMEDY


def test_each_result_is_of_the_command_that_its_claim_names():
    for name, result in claims.results().items():
        kept = json.loads((claims.HERE / "results" / f"{name}.json").read_text())
        assert kept["command"] == result.claim.command, f"run it anew: --only {name}"
        assert result.rows
        assert (claims.HERE / "images" / f"{name}.png").exists() == (result.claim.chart is not None)
    names = {claim.name for claim in CLAIMS}
    assert {path.stem for path in (claims.HERE / "results").iterdir()} <= names
    assert len(names) == len(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_each_command_is_of_a_benchmark_that_exists(claim):
    module, *_ = shlex.split(claim.command)
    source = (claims.HERE / f"{module}.py").read_text(encoding="utf-8")
    for option in re.findall(r"--[a-z-]+", claim.command):
        assert f'"{option}"' in source
    assert '"--json"' in source


def test_no_result_holds_a_path():
    for path in (claims.HERE / "results").iterdir():
        assert not re.search(r"\"/\w+/", path.read_text(encoding="utf-8"))


def result(rows):
    return claims.Result(CLAIMS[0], {}, rows)


def test_rows_are_found_by_their_first_columns():
    found = result([{"pathway": "what", "images": 50, "x": 1.0}, {"pathway": "what", "images": 100, "x": 2.0}])
    assert found.row("what", 100)["x"] == 2.0
    with pytest.raises(KeyError, match="2 rows begin with"):
        found.row("what")


def test_best_and_spread_read_cells_with_a_spread():
    rows = [{"name": "a alone", "NMI": "0.500 (0.4-0.6)"}, {"name": "b alone", "NMI": "0.700 (0.6-0.8)"}]
    assert result([*rows, {"name": "all", "NMI": "0.900"}]).best("NMI", " alone") == "0.700 (b alone)"
    times = [{"image": str(value), "solver": "eigen", "times": value} for value in (20.0, 12.0, 40.0)]
    assert result(times).spread("times", "eigen") == "20 (12-40)"
