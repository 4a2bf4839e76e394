"""The pages that users read, and their blocks of code: README, and the documentation."""

import re
from pathlib import Path

from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs" / "pages").glob("*.md")))
# Its blocks push: `hub_scenarios.py` runs them.
PUBLISH = ROOT / "docs" / "pages" / "publish.md"
BLOCK = re.compile(r"(?:^ *<!-- not run: (.+) -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    """Return the blocks of a page in some languages."""
    return [text for language, text, _ in all_blocks(page) if language in languages]


def all_blocks(page):
    """Return language, text, and why it is not run (or None), of each block of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        (language, re.sub(f"^{indent}", "", text, flags=re.M), why or None) for why, indent, language, text in found
    ]


def run(page, scope, ids="user/"):
    """Run the Python of a page in the current folder, one block after the other.

    Args:
        page: The page.
        scope: Receives its names.
        ids: In the place of "user/", with which ids of repositories begin.
    """
    Path("photos").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name)).resize((320, 214))
        photo.save(Path("photos") / name)
        ImageOps.mirror(photo).save(Path("photos") / f"mirrored-{name}")
    Image.fromarray(load_sample_image("flower.jpg")).save("photo.jpg")
    for text in blocks(page, "python"):
        exec(compile(text.replace('"user/', f'"{ids}'), page.name, "exec"), scope)
