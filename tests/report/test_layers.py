"""`hf-spectral layers`: one row a self-attention layer, for every family of both hosts."""

import csv

import pytest
import torch
import transformers
from PIL import Image

from hf_spectral.capture import capture_attention
from hf_spectral.cli import main
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from hf_spectral.records import SkippedLayer
from hf_spectral.report import LayerListing, LayerRow, list_layers
from tests.families.tiny_backbones import BACKBONES, PROCESSOR
from tests.families.tiny_denoisers import DENOISERS
from tests.pipelines.tiny_diffusion import PIPELINES, RESOLUTION, host_pipeline
from tests.synthetic import photo

# The tiny pipelines' denoisers among the tiny denoisers, where layers are counted and text is named.
DENOISER_OF = {"sd": "unet", "sdxl": "unet"}
# Of the empty prompt: CLIP and T5 pad or count, Gemma reads a template.
TEXT = {"sd3": 77 + 256, "flux": 512}


class Fixed:
    """Shows a backbone that reads one size a tensor of that size, as its pipeline would show a picture."""

    def __init__(self, tiny):
        self.tiny, self.model, self.defaults = tiny, tiny.model(), {}

    def preprocess(self, image, resolution=None):
        assert isinstance(image, Image.Image)
        return {"inputs": self.tiny.images(1)}

    def records(self, group, on_record, layers=None):
        with capture_attention(self.model, on_record, layers) as capture, torch.no_grad():
            self.model(group[0]["inputs"], **self.tiny.forward)
        return capture.skipped


@pytest.mark.parametrize("family", BACKBONES)
def test_every_transformers_family_is_listed(family):
    tiny = BACKBONES[family]
    rows = list_layers(Fixed(tiny)).rows
    recorded = [row for row in rows if row.rows is not None]
    assert [row.index for row in rows] == list(range(len(rows)))
    assert tuple((row.rows, row.columns) for row in recorded) == tiny.grids
    assert len(rows) - len(recorded) == tiny.num_skipped
    for row, windowed in zip(recorded, tiny.windowed, strict=False):
        assert row.pathways == (("what",) if windowed else ("where", "what"))
        assert (row.reason is not None) == windowed
        assert (row.num_prefix, row.num_text) == (tiny.num_prefix, 0)
        assert row.width % row.heads == 0
    for row in rows:
        assert row in recorded or (row.reason and not row.pathways)


@pytest.mark.parametrize("family", PIPELINES)
def test_every_diffusers_family_is_listed(family):
    pipe = SpectralDiffusionPipeline.from_pipe(host_pipeline(family))
    tiny = DENOISERS[DENOISER_OF.get(family, family)]
    rows = list_layers(pipe, RESOLUTION).rows
    assert len(rows) == len(tiny.grids)
    assert [row.index for row in rows] == list(range(len(rows)))
    for row, num_text in zip(rows, tiny.text, strict=True):
        assert row.rows == row.columns
        assert (row.num_text > 0) == (num_text > 0)
        assert row.num_text == TEXT.get(family, row.num_text)
        assert row.num_prefix == 0
        assert row.pathways == (("what",) if family == "sana" else ("where", "what"))
        module = pipe.denoiser.get_submodule(row.name)
        assert row.heads == module.heads
        assert row.width == module.to_q.out_features
    if family in DENOISER_OF:
        assert [row.rows for row in rows] == [16, 8, 4, 8, 8, 16, 16]
    if family == "sana":
        assert "attends linearly" in rows[0].reason


def test_the_pipeline_of_a_transformers_backbone_is_read_at_the_resolution(tmp_path):
    model = BACKBONES["dinov2_with_registers"].model()
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    assert {(row.rows, row.columns, row.num_prefix) for row in list_layers(pipe, 96).rows} == {(12, 12, 4)}
    assert pipe.records([pipe.preprocess(photo())], lambda record: None) == []


def test_skipped_layers_are_told_by_the_pipelines():
    pipe = transformers.pipeline("spectral-pathways", model=BACKBONES["hiera"].model(), image_processor=PROCESSOR)
    skipped = pipe.records([pipe.preprocess(photo())], lambda record: None)
    assert [type(one) for one in skipped] == [SkippedLayer] * 2
    assert [one.index for one in skipped] == [2, 4]


def test_the_text_is_aligned_and_names_each_reason_once():
    rows = (
        LayerRow(0, "long.name", 8, 12, 2, 32, 1, 0, ("where", "what")),
        LayerRow(1, "b", reason="it pools its queries"),
        LayerRow(2, "c", 8, 12, 2, 32, 1, 0, ("what",), "it attends within windows"),
        LayerRow(3, "d", 8, 12, 2, 32, 1, 0, ("what",), "it attends within windows"),
    )
    assert LayerListing(rows).to_text().splitlines() == [
        "layer  module     grid    heads  width  prefix  text  pathways",
        "0      long.name  8 x 12  2      32     1       0     where, what",
        "1      b          -       -      -      -       -     none",
        "2      c          8 x 12  2      32     1       0     what",
        "3      d          8 x 12  2      32     1       0     what",
        "Of layer 1 no where or what, since it pools its queries.",
        "Of layers 2, 3 no where, since it attends within windows.",
    ]


@pytest.mark.parametrize("family", ["sd", "sana"])
def test_the_command_prints_the_table_and_writes_it(family, tmp_path, capsys):
    host_pipeline(family).save_pretrained(tmp_path / "model")
    words = ["layers", str(tmp_path / "model"), "--resolution", "32", "--output", str(tmp_path / "layers.csv")]
    assert main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(DENOISERS[DENOISER_OF.get(family, family)].grids)
    for row in rows:
        assert row["name"] in said
        assert row["pathways"] == ("what" if family == "sana" else "where what")
    assert f"Table written to {tmp_path / 'layers.csv'}" in said
    assert main([*words[:2], "--device", "cpu", "--resolution", "0"]) == 2


def test_the_command_reads_a_transformers_backbone(tmp_path, capsys):
    BACKBONES["swin"].model().save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    assert main(["layers", str(tmp_path), "--device", "cpu"]) == 0
    assert "Of layers 0, 1, 2, 3 no where, since it attends within windows" in capsys.readouterr().out
    assert main(["layers", str(tmp_path), "--prompt", "a cat", "--device", "cpu"]) == 2
    assert "`--prompt`: expected a diffusion model beside it, got SwinModel" in capsys.readouterr().err
