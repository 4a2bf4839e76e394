"""Write the page of the public names, `hf_spectral/API.md`, from their docstrings.

python -m tests.make_api
"""

import enum
import inspect
import re
import typing
from pathlib import Path

import hf_spectral
from hf_spectral import metrics, visualization

PAGE = Path(hf_spectral.__file__).parent / "API.md"
GROUPS = {
    "One image": [
        "pipeline",
        "SpectralPathwaysPipeline",
        "SpectralDiffusionPipeline",
        "read_image",
        "segment",
        "instances",
        "SpectralResult",
        "SolveStatus",
        "token_affinity",
        "TokenAffinity",
    ],
    "A dataset": ["fit", "transform", "FitReport", "SpectralBasis", "BasisAccumulator", "layer_report", "LayerReport"],
    "To the Hub": ["push_to_hub", "push_space", "CardDetails"],
    "The parts": [
        "capture_attention",
        "vision_tower",
        "AttentionRecord",
        "Capture",
        "TokenGrid",
        "SpectralConfig",
        "Attention",
        "Exponential",
        "Cosine",
        "NearestNeighbors",
        "build_problem",
        "JointProblem",
        "solve",
        "EigenSolver",
        "GradientSolver",
    ],
    "Errors": ["HFSpectralError", "SpectralError", "NotConvergedError", "UnsupportedBackboneError"],
}
MODULES = {"Measures (`hf_spectral.metrics`)": metrics, "Pictures (`hf_spectral.visualization`)": visualization}
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example):$")
ITEM = re.compile(r"^(\S[^:]*): (.*)$")


def page():
    """Return the page."""
    groups = {title: [(name, getattr(hf_spectral, name)) for name in names] for title, names in GROUPS.items()}
    groups |= {title: [(name, getattr(room, name)) for name in room.__all__] for title, room in MODULES.items()}
    lines = ["# API", "", "Public names and what their docstrings say; written by `python -m tests.make_api`.", ""]
    for title, entries in groups.items():
        lines.append(f"- {title}: " + ", ".join(f"[`{name}`](#{name.lower()})" for name, _ in entries))
    for title, entries in groups.items():
        lines += ["", f"## {title}"]
        for name, value in entries:
            lines += ["", *entry(name, value)]
    return "\n".join(lines) + "\n"


def entry(name, value):
    """Return the lines of one name: heading, signature, docstring, and those of its public methods."""
    lines = [f"### {name}", "", *signature(name, value), *prose(inspect.getdoc(value))]
    for method, found in methods(value):
        shown = getattr(found, "__func__", found)
        if isinstance(found, property):
            lines += ["", f"**`.{method}`**: {' '.join(inspect.getdoc(found).split())}"]
        else:
            called = name if method == "__call__" else f"{name}.{method}"
            lines += ["", *signature(called, shown), *prose(inspect.getdoc(shown))]
    return lines


def methods(value):
    """Return the public methods and properties that a class itself defines, in its order."""
    if not inspect.isclass(value) or issubclass(value, (enum.Enum, BaseException)):
        return []
    found = [(name, one) for name, one in vars(value).items() if name == "__call__" or not name.startswith("_")]
    called = (staticmethod, classmethod, property)
    return [(n, one) for n, one in found if isinstance(one, called) or inspect.isfunction(one) if inspect.getdoc(one)]


def signature(name, value):
    """Return a block with the call, without the names of the modules that types come from."""
    if inspect.isclass(value) and issubclass(value, (enum.Enum, BaseException)):
        return []
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name not in ("self", "cls")]
    words = [plain(one) for one in parameters]
    joined = f"{name}({', '.join(words)})"
    if len(joined) > 100:
        joined = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + ")"
    return ["```py", joined, "```"]


def plain(parameter):
    """Return a parameter as it is written, a type as it is read."""
    text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
    kind = parameter.annotation
    if kind is not parameter.empty:
        told = (
            kind
            if isinstance(kind, str)
            else typing.get_origin(kind) and str(kind) or getattr(kind, "__name__", str(kind))
        )
        text += ": " + re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", told)
    if parameter.default is not parameter.empty:
        text += f" = {parameter.default!r}"
    return text


def prose(docstring):
    """Return a docstring in Google's style as Markdown: a list for each section."""
    lines, section = [""], None
    for line in (docstring or "").splitlines():
        indent = len(line) - len(line.lstrip())
        if SECTION.match(line):
            section = line[:-1]
            lines += [f"*{section}*", ""]
        elif section and indent == 0 and line:
            section = None
            lines.append(line)
        elif section in ("Args", "Raises") and indent == 4 and (item := ITEM.match(line.strip())):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section in ("Args", "Raises") and line:
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line if section in (None, "Example") else line.strip())  # an indented block is code
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
