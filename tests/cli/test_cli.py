"""The command line: files, exit codes, one line for a mistake."""

import base64
import csv
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_spectral import SpectralBasis, SpectralResult
from hf_spectral.cli import build_parser, main
from hf_spectral.cli.analyze import _unique_name
from tests.synthetic import photo


def run(*words):
    return main([str(word) for word in words])


def test_analyze_writes_every_file_and_a_summary(backbone, tmp_path):
    photo().save(tmp_path / "a.png")
    out = tmp_path / "out"
    code = run(
        "analyze",
        tmp_path / "a.png",
        "--model",
        backbone,
        "--num-eigenvectors",
        5,
        "--num-segments",
        3,
        "--output",
        out,
    )
    assert code == 0
    expected = {"a.pathways.png", "summary.json"}
    for pathway in ("where", "what"):
        for ending in ("safetensors", "eigenvectors.png", "segmentation.png", "labels.png"):
            expected.add(f"a.{pathway}.{ending}")
    assert {path.name for path in out.iterdir()} == expected
    result = SpectralResult.from_pretrained(out / "a.what.safetensors")
    assert result.eigenvectors.shape == (5, 5, 8)
    assert result.config.pathway == "what"
    labels = Image.open(out / "a.what.labels.png")
    assert labels.mode == "P"
    labels = np.asarray(labels)
    assert labels.shape == (60, 90)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"][0]["pathways"]["what"]["num_segments"] == len(np.unique(labels))
    assert summary["failed"] == []
    assert summary["settings"]["num_eigenvectors"] == 5


