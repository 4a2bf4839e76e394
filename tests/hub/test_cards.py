"""The cards of `model_cards/` are what the templates make of the stored inputs; `tests/make_cards.py` makes both."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from hf_spectral import SpectralConfig
from hf_spectral.hub.cards import render
from hf_spectral.hub.rows import rows_card

CARDS = Path(__file__).parents[2] / "model_cards"
BASES = ["basis-what", "basis-where"]
EVERY = [*BASES, "analyzed-dataset"]


def stored(name):
    card = (CARDS / name / "README.md").read_text(encoding="utf-8")
    return card, json.loads((CARDS / name / "card.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BASES)
def test_cards_of_bases_are_rendered_from_their_inputs(name):
    card, context = stored(name)
    assert render("basis", context) == card


def test_the_card_of_rows_is_rendered_from_its_inputs_around_the_yaml_of_datasets():
    card, context = stored("analyzed-dataset")
    bare = "---\n" + card.split("---\n")[1] + "---\n"
    assert rows_card(bare, context) == card
    assert rows_card(card, context) == card  # Again, over what an earlier push has left.


@pytest.mark.parametrize("name", BASES)
def test_metadata_that_the_hub_reads(name):
    card, context = stored(name)
    metadata = ModelCard(card).data.to_dict()
    assert metadata["library_name"] == "hf-spectral"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert metadata["base_model"] == "facebook/dinov2-small"
    assert metadata["license"] == "cc-by-2.0"
    assert f"{name.removeprefix('basis-')}-pathway" in metadata["tags"]


def test_metadata_of_rows():
    metadata = DatasetCard(stored("analyzed-dataset")[0]).data.to_dict()
    (config,) = metadata["configs"]
    assert config["data_files"] == [{"split": "train", "path": f"{config['config_name']}/train-*"}]
    features = {one["name"]: one for one in metadata["dataset_info"]["features"]}
    assert {"image", "eigenvectors", "shape", "segmentation"} <= set(features)
    assert "hf-spectral" in metadata["tags"]


@pytest.mark.parametrize("name", EVERY)
def test_every_card_holds_what_a_reader_needs(name):
    card, context = stored(name)
    body = card.split("---\n", 2)[2]
    assert yaml.safe_load(card.split("---\n")[1])
    for heading in ("## Limits", "## License and citation"):
        assert heading in body
    assert "zhang2024deciphering" in body
    assert "This is an example of a card" in body
    settings = json.loads(re.search(r"```json\n(.*?)```", body, re.DOTALL)[1])
    assert SpectralConfig.from_dict(settings["config"]).pathway == context["pathway"]
    lines = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1].splitlines()
    assert len(lines) == 3
    compile("\n".join(lines), name, "exec")
    if name in BASES:
        assert len(re.findall(rf"^\| {context['pathway']} \| (?:\d+|all) \|", body, re.MULTILINE)) == 13
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", body)
    assert shown == context["pictures"]
    assert {f"images/{path.name}" for path in (CARDS / name / "images").iterdir()} == set(shown)
    for picture in shown:
        with Image.open(CARDS / name / picture) as image:
            assert image.width >= 480
    assert not re.search(r"/home/|/root/|/tmp/|hf_[A-Za-z]{8,}", card.replace("hf_spectral", ""))
