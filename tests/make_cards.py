"""Make the rendered cards of `model_cards/` again: real runs of DINOv2-small, pushed to the local Hub and fetched back.

python -m tests.make_cards

The pictures are the two photographs that scikit-learn ships, and their quarters: few, so that anyone can make the
cards again in a minute, and too few to say anything about the backbone. The cards say so.
"""

import json
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from tests.hub import local_hub

OUTPUT = Path(__file__).parent.parent / "model_cards"
_LISTENING = socket.create_server(("127.0.0.1", 0))
# Read when the libraries are imported.
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{_LISTENING.getsockname()[1]}",
    "HF_HUB_DISABLE_XET": "1",
    "HF_TOKEN": "hf_alicewrites",
    "HF_HUB_CACHE": tempfile.mkdtemp(),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

import datasets  # noqa: E402
from huggingface_hub import snapshot_download  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402

import hf_spectral  # noqa: E402
from hf_spectral.config import PATHWAYS  # noqa: E402
from hf_spectral.hub import CardDetails  # noqa: E402
from hf_spectral.hub.cards import basis_context, rows_context  # noqa: E402
from hf_spectral.hub.rows import config_name  # noqa: E402
from hf_spectral.report import LayerReport, layer_report  # noqa: E402

ORIGIN = (
    "**This is an example of a card.** {pictures} Enough to show how the parts fit together, far too few to judge the "
    "backbone or the method by. The photographs are those that scikit-learn ships, china.jpg by danielbuechele and "
    "flower.jpg by vultilion, both under [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)."
)
OF_BASES = ORIGIN.format(pictures="It was fitted on two photographs and their quarters, ten pictures in all.")
OF_ROWS = ORIGIN.format(pictures="The rows are two photographs; the basis was fitted on them and their quarters.")
BASE_MODEL, LICENSE = "facebook/dinov2-small", "cc-by-2.0"
ROWS = "alice/dinov2-small-rows"


def pictures():
    """Return each photograph, then its quarters."""
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name))
        width, height = photo.width // 2, photo.height // 2
        yield photo
        for left, top in ((0, 0), (width, 0), (0, height), (width, height)):
            yield photo.crop((left, top, left + width, top + height))


def details(summary, report=None, examples=()):
    return CardDetails(summary, None, BASE_MODEL, LICENSE, report, examples)


def keep(kind, repo_id, name, context):
    """Fetch the card and its pictures, and store beside them what the card was rendered from."""
    target = OUTPUT / name
    shutil.rmtree(target, ignore_errors=True)
    snapshot_download(repo_id, repo_type=kind, local_dir=target, allow_patterns=["README.md", "images/*"])
    shutil.rmtree(target / ".cache")
    (target / "card.json").write_text(json.dumps(context, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main():
    server = local_hub.server(local_hub.Hub())
    threading.Thread(target=server.run, kwargs={"sockets": [_LISTENING]}, daemon=True).start()
    pipe = hf_spectral.pipeline()
    table = datasets.Dataset.from_dict({"image": list(pictures())}).cast_column("image", datasets.Image())
    report = layer_report(pipe, table)
    for pathway in PATHWAYS:
        basis = hf_spectral.fit(pipe, table, pathway=pathway, num_eigenvectors=16)
        photo = table[0]["image"]
        own = LayerReport(tuple(row for row in report.rows if row.pathway == pathway))
        about = details(
            OF_BASES, own, [(photo, pipe(photo, basis=basis, num_segments=None, return_result=True)["result"])]
        )
        repo_id = f"alice/dinov2-small-{pathway}"
        hf_spectral.push_to_hub(basis, repo_id, details=about)
        drawn = ["images/eigenvectors.png", "images/layers.png"]
        keep("model", repo_id, f"basis-{pathway}", basis_context(basis, repo_id, about, drawn))
    photographs = table.select([0, 5])
    rows = hf_spectral.transform(pipe, photographs, basis, num_segments=8)
    name = config_name(basis)
    hf_spectral.push_to_hub(rows, ROWS, basis=basis, details=details(OF_ROWS))
    drawn = [f"images/{name}-eigenvectors.png", f"images/{name}-segments.png"]
    keep("dataset", ROWS, "analyzed-dataset", rows_context(rows, basis, ROWS, details(OF_ROWS), name, drawn))


if __name__ == "__main__":
    main()