def test_one_bad_file_does_not_stop_the_others(backbone, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    photo().save(folder / "a.png")
    (folder / "b.jpg").write_text("text")
    photo(seed=1).save(folder / "c.png")
    out = tmp_path / "out"
    assert run("analyze", folder, "--model", backbone, "--pathway", "what", "--output", out) == 1
    assert (out / "a.what.safetensors").exists()
    assert (out / "c.what.safetensors").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert "b.jpg" in summary["failed"][0]["image"]
    assert "not a picture" in summary["failed"][0]["reason"]
    assert "b.jpg" in capsys.readouterr().err


def test_equal_names_do_not_overwrite_each_other(backbone, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        photo(seed=len(name)).save(tmp_path / name / "photo.png")
    out = tmp_path / "out"
    words = [tmp_path / "one" / "photo.png", tmp_path / "two" / "photo.png"]
    assert (
        run("analyze", *words, "--model", backbone, "--pathway", "where", "--num-segments", "none", "--output", out)
        == 0
    )
    assert (out / "photo.where.safetensors").exists()
    assert (out / "photo-2.where.safetensors").exists()
    assert not list(out.glob("*.segmentation.png"))


def test_names_that_are_long_or_no_text_are_cut_and_stay_apart():
    long = "a" * 239
    names = [
        f"in/{long}b.png",
        f"in/{long}c.png",
        "in/\udcff.png",
        "B.png",
        "in/b.jpg",
        "http://x/b.png?y/z.jpg",
        "data:,a/b",
    ]
    taken = set()
    found = [_unique_name(name, taken) for name in (*names, Path("in/it's 100%.png"))]
    assert found[3:] == ["B", "b-2", "b-3", "image", "it's 100%"]
    assert all(re.fullmatch(r"a{160}-[0-9a-f]{8}", name) for name in found[:2])
    assert re.fullmatch("_-[0-9a-f]{8}", found[2])
    assert len({name.casefold() for name in found}) == len(found)
    assert _unique_name(names[1], set()) == found[1]  # Two runs into one folder do not overwrite each other.


def test_addresses_that_do_not_answer_are_named_without_secrets(backbone, tmp_path, capsys):
    photo().save(tmp_path / f"{'a' * 240}.png")
    url = "http://user:secret@127.0.0.1:9/photo.png?X-Amz-Signature=secret"
    data = "data:image/png;base64," + base64.b64encode((tmp_path / f"{'a' * 240}.png").read_bytes()).decode()
    words = ["--model", backbone, "--pathway", "what", "--num-segments", 2, "--output", tmp_path / "out"]
    assert run("analyze", url, url + "a" * 4100, data, tmp_path, *words) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["image"] for one in summary["failed"]] == ["http://127.0.0.1:9/photo.png?..."] * 2
    assert [one["image"] for one in summary["images"]] == ["data:image/png;base64,...", f"{tmp_path}/{'a' * 240}.png"]
    assert all((tmp_path / "out" / name).exists() for one in summary["images"] for name in files_of(one))
    assert "secret" not in capsys.readouterr().err + json.dumps(summary)


def files_of(image):
    return image["pathways"]["what"]["files"].values()


def test_analyze_and_fit_find_the_same_pictures(backbone, tmp_path, caplog):
    (tmp_path / "below").mkdir()
    photo().save(tmp_path / "a.png")
    photo(seed=1).save(tmp_path / "below" / "b.jpe", "JPEG")
    words = ["--model", backbone, "--num-eigenvectors", 3]
    for output in (tmp_path / "spectral-output", tmp_path):
        assert run("analyze", tmp_path, *words, "--output", output) == 0
    assert run("fit", tmp_path, *words, "--output", tmp_path / "basis") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [one["image"] for one in summary["images"]] == [str(tmp_path / name) for name in ("a.png", "below/b.jpe")]
    assert json.loads((tmp_path / "basis" / "fit.json").read_text())["num_images"] == 2
    assert "2 pictures; left out: 28 written by hf_spectral" in caplog.text.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "9"], "`layers`: expected indices from -3 to 2"),
        (["--num-eigenvectors", "0"], "`num_eigenvectors`: expected an integer of at least 1"),
        (["--resolution", "1000000"], "`resolution`: expected at most 65536 tokens"),
        (["--affinity", "attention"], "one that serves the 'what' pathway"),
        (["--device", "abacus"], "`device`: expected a device of this machine"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(backbone, tmp_path, capsys, words, message):
    photo().save(tmp_path / "a.png")
    code = run("analyze", tmp_path / "a.png", "--model", backbone, "--output", tmp_path / "out", *words)
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-spectral:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_missing_model_and_an_empty_folder(tmp_path, capsys):
    photo().save(tmp_path / "a.png")
    assert run("analyze", tmp_path / "a.png", "--model", tmp_path / "nowhere") == 2
    (tmp_path / "empty").mkdir()
    assert run("analyze", tmp_path / "empty") == 2
    assert "a folder that holds pictures" in capsys.readouterr().err


def test_unknown_words_exit_with_2():
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2


def test_quickstart_runs_without_the_hub(tmp_path, capsys):
    assert run("quickstart", "--output", tmp_path) == 0
    assert str(tmp_path / "china.pathways.png") in capsys.readouterr().out
    figure = np.asarray(Image.open(tmp_path / "china.pathways.png"))
    assert figure.std() > 20
    where, what = (SpectralResult.from_pretrained(tmp_path / f"china.{name}.safetensors") for name in ("where", "what"))
    assert where.eigenvectors.shape == what.eigenvectors.shape
    assert not torch.allclose(where.eigenvectors, what.eigenvectors, atol=1e-2)


@pytest.fixture(scope="module")
def fitted(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "in" / "below").mkdir(parents=True)
    for number, name in enumerate(("a", "below/b", "c")):
        photo(60 + 16 * number, 90, number).save(folder / "in" / f"{name}.png")
    words = ["--pathway", "where", "--num-eigenvectors", 4, "--resolution", 96, "--batch-size", 2, "--max-width", 150]
    words += ["--checkpoint-dir", folder / "checkpoint", "--layers", 0, -1, "--layer-weights", "equal"]
    assert run("fit", folder / "in", "--model", backbone, *words, "--output", folder / "basis") == 0
    return folder


def test_fit_writes_a_basis_and_a_report(fitted):
    basis = SpectralBasis.from_pretrained(fitted / "basis")
    assert basis.config.pathway == "where"
    assert (basis.num_images, len(basis.eigenvalues), len(basis.layers)) == (3, 4, 2)
    assert basis.backbone["resolution"] == 96
    assert basis.max_width == 150
    report = json.loads((fitted / "basis" / "fit.json").read_text())
    assert report["num_images"] == 3
    assert report["skipped"] == []
    assert (fitted / "checkpoint" / "gram-00000.safetensors").exists()


def test_a_folder_as_dataset_and_threads_change_nothing(backbone, fitted, tmp_path, capsys):
    shared = ["--model", backbone, "--dataset", fitted / "in", "--num-workers", 2]
    assert run("fit", *shared, "--num-eigenvectors", 3, "--output", tmp_path / "basis") == 0
    said = dict(line.strip().partition(": ")[::2] for line in capsys.readouterr().out.splitlines())
    assert said["fitted on"].startswith("3 images, ")
    assert re.fullmatch(r"\d+\.\d s, \d+\.\d\d images per second", said["time"])
    assert run("transform", *shared, "--basis", tmp_path / "basis", "--output", tmp_path / "rows") == 0
    settings = ["--pathway", "what", "--num-eigenvectors", 2, "--num-segments", "none"]
    assert run("analyze", *shared, *settings, "--output", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [image["image"] for image in summary["images"]] == ["a.png", "below/b.png", "c.png"]
    assert (tmp_path / "out" / "image-2.what.safetensors").is_file()


def test_a_backbone_is_loaded_in_half_precision(backbone, fitted, tmp_path):
    assert run("fit", fitted / "in", "--model", backbone, "--dtype", "bfloat16", "--output", tmp_path / "basis") == 0
    basis = SpectralBasis.from_pretrained(tmp_path / "basis")
    assert basis.backbone["attention_weights"]["dtype"] == "bfloat16"


def test_transform_writes_rows(backbone, fitted, tmp_path, capsys):
    words = ["--model", backbone, "--basis", fitted / "basis", "--num-segments", 3, "--dtype", "float32"]
    assert run("transform", fitted / "in", *words, "--output", tmp_path / "rows") == 0
    rows = datasets.load_from_disk(tmp_path / "rows")
    assert rows["file_name"][:] == ["a.png", "below/b.png", "c.png"]
    assert rows[2]["shape"] == [4, 12, 12]
    assert rows[2]["segmentation"].size == (90, 92)
    assert "3 rows written to" in capsys.readouterr().out


def test_pictures_skipped_by_fit_and_transform_give_exit_code_1(backbone, fitted, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photo(seed=8).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.png").write_text("text")
    words = ["--model", backbone, "--on-error", "skip"]
    out = tmp_path / "basis"
    assert run("fit", tmp_path / "in", *words, "--num-eigenvectors", 3, "--output", out) == 1
    assert "bad.png" in json.loads((out / "fit.json").read_text())["skipped"][0]["name"]
    assert run("transform", tmp_path / "in", *words, "--basis", out, "--output", tmp_path / "rows") == 1


def test_report_writes_a_table_and_a_chart(backbone, tmp_path, capsys, caplog):
    (tmp_path / "in").mkdir()
    for number in range(5):
        photo(60 + 16 * (number % 2), 90, number).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "bad.png").write_text("text")
    words = ["--model", backbone, "--num-eigenvectors", 4, "--batch-size", 2, "--output", tmp_path / "out"]
    assert run("report", tmp_path / "in", *words, "--on-error", "skip", "--pathway", "what") == 1
    table = list(csv.DictReader((tmp_path / "out" / "layers.csv").read_text().splitlines()))
    assert [row["layer"] for row in table] == ["0", "1", "2", ""]
    assert {(row["pathway"], row["num_images"]) for row in table} == {("what", "5")}
    assert np.asarray(Image.open(tmp_path / "out" / "layers.png")).std() > 5
    assert "bad.png" in caplog.text
    assert f"{float(table[-1]['where_score']):.3f}" in capsys.readouterr().out
    assert run("report", tmp_path / "in", *words) == 2


def test_report_without_matplotlib_stops_before_the_images_are_read(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("hf_spectral.cli.report.layer_report", lambda *_, **__: pytest.fail("the images were read"))
    assert run("report", tmp_path, "--model", backbone, "--output", tmp_path / "out") == 2
    assert "Run: pip install 'hf-spectral[charts]'." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "IN", "--num-eigenvectors", 999], "`num_eigenvectors`: expected at most the"),
        (["fit", "IN", "--layers", 9], "`layers`: expected indices from -3 to 2"),
        (["fit", "IN", "--layer-weights", "best"], "`layer_weights`: expected 'auto', 'equal', or finite weights"),
        (["fit", "IN", "--layer-weights", 0, 0], "`layer_weights`: expected a weight above 0"),
        (["fit", "IN", "--checkpoint-dir", "CHECKPOINT"], "`checkpoint_dir`: expected a run of the same settings"),
        (["fit", "IN/nowhere"], "Check that the folder exists"),
        (["fit", "BAD"], "bad.png: "),
        (["report", "IN"], "`images`: expected at least 4, got 3"),
        (["report", "BAD"], "bad.png: "),
        (["transform", "IN", "--basis", "IN"], "`basis`: expected a folder that SpectralBasis.save_pretrained wrote"),
        (["transform", "IN", "--basis", "BASIS", "--output", "IN"], "`output_dir`: expected a new or empty folder"),
    ],
)
def test_mistakes_over_datasets_give_one_line_and_exit_code_2(backbone, fitted, tmp_path, capsys, words, message):
    (tmp_path / "bad.png").write_text("text")
    places = {"IN": fitted / "in", "CHECKPOINT": fitted / "checkpoint", "BASIS": fitted / "basis", "BAD": tmp_path}
    words = [places.get(word, word) if word != "IN/nowhere" else fitted / "nowhere" for word in words]
    assert run(*words, "--model", backbone, *([] if "--output" in words else ["--output", tmp_path / "out"])) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-spectral:")]
    assert len(lines) == 1
    assert message in lines[0]


