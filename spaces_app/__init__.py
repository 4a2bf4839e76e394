"""The demo: a Gradio Space, and what `hf-spectral demo` opens.

The folder is both a package, which the wheel brings, and what a Space's repository holds: of the latter `SPACE_FILES`
only, since `hf-spectral[app]` in its `requirements.txt` brings the rest.
"""

SPACE_FILES = ("app.py", "README.md", "requirements.txt", "space.json")

__all__ = ["SPACE_FILES"]
