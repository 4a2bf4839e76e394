"""Write the tables of backbones from the registries of families: `docs/pages/backbones.md`, and README's short one.

python -m tests.make_tables
"""

import inspect
import re
import sys
from pathlib import Path

import hf_spectral
from hf_spectral.families import diffusers, transformers
from hf_spectral.families.sizes import InputGeometry
from tests.families.denoisers import TINY, denoiser_of
from tests.families.tiny_backbones import BACKBONES
from tests.families.tiny_denoisers import DENOISERS

ROOT = Path(hf_spectral.__file__).parent.parent
PAGE, README = ROOT / "docs" / "pages" / "backbones.md", ROOT / "README.md"
START, END = "<!-- backbones: python -m tests.make_tables -->", "<!-- end of backbones -->"
# README shows these; the page shows all.
MOST_USED = ("dinov2", "dinov3_vit", "vit", "clip_vision_model", "siglip_vision_model", "siglip2_vision_model")
MOST_USED += ("sam_vision_model", "swin", "UNet2DConditionModel", "FluxTransformer2DModel")
TITLES = ("backbone", "`model_type` or class", "example", "pathways", "picture size", "grids", "left out", "tested on")
INTRODUCTION = """# Backbones

Every family of backbones that can be read; written by `python -m tests.make_tables` from the registries in
`hf_spectral/families/`. Each is tested on a tiny random model: outputs unchanged by capture, token order proven, the
model left as it came. `hf-spectral layers MODEL` prints the layers of any model, or the refusal, and exits with 2.

What the network adds outside of query and key (relative position biases of BEiT, Swin and SAM) is not part of the
affinity. A model that holds a vision tower (`CLIPModel`, `...ForImageClassification`) is read at its tower. A vision
tower of any other `model_type` is read too, with a warning, where its tokens can be up to 16 prefix tokens and the
patches in raster order: their number does not prove it.
"""
# What no family stands for.
REFUSALS = (
    ("ConvNeXt, FocalNet, PoolFormer", "no self-attention"),
    ("text models", "they take no `pixel_values`"),
    ("any model under an attention kernel that shows no query and key", "the message names the call that switches it"),
)


def page():
    """Return the page of all families."""
    towers, denoisers = rows_of_towers(), rows_of_denoisers()
    lines = [INTRODUCTION, "## transformers", "", *table(TITLES, towers), "", "## diffusers", ""]
    lines += [*table(TITLES, denoisers), "", "## Refused", "", *table(("backbone", "because"), refusals())]
    return "\n".join(lines) + "\n"


def short():
    """Return the table of README."""
    rows = [row for row in (*rows_of_towers(), *rows_of_denoisers()) if set(re.findall(r"\w+", row[1])) & {*MOST_USED}]
    count = len({*map(id, transformers.FAMILIES.values())}) + len(diffusers.FAMILIES)
    told = f"[All {count} families](docs/pages/backbones.md), with what is refused and why."
    return "\n".join([*table((*TITLES[:1], *TITLES[2:5]), [(*row[:1], *row[2:5]) for row in rows]), "", told])


def readme(text):
    """Return README with its table written anew.

    Args:
        text: README.
    """
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{short()}\n{END}{rest.partition(END)[2]}"


def rows_of_towers():
    """Return a row for each family of transformers."""
    tinies = {}
    for tiny in BACKBONES.values():
        model = tiny.build()
        tinies.setdefault(id(transformers.family_of(model)), (tiny, model))
    return [_tower(name, family, *tinies.get(id(family), (None, None))) for name, family in _towers().items()]


def rows_of_denoisers():
    """Return a row for each family of diffusers."""
    grids = {diffusers.family_of(type(tiny.build())).class_name: len({*tiny.grids}) for tiny in DENOISERS.values()}
    built = {type(denoiser_of(tiny.build())).__name__: tiny.num_grids for tiny in TINY.values()}
    grids = built | grids
    rows = []
    for name, family in diffusers.FAMILIES.items():
        pathways = "where, what" if family.where_refused is None else f"what: {family.where_refused}"
        size = "any, made a square" if family.is_square else "any"
        text = "nothing" if family.text is None else f"text tokens, which stand {family.text}"
        rows.append((_title(type(family)), f"`{name}`", f"`{family.example}`", pathways, size, _several(grids[name])))
        rows[-1] += (text, "random weights")
    return rows


def refusals():
    """Return what is refused, with the reasons."""
    stated = [(", ".join(f"`{one}`" for one in name.split()), one.refusal) for name, one in _towers(True).items()]
    return [*stated, *REFUSALS]


def table(titles, rows):
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def _towers(refused=False):
    """Return the families by the model types they serve, those that are refused or the others."""
    names = {}
    for model_type, family in transformers.FAMILIES.items():
        names.setdefault(id(family), (family, []))[1].append(model_type)
    return {" ".join(types): family for family, types in names.values() if (family.refusal is not None) == refused}


def _tower(name, family, tiny, model):
    pathways, grids = family.pathways, "1" if family.pathways == "where, what" else "several"
    size = "any" if family.reads_any_size else "any where the host interpolates its positions, else its own"
    if tiny is not None:
        if any(tiny.windowed):
            some = "where from the global layers, what from all"
            pathways = "what: no query meets the key of another window" if all(tiny.windowed) else some
        grids, geometry = _several(len({*tiny.grids})), family.geometry(model)
        size = _size(geometry)
    counted = {0: "nothing", 1: "1 prefix token"}.get(family.num_prefix, f"{family.num_prefix} prefix tokens")
    left = "prefix tokens, as configured" if callable(family.num_prefix) else counted
    left += ", suffix tokens" if family.num_suffix else ""
    types = ", ".join(f"`{one}`" for one in name.split())
    example = f"`{family.example}`" if family.example else "-"
    return _title(family), types, example, pathways, size, grids, left, family.tested_on


def _title(family):
    """Return what the first line of the module that defines a family says before its colon."""
    module = _home(family) if not inspect.isclass(family) else sys.modules[family.__module__]
    return re.split(r"[:;]|\.(?!\d)", module.__doc__)[0]


def _home(family):
    rooms = (one for name, one in sys.modules.items() if name.startswith(transformers.__name__ + "."))
    return next(room for room in rooms if any(one is family for one in vars(room).values()))


def _size(geometry: InputGeometry):
    return "its own, stretched to it" if geometry.is_fixed else "any, made a square" if geometry.is_square else "any"


def _several(number):
    return "1" if number == 1 else "several"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
