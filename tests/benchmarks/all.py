"""Every claim of the README: run its command, keep what it gave, write the table of claims and the README's figures.

    python -m tests.benchmarks.all --data DIR [--only NAME ...] [--render]

DIR holds the folders of pictures that `tests/benchmarks/README.md` describes. A claim that has been run is kept when a
later one fails: each writes `results/NAME.json` and its picture, and the pages are written anew after each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2

from tests.benchmarks.claims import CLAIMS, Claim
from tests.benchmarks.common import cell, leading, spread

HERE = Path(__file__).parent
README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- figures: python -m tests.benchmarks.all -->\n", "<!-- end of figures -->\n"
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    undefined=jinja2.StrictUndefined,
    finalize=cell,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the folders of pictures")
    parser.add_argument("--only", nargs="+", choices=[claim.name for claim in CLAIMS], help="default: all")
    parser.add_argument("--render", action="store_true", help="run nothing, write the pages from results/")
    options = parser.parse_args()
    if options.data is None and not options.render:
        parser.error("give --data DIR, or --render")
    failed = []
    for claim in () if options.render else CLAIMS:
        if options.only is None or claim.name in options.only:
            print(f"\n# {claim.name}: {claim.says} About {claim.minutes} min.", flush=True)
            if not run(claim, options.data):
                failed.append(claim.name)
            write_pages()
    write_pages()
    if failed:
        sys.exit(f"failed, their last figures stay: {', '.join(failed)}")


def run(claim: Claim, data: Path) -> bool:
    """Run one command and keep its rows; False if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        words = [sys.executable, "-m", *claim.words(data), "--json", str(path)]
        if subprocess.run(words, check=False).returncode or not path.exists():
            return False
        found = json.loads(path.read_text())
    keep(claim, found)
    return True


def keep(claim: Claim, found: dict[str, Any]) -> None:
    """Write rows and machine, without the options, which hold paths of the machine."""
    from tests.benchmarks.bars import draw_bars  # needs matplotlib, which reading what is kept does not

    result = {"machine": found["machine"], "command": claim.command, "rows": found[claim.part]}
    (HERE / "results" / f"{claim.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if claim.chart is not None:
        draw_bars(result["rows"], claim.chart, HERE / "images" / f"{claim.name}.png")


class Result:
    """What one command gave, asked as the templates ask.

    Args:
        claim: The claim.
        machine: Date, versions, threads.
        rows: Rows of equal columns; the first ones name the row.
    """

    def __init__(self, claim: Claim, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.claim, self.machine, self.rows = claim, machine, rows

    def row(self, *names: Any) -> dict[str, Any]:
        """Return the row whose first columns hold these values."""
        found = [one for one in self.rows if tuple(one.values())[: len(names)] == names]
        if len(found) != 1:
            raise KeyError(f"{self.claim.name}: {len(found)} rows begin with {names}")
        return found[0]

    def best(self, column: str, *endings: str) -> str:
        """Return the largest value of a column, with its row's name, among the rows whose name ends so."""
        rows = [one for one in self.rows if str(next(iter(one.values()))).endswith(endings)]
        top = max(rows, key=lambda one: leading(one[column]))
        return f"{leading(top[column]):.3f} ({next(iter(top.values()))})"

    def spread(self, column: str, solver: str) -> str:
        """Return median, smallest and largest value of a column over the rows of one solver."""
        values = [float(one[column]) for one in self.rows if one["solver"] == solver]
        return spread(values, digits=0 if min(values) > 10 else 4)

    @property
    def figures(self) -> str:
        """The claim's figures in words."""
        asks = {"rows": self.rows, "row": self.row, "best": self.best, "spread": self.spread}
        return PAGES.from_string(self.claim.figures).render(asks)


def results() -> dict[str, Result]:
    """Return what is kept, by name, in the order of the claims."""
    found = {}
    for claim in CLAIMS:
        path = HERE / "results" / f"{claim.name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            found[claim.name] = Result(claim, kept["machine"], kept["rows"])
    return found


def table_of_claims() -> str:
    """Return the page `tests/benchmarks/README.md`."""
    return PAGES.get_template("claims.md.jinja").render(claims=CLAIMS, results=results())


def figures_of_readme() -> str:
    """Return what stands between the two marks of the project's README."""
    return PAGES.get_template("figures.md.jinja").render(of=results())


def with_figures(readme: str) -> str:
    """Return the project's README with its figures written anew."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + figures_of_readme() + END + rest.split(END)[1]


def write_pages() -> None:
    """Write both pages."""
    (HERE / "README.md").write_text(table_of_claims(), encoding="utf-8")
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
