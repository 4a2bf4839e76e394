"""`hf-spectral report`: the scores of both pathways, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_spectral.atomic import save_picture
from hf_spectral.checks import require_extra
from hf_spectral.cli.common import DATASET, DONE, MODEL, SOME_FAILED, add_command, chosen, load
from hf_spectral.records import PATHWAYS
from hf_spectral.report import LayerReport, layer_report


def add_parsers(commands: Any) -> None:
    """Add `report` to the subparsers of the program."""
    text = "where-score and what-score of every layer, as a table and a chart"
    read = f"{DATASET} {MODEL} --batch-size --on-error --timesteps --prompt --output"
    solved = "--pathway --num-eigenvectors --resolution --max-width --seed"
    defaults = {"num_eigenvectors": 13, "output": Path("report")}
    parser = add_command(commands, "report", _report, text, f"{read} {solved}", **defaults)
    parser.add_argument("--by-head", action="store_true", help="score every head on its own")
    parser.add_argument("--max-images", type=int, metavar="N", help="default: all; a hundred give steady scores")


def _report(options: argparse.Namespace) -> int:
    """Score the layers over a folder of pictures; write `layers.csv` and `layers.png`, and print the table."""
    require_extra("charts", "matplotlib")  # Before the passes over the images, not after them.
    pipe = load(options)
    pathways = PATHWAYS if options.pathway == "both" else (options.pathway,)
    report = layer_report(pipe, pathways=pathways, **chosen(options, layer_report))
    report.save_pretrained(options.output)
    save_picture(report.chart(), options.output / "layers.png")
    print(_as_text(report))
    print(f"Table and chart of {report.rows[0].num_images} images written to {options.output}")
    return SOME_FAILED if report.skipped else DONE


def _as_text(report: LayerReport) -> str:
    columns = ["pathway", "layer", "head", "timestep", "where_score", "what_score", "image_score", "weight", "name"]
    for optional in ("head", "timestep"):
        if all(getattr(row, optional) is None for row in report.rows):
            columns.remove(optional)
    lines = [[name.replace("_", "-") for name in columns]]
    lines += [[_cell(name, getattr(row, name)) for name in columns] for row in report.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    justified = [str.ljust, *[str.rjust] * (len(columns) - 2), str.ljust]
    rows = (zip(justified, line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(justify(cell, width) for justify, cell, width in row).rstrip() for row in rows)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "layer" else ""
    if name.endswith("score") or name == "weight":
        return f"{value:.3f}"
    return f"{value:g}" if name == "timestep" else str(value)
