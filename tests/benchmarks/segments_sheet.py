"""A sheet of segments on pictures that nobody chose: every tenth of a folder, as it is, by tokens (ward), by the tree.

python -m tests.benchmarks.segments_sheet FOLDER SHEET.png [--every 10] [--resolution 952]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from hf_spectral import SpectralConfig, build_problem, read_image, segment, solve
from hf_spectral.visualization import segmentation_overlay
from tests.benchmarks.common import default_pipe
from tests.benchmarks.dataset_cost import pictures
from tests.benchmarks.single_image import NUM_EIGENVECTORS, records_and_tokens

TILE = 300


def main() -> None:
    """Segment the pictures with the automatic number, and write the sheet: one row per picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--resolution", type=int, default=952)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    pipe = default_pipe(options.threads)
    paths = pictures(options.folder)[:: options.every]
    sheet = Image.new("RGB", (3 * TILE, TILE * len(paths)), "white")
    for row, path in enumerate(tqdm(paths, disable=None)):
        image = read_image(path)
        records, _, _ = records_and_tokens(pipe, image, options.resolution)
        config = SpectralConfig(num_eigenvectors=NUM_EIGENVECTORS, layer_weights="auto")
        result = solve(build_problem(records, config))
        found = [segment(result, image=image, method=method) for method in ("ward", "tree")]
        tiles = [image, *(segmentation_overlay(image, one.labels) for one in found)]
        for column, tile in enumerate(tiles):
            tile.thumbnail((TILE - 6, TILE - 6))
            sheet.paste(tile, (column * TILE, row * TILE))
        print(path.name, *(one.num_segments for one in found), flush=True)
    sheet.save(options.sheet)


if __name__ == "__main__":
    main()
