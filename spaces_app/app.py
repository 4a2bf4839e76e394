"""Entry point of the Space: `python app.py`. `space.json` beside it may name a basis to start with."""

import json
from pathlib import Path

from spaces_app.interface import Demo

chosen = json.loads((Path(__file__).parent / "space.json").read_text(encoding="utf-8"))
demo = Demo(basis=chosen["basis"])

if __name__ == "__main__":
    demo.launch()
