"""`hf-spectral report`: how the two pathways run through the depth of a backbone."""

from __future__ import annotations

import argparse
from typing import Any

from hf_spectral.cli.common import DONE, SOME_FAILED, add_output, add_reading, load
from hf_spectral.config import PATHWAYS
from hf_spectral.report import LayerReport, layer_report


def add_parsers(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the program.
    """
    parser = commands.add_parser("report", help="where-score and what-score of every layer, as a table and a chart")
    parser.set_defaults(command=run_report)
    add_reading(parser)
    parser.add_argument("--pathway", choices=[*PATHWAYS, "both"], default="both", help="default: both")
    parser.add_argument("--num-eigenvectors", type=int, default=13, metavar="N", help="default: 13")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="longer side; default: the backbone's")
    parser.add_argument("--by-head", action="store_true", help="score every head on its own")
    parser.add_argument("--max-images", type=int, metavar="N", help="default: all; a hundred give steady scores")
    parser.add_argument("--max-width", type=int, metavar="N", help="bound on the Gram matrix; default: none, exact")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    add_output(parser, "report")


def run_report(options: argparse.Namespace) -> int:
    """Score the layers over a folder of pictures; write `layers.csv` and `layers.png`, and print the table.

    Args:
        options: What `report --help` lists.

    Returns:
        The exit code.
    """
    pipe = load(options.model, options.device)
    names = ("num_eigenvectors", "batch_size", "resolution", "by_head", "max_images", "max_width", "on_error", "seed")
    settings = {name: getattr(options, name) for name in names}
    pathways = PATHWAYS if options.pathway == "both" else (options.pathway,)
    report = layer_report(pipe, options.folder, pathways, **settings)
    report.to_csv(options.output / "layers.csv")
    report.chart().save(options.output / "layers.png")
    print(_as_text(report))
    print(f"Table and chart of {report.rows[0].num_images} images written to {options.output}")
    return SOME_FAILED if report.skipped else DONE


def _as_text(report: LayerReport) -> str:
    lines = [f"{'pathway':8} {'layer':>5} {'head':>4} {'where-score':>11} {'what-score':>10} {'image-score':>11}"]
    for row in report.rows:
        layer = "all" if row.layer is None else str(row.layer)
        head = "" if row.head is None else str(row.head)
        scores = f"{row.where_score:11.3f} {row.what_score:10.3f} {row.image_score:11.3f}"
        lines.append(f"{row.pathway:8} {layer:>5} {head:>4} {scores}  {row.name}".rstrip())
    return "\n".join(lines)