NOT_WRITABLE = ["file", "file/x", "file/x/y", "/proc/none", "dangling/x", "n" * 300, "nul\0"]
IN = ["IN", "--model", "MODEL"]
COMMANDS = {
    "quickstart": [],
    "analyze": IN,
    "fit": IN,
    "report": IN,
    "transform": [*IN, "--basis", "BASIS"],
    "layers": ["MODEL"],
    "push": ["BASIS", "user/name"],
    "space": ["user/name"],
    "demo": [],
}


@pytest.fixture
def command(backbone, fitted, tmp_path, monkeypatch, capsys):
    """Run a command in a folder with a file, a folder and a dangling link; give exit code and lines."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    places = {"IN": fitted / "in", "MODEL": backbone, "BASIS": fitted / "basis"}

    def run_command(name, *words):
        given = [str(places.get(word, word)) for word in (name, *COMMANDS[name], *words)]
        try:
            code = main(given)
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return code, [line for line in said if line.strip() and "image/s" not in line]

    return run_command


@pytest.mark.parametrize("name", ["quickstart", "analyze", "fit", "report", "transform", "layers"])
@pytest.mark.parametrize("place", NOT_WRITABLE)
def test_an_output_that_cannot_be_written_is_found_before_anything_is_loaded(command, name, place, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded")

    for module in ("analyze", "dataset", "report", "layers"):
        monkeypatch.setattr(f"hf_spectral.cli.{module}.load", load)
    place = f"{place}/table.csv" if name == "layers" else place
    code, lines = command(name, "--output", place)
    assert code == 2
    (line,) = lines
    assert line.startswith("hf-spectral: `--output`: expected a place that can be written, got ")


NUMBER, PATHS = ["-1", "0", "nan", "1.5", "", "x"], ["", "file", "nowhere", "a/nowhere", "n" * 300, "\udcff", "a\nb"]
TABLE = {
    "analyze": {
        "--num-eigenvectors": [*NUMBER, "1" * 30],
        "--num-segments": NUMBER,
        "--resolution": [*NUMBER, "1" * 30],
        "--layers": ["9", "-4", "1" * 30, "nan", ""],
        "--seed": ["nan", "1.5", ""],
        "--pathway": ["", "x"],
        "--affinity": ["", "x"],
        "--solver": ["", "x"],
        "--timesteps": ["-1", "nan", "", "5"],
        "--prompt": ["x"],
        "--model": ["", "file", "folder", "nowhere", "n" * 300, "no/such/thing", "\udcff"],
        "--device": ["", "x", "-5", "meta", "cuda:99", "vulkan"],
        "--output": [""],
        "--num-workers": [word for word in NUMBER if word != "0"],
        "--dtype": ["", "x", "float64"],
        "--dataset": ["", "nowhere"],
        "--split": ["", "x"],
    },
    "fit": {
        "--num-workers": [word for word in NUMBER if word != "0"],
        "--dtype": ["", "x"],
        "--revision": [""],
        "--dataset": ["", "folder"],
        "--split": ["", "x"],
        "--dataset-revision": ["x"],
        "--batch-size": NUMBER,
        "--on-error": ["", "x"],
        "--num-eigenvectors": [*NUMBER, "1" * 30],
        "--max-width": NUMBER,
        "--layer-weights": ["-1", "0", "nan", "inf", "", "x"],
        "--checkpoint-every": NUMBER,
        "--degree-images": NUMBER,
        "--checkpoint-dir": ["", "file", "file/x"],
    },
    "transform": {
        "--num-segments": NUMBER,
        "--walk": ["-1", "1", "nan", "inf", "", "x"],
        "--row-dtype": ["", "x", "bfloat16"],
        "--split": ["x"],
        "--basis": [*PATHS, "folder"],
    },
    "report": {"--max-images": NUMBER, "--num-eigenvectors": NUMBER, "--max-width": NUMBER},
    "layers": {"--resolution": NUMBER, "--output": ["", "folder"], "--device": ["x"]},
    "push": {"--basis": PATHS, "--example": [*PATHS, "folder"], "--report": [*PATHS, "folder"], "--message": [""]},
    "space": {"--basis": PATHS},
    "demo": {"--port": ["-1", "0", "99999", "1" * 30, "nan", ""], "--model": [""], "--basis": [""]},
    "quickstart": {"--device": ["", "x"]},
}
POSITIONAL = {"fit": PATHS, "layers": PATHS, "push": [*PATHS, "folder"], "analyze": ["", "nowhere", "file", "folder"]}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in TABLE for option in TABLE[name]])
def test_absurd_values_of_every_option_give_one_line_and_exit_code_2(command, name, option):
    for value in TABLE[name][option]:
        code, lines = command(name, f"{option}={value}")
        assert (code, len(lines)) == (2, 1 if name != "analyze" or option != "--num-eigenvectors" else len(lines)), (
            value
        )
        assert all(line.startswith("hf-spectral: ") for line in lines), value


@pytest.mark.parametrize("name", POSITIONAL)
def test_absurd_inputs_give_one_line_and_exit_code_2(command, name, monkeypatch):
    for value in POSITIONAL[name]:
        monkeypatch.setitem(COMMANDS, name, [value, *COMMANDS[name][1:]])
        code, lines = command(name)
        assert (code, len(lines)) == (2, 1), value
        assert lines[0].startswith("hf-spectral: "), value


def test_an_interrupt_leaves_whole_files_and_a_summary(backbone, fitted, tmp_path, monkeypatch, capsys):
    save, saved = Image.Image.save, []

    def interrupted(self, file, **kwargs):
        saved.append(file)
        save(self, file, **kwargs)
        if len(saved) == 10:  # In the middle of the second picture.
            file.write_bytes(file.read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    out = tmp_path / "out"
    words = [fitted / "in" / "a.png", fitted / "in" / "c.png", "--num-eigenvectors", 3, "--output", out]
    assert run("analyze", *words, "--model", backbone) == 130
    assert [line for line in capsys.readouterr().err.splitlines() if "hf-spectral" in line] == [
        "hf-spectral: interrupted"
    ]
    assert {path.suffix for path in out.iterdir()} == {".png", ".safetensors", ".json"}
    for path in out.glob("*.png"):
        Image.open(path).load()
    summary = json.loads((out / "summary.json").read_text())
    assert [one["image"] for one in summary["images"]] == [str(fitted / "in" / "a.png")]


def test_a_name_as_long_as_the_file_system_takes_is_analyzed_like_others(backbone, tmp_path):
    long = tmp_path / f"{'n' * 251}.png"
    for path in (long, tmp_path / "a.png", tmp_path / "\udcff.png"):
        photo().save(path)
    out = tmp_path / "out"
    words = [long, tmp_path / "a.png", tmp_path / "\udcff.png", "--model", backbone, "--num-eigenvectors", 3]
    assert run("analyze", *words, "--output", out) == 0
    assert len(list(out.glob("*.pathways.png"))) == 3
    assert len(json.loads((out / "summary.json").read_text())["images"]) == 3


def test_a_disk_that_fails_for_one_picture_does_not_stop_the_others(backbone, fitted, tmp_path):
    out = tmp_path / "out"
    (out / "a.what.safetensors").mkdir(parents=True)  # In the way of the first picture.
    words = [fitted / "in" / "a.png", fitted / "in" / "c.png", "--num-eigenvectors", 3, "--output", out]
    assert run("analyze", *words, "--model", backbone, "--pathway", "what") == 1
    summary = json.loads((out / "summary.json").read_text())
    assert "expected a place that can be written" in summary["failed"][0]["reason"]
    assert len(summary["images"]) == 1


@pytest.mark.parametrize("words", [["layers", "MODEL"], ["--help"]])
def test_a_closed_pipe_ends_the_command_without_a_traceback(backbone, words):
    reading, writing = os.pipe()
    os.close(reading)
    words = [backbone if word == "MODEL" else word for word in words]
    ran = subprocess.run(
        [sys.executable, "-m", "hf_spectral", *words],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writing)
    assert ran.returncode in (0, 141)  # 0 where argparse itself passes over it.
    assert ran.stderr == ""


def test_help_begins_with_a_first_command(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    first = re.search(r"begin here:\n +hf-spectral (\w+)", said)
    assert first[1] == "quickstart"
    for words in re.findall(r"^  hf-spectral (.+?)   ", said, flags=re.MULTILINE):
        if "--help" not in words:
            build_parser().parse_args(words.split())


def test_downloads_and_pushes_keep_their_bars(tmp_path):
    are_disabled = huggingface_hub.utils.are_progress_bars_disabled()
    for switch, expected in (("disable", True), ("enable", False)):
        getattr(huggingface_hub.utils, f"{switch}_progress_bars")()
        assert run("push", tmp_path / "nothing", "user/name") == 2
        assert huggingface_hub.utils.are_progress_bars_disabled() is expected
    if are_disabled:
        huggingface_hub.utils.disable_progress_bars()


@pytest.mark.parametrize("own", [logging.NOTSET, logging.INFO])
def test_the_logger_is_as_loud_as_transformers_or_as_it_is_told(monkeypatch, own):
    top, logger = logging.getLogger("hf_spectral"), logging.getLogger("hf_spectral.dataset.reading")
    before, of_host = top._own, transformers.logging.get_verbosity()
    try:
        top.setLevel(own)
        for level in (logging.ERROR, logging.WARNING, logging.INFO):
            transformers.logging.set_verbosity(level)
            assert logger.getEffectiveLevel() == (own or level)
            assert logger.isEnabledFor(logging.WARNING) == ((own or level) <= logging.WARNING)
            assert logger.isEnabledFor(logging.INFO) == ((own or level) <= logging.INFO)
    finally:
        top.setLevel(before)
        transformers.logging.set_verbosity(of_host)


def test_the_package_runs_as_accelerate_launch_runs_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-spectral", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("hf_spectral", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("hf-spectral ")


def test_importing_the_package_stays_light():
    heavy = ("diffusers", "gradio", "datasets", "matplotlib")
    code = f"import sys, hf_spectral; print(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
