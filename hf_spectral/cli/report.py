"""`hf-spectral report`: how the two pathways run through the depth of a backbone."""

from __future__ import annotations

import argparse
from typing import Any

from hf_spectral.atomic import require_writable, save_picture
from hf_spectral.cli.common import DONE, SOME_FAILED, add_noising, add_output, add_reading, load
from hf_spectral.records import PATHWAYS
from hf_spectral.report import LayerReport, layer_report
from hf_spectral.visualization.charts import require_matplotlib


def add_parsers(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the program.
    """
    parser = commands.add_parser("report", help="where-score and what-score of every layer, as a table and a chart")
    parser.set_defaults(command=run_report)
    add_reading(parser)
    add_noising(parser)
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
    require_writable(options.output, "--output")
    require_matplotlib()  # Before the passes over the images, not after them.
    pipe = load(options.model, options.device, options.timesteps, options.prompt, options.seed)
    names = ("num_eigenvectors", "batch_size", "resolution", "by_head", "max_images", "max_width", "on_error", "seed")
    settings = {name: getattr(options, name) for name in names}
    pathways = PATHWAYS if options.pathway == "both" else (options.pathway,)
    report = layer_report(pipe, options.folder, pathways=pathways, **settings)
    report.save_pretrained(options.output)
    save_picture(report.chart(), options.output / "layers.png")
    print(_as_text(report))
    print(f"Table and chart of {report.rows[0].num_images} images written to {options.output}")
    return SOME_FAILED if report.skipped else DONE


def _as_text(report: LayerReport) -> str:
    has_heads, has_timesteps = (
        any(getattr(row, name) is not None for row in report.rows) for name in ("head", "timestep")
    )
    titles = ["pathway", "layer", *["head"] * has_heads, *["timestep"] * has_timesteps]
    lines = [[*titles, "where-score", "what-score", "image-score", "weight", "name"]]
    for row in report.rows:
        cells = [row.pathway, "all" if row.layer is None else str(row.layer)]
        cells += ["" if row.head is None else str(row.head)] * has_heads
        cells += ["" if row.timestep is None else f"{row.timestep:g}"] * has_timesteps
        scores = (row.where_score, row.what_score, row.image_score, row.weight)
        lines.append([*cells, *("" if score is None else f"{score:.3f}" for score in scores), row.name])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = range(1, len(titles) + 4)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
