"""The page of this Space. What is written below may be edited; `python app.py` shows it on your own machine too.

The parts come from the package that requirements.txt installs. To change one of them as well, copy the package's folder
`spaces_app` beside this file: Python takes it from there.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from spaces_app.interface import Demo
from spaces_app.pictures import examples

TITLE = "Where, and what"
LEAD = (
    "A frozen vision network knows more about a picture than it says. Its attention layers, read all at once, tell two "
    "things apart."
)

# The list of backbones: what it says, and the repository on the Hub. The first one is chosen at the start; "" is the
# default of the package. For a gated one, accept its terms on its page and give this Space a secret HF_TOKEN.
BACKBONES = {
    "DINOv2 small (default)": "",
    "DINOv2 base": "facebook/dinov2-base",
    "DINOv2 small, registers": "facebook/dinov2-with-registers-small",
    "DINOv3 small (gated)": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "SigLIP 2 base": "google/siglip2-base-patch16-naflex",
    "CLIP base": "openai/clip-vit-base-patch32",
    "SAM base": "facebook/sam-vit-base",
    "MAE base": "facebook/vit-mae-base",
    "ViT base, supervised": "google/vit-base-patch16-224",
}
# Generative models are read with noise. They need hf-spectral[app,diffusers] in requirements.txt, and a GPU.
if find_spec("diffusers"):
    BACKBONES["Stable Diffusion 1.5"] = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# Pictures to tap, by name: files beside this one, as in {"cat": "cat.jpg"}, or these, which installed packages ship.
EXAMPLES = examples()


def build(model: str | None = None, basis: str | None = None, allow_folders: bool = False) -> Demo:
    """Return the page, which starts with a backbone and a basis of your own, if they are named."""
    return Demo(model, basis, allow_folders, title=TITLE, lead=LEAD, backbones=BACKBONES, pictures=EXAMPLES)


if __name__ == "__main__":
    # `hf-spectral space --basis user/name` has written this file.
    start = json.loads((Path(__file__).parent / "space.json").read_text(encoding="utf-8"))
    build(basis=start["basis"]).launch()
