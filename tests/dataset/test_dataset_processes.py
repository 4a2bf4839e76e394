"""Datasets under torchrun, and after SIGKILL: the same numbers as an undisturbed run of one process."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hf_spectral
from hf_spectral import SpectralBasis, SpectralError, fit, transform
from hf_spectral.dataset.checkpoint import Checkpoint
from hf_spectral.dataset.processes import Processes
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, saved_backbone
from tests.synthetic import photo

SETTINGS = {"num_eigenvectors": 5, "batch_size": 3, "on_error": "skip", "progress": False}
SIGKILL = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


def make_pipe():
    model = BACKBONES["dinov2"].model()
    return transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(25):
        photo(60 + 16 * (number % 2), 90, number).save(folder / f"{number:02d}.png")
    (folder / "07b.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    return fit(make_pipe(), folder, **SETTINGS)


def digest(basis: SpectralBasis) -> str:
    found = hashlib.sha256()
    for tensor in (basis.eigenvalues, basis.residuals, basis.num_tokens, *basis.projections, *basis.sums):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------------ resume


def _fit_in_a_process(folder, checkpoint_dir):
    torch.set_num_threads(1)
    pipe = make_pipe()
    records = pipe.records

    def slow_records(*args, **kwargs):
        time.sleep(0.02)  # So that a signal meets every part of the run.
        records(*args, **kwargs)

    pipe.records = slow_records
    fit(pipe, folder, **SETTINGS, checkpoint_dir=checkpoint_dir, checkpoint_every=3)


@SIGKILL
def test_killed_at_random_moments_and_run_again_the_basis_is_the_same(folder, undisturbed, tmp_path):
    # A server that has imported everything forks the runs: real processes, without three times the seconds of imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_spectral", "transformers", "tests.dataset.test_dataset_processes"])
    moments, killed = random.Random(0), []
    for _ in range(3):
        process = context.Process(target=_fit_in_a_process, args=(folder, tmp_path))
        before = _saved(tmp_path)
        process.start()
        while process.is_alive() and _saved(tmp_path) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.25))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed.append(process.exitcode)
    assert killed == [-signal.SIGKILL] * 3
    assert _saved(tmp_path)
    settings = {**SETTINGS, "checkpoint_every": 3, "return_report": True}
    resumed, report = fit(make_pipe(), folder, **settings, checkpoint_dir=tmp_path)
    assert digest(resumed) == digest(undisturbed)
    assert [one.name for one in report.skipped] == ["07b.png"]
    assert not list(tmp_path.glob(".*.partial"))


def _saved(folder: Path):
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.name, path.stat().st_mtime_ns))
    return found


@pytest.mark.parametrize("stop_after", [0, 4, 9, 13, 19])
def test_stopped_anywhere_at_most_checkpoint_every_images_are_read_again(folder, undisturbed, tmp_path, stop_after):
    pipe = make_pipe()
    original, reads = pipe.preprocess, []

    def preprocess(image, **settings):
        reads.append(image)
        if len(reads) > 2 * stop_after:
            raise KeyboardInterrupt
        return original(image, **settings)

    pipe.preprocess = preprocess
    with pytest.raises(KeyboardInterrupt):
        fit(pipe, folder, **SETTINGS, checkpoint_dir=tmp_path, checkpoint_every=6)
    again = []
    pipe.preprocess = lambda image, **settings: again.append(image) or original(image, **settings)
    resumed = fit(pipe, folder, **SETTINGS, checkpoint_dir=tmp_path, checkpoint_every=6)
    assert digest(resumed) == digest(undisturbed)
    assert len(again) + 2 * stop_after <= 2 * 26 - 1 + 6


def test_degrees_from_some_of_the_images_cost_one_forward_pass(folder, undisturbed, tmp_path):
    pipe = make_pipe()
    original, run, failed = pipe.records, [], []

    def records(group, *rest):
        if not failed and len(run) > 12:
            failed.append(None)
            raise KeyboardInterrupt
        run.extend(group)
        return original(group, *rest)

    pipe.records = records
    settings = {**SETTINGS, "degree_images": 5, "checkpoint_dir": tmp_path, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        fit(pipe, folder, **settings)
    basis, report = fit(pipe, folder, **settings, return_report=True)
    assert 30 <= len(run) <= 33  # 25 images and 5 of them for the sums; at most 3 again after the interrupt.
    assert [one.name for one in report.skipped] == ["07b.png"]
    assert basis.num_images == 25
    assert basis.num_nodes == undisturbed.num_nodes
    assert basis.eigenvalues[0] == 0
    torch.testing.assert_close(basis.eigenvalues, undisturbed.eigenvalues, atol=0.03, rtol=0)
    assert digest(basis) == digest(fit(make_pipe(), folder, **{**SETTINGS, "degree_images": 5}))
    whole = fit(make_pipe(), folder, **{**SETTINGS, "degree_images": 99})
    assert digest(whole) == digest(undisturbed)
    image = make_pipe().preprocess(photo(60, 90, 3))
    maps = []
    for one in (basis, undisturbed):
        projector = one.projector(0.0)
        make_pipe().records([image], projector.add)
        maps.append(projector.results()[0].eigenvectors[:2].flatten(1))
    assert torch.cosine_similarity(*maps).abs().min() > 0.95


def test_a_complete_checkpoint_only_solves(folder, undisturbed, tmp_path):
    pipe = make_pipe()
    fit(pipe, folder, **SETTINGS, checkpoint_dir=tmp_path)
    pipe.records = None
    assert digest(fit(pipe, folder, **SETTINGS, checkpoint_dir=tmp_path)) == digest(undisturbed)
    assert len(fit(pipe, folder, **{**SETTINGS, "num_eigenvectors": 7}, checkpoint_dir=tmp_path).eigenvalues) == 7


def test_a_fit_that_failed_at_a_bad_image_goes_on_without_it(folder, undisturbed, tmp_path):
    with pytest.raises(SpectralError, match="07b.png"):
        fit(make_pipe(), folder, **{**SETTINGS, "on_error": "raise"}, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert digest(fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path)) == digest(undisturbed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pathway": "where"}, "pathway='where', got pathway='what'"),
        ({"batch_size": 2}, "batch_size=2, got batch_size=3"),
        ({"seed": 4, "layers": [0, 1]}, r"layers=\[0, 1\], seed=4, got layers=None, seed=0"),
        ({"resolution": 128}, "'resolution': 128.*'resolution': None"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(folder, tmp_path_factory, settings, message):
    kept = tmp_path_factory.getbasetemp() / "kept"
    if not kept.exists():
        fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=kept)
    with pytest.raises(SpectralError, match=message):
        fit(make_pipe(), folder, **{**SETTINGS, **settings}, checkpoint_dir=kept)


def test_a_checkpoint_of_other_pictures_is_refused(folder, tmp_path):
    fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path)
    table = datasets.Dataset.from_dict({"image": [photo(seed=1)]}).cast_column("image", datasets.Image())
    with pytest.raises(SpectralError, match="num_images=1, got num_images=26"):
        fit(make_pipe(), table, **SETTINGS, checkpoint_dir=tmp_path)


def _pictures(count, start=0):
    return [photo(60, 90, start + number) for number in range(count)]


def _stream(images):
    return datasets.IterableDataset.from_generator(lambda: ({"image": image} for image in images))


def _table(images):
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


def _flipped(batch):
    return {"image": [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for image in batch["image"]]}


def _files(images):
    """Return a folder's writer: the same names, and sizes that do not depend on what is shown."""

    def write(folder):
        folder.mkdir(exist_ok=True)
        for number, image in enumerate(images):
            image.save(folder / f"{number}.bmp")
        return folder

    return write


def _with_a_damaged_one(folder):
    _files(_pictures(5))(folder)
    (folder / "2.bmp").write_bytes((folder / "2.bmp").read_bytes()[:30])
    return folder


def _named(images):
    def write(folder):
        _files(images)(folder)
        return datasets.Dataset.from_dict({"image": [str(path) for path in sorted(folder.glob("*.bmp"))]})

    return write


FIVE, OTHERS = _pictures(5), _pictures(5, start=20)
PAIRS = {
    "streams of 4 and of 7": (_stream(_pictures(4)), _stream(_pictures(7))),
    "streams of 7 and of 4": (_stream(_pictures(7)), _stream(_pictures(4))),
    "streams whose last image differs": (_stream(FIVE), _stream([*FIVE[:4], OTHERS[0]])),
    "a stream backwards": (_stream(FIVE), _stream(FIVE[::-1])),
    "tables that share the first, the middle and the last row": (
        _table(FIVE),
        _table([FIVE[0], OTHERS[1], FIVE[2], OTHERS[3], FIVE[4]]),
    ),
    "tables of 5 and of 4": (_table(FIVE), _table(FIVE[:4])),
    "a table and its transform": (_table(FIVE), _table(FIVE).with_transform(_flipped)),
    "two transforms": (
        _table(OTHERS).with_transform(lambda batch: {"image": FIVE[: len(batch["image"])]}),
        _table(OTHERS).with_transform(lambda batch: {"image": OTHERS[: len(batch["image"])]}),
    ),
    "colors and grays of one table": (_table(FIVE), _table(FIVE).cast_column("image", datasets.Image(mode="L"))),
    "files replaced under the same names and sizes": (_files(FIVE), _files(OTHERS)),
    "files that have changed names": (_files(FIVE), _files([*FIVE[1:], FIVE[0]])),
    "a damaged file that was mended": (_with_a_damaged_one, _files(FIVE)),
    "rows that name files, which were replaced": (_named(FIVE), _named(OTHERS)),
    "the same pictures as a table and as a stream": (_table(FIVE), _table(FIVE).to_iterable_dataset()),
}


@pytest.mark.parametrize("stop_after", [4, 7, None], ids=["in the first pass", "in the second pass", "finished"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_of_any_other_data_is_refused_or_the_basis_is_right(name, stop_after, tmp_path):
    settings = {**SETTINGS, "batch_size": 1, "image_column": "image", "num_eigenvectors": 3}
    one, other = (data if not callable(data) else lambda data=data: data(tmp_path / "photos") for data in PAIRS[name])
    pipe = make_pipe()
    original, reads = pipe.records, []

    def records(*arguments, **settings):
        reads.append(None)
        if stop_after is not None and len(reads) > stop_after:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    pipe.records = records
    with contextlib.suppress(KeyboardInterrupt):
        fit(pipe, one() if callable(one) else one, **settings, checkpoint_dir=tmp_path / "state", checkpoint_every=1)
    assert (tmp_path / "state" / "sums-00000.safetensors").exists()
    assert stop_after is None or len(reads) > stop_after
    pipe.records = original
    data = other() if callable(other) else other
    own = fit(pipe, data, **settings)
    try:
        found = fit(pipe, data, **settings, checkpoint_dir=tmp_path / "state", checkpoint_every=1)
    except SpectralError as error:
        assert str(error).startswith("`checkpoint_dir`")  # noqa: PT017 - either is right.
    else:
        assert digest(found) == digest(own)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (_table(FIVE), _table([*FIVE[:3], OTHERS[3], FIVE[4]]), "got others: image 3. Give the same data"),
        (_stream(_pictures(4)), _stream(_pictures(7)), "got others: image 4, which is one more"),
        (_stream(_pictures(7)), _stream(_pictures(4)), "got others: 4 where there were 7"),
    ],
)
def test_the_first_image_that_differs_is_named(one, other, named, tmp_path):
    fit(make_pipe(), one, **SETTINGS, checkpoint_dir=tmp_path)
    with pytest.raises(SpectralError, match=f"`checkpoint_dir`: expected the images that it was made from.*{named}"):
        fit(make_pipe(), other, **SETTINGS, checkpoint_dir=tmp_path)


def test_sums_and_gram_matrix_of_different_images_do_not_go_together(tmp_path):
    fit(make_pipe(), _table(FIVE), **SETTINGS, checkpoint_dir=tmp_path)
    (tmp_path / "sums-00000.safetensors").unlink()
    with pytest.raises(SpectralError, match="`checkpoint_dir`: expected a run of the same settings, images="):
        fit(make_pipe(), _table(OTHERS), **SETTINGS, checkpoint_dir=tmp_path)


def test_a_second_process_at_the_same_checkpoint_is_refused(folder, tmp_path):
    with Checkpoint(tmp_path, {}, 0).locked(), pytest.raises(SpectralError, match="which one does. Wait for it"):
        fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path)
    fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path)


def test_a_damaged_checkpoint_and_one_that_cannot_be_written_say_so(folder, tmp_path):
    (tmp_path / "sums-00000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SpectralError, match="Delete it and start anew"):
        fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path)
    with pytest.raises(SpectralError, match="`checkpoint_dir`: expected a folder that can be written"):
        fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=folder / "07b.png")


# ----------------------------------------------------------------------------------------------- many processes

SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path
    import datasets
    from hf_spectral.cli import main
    from hf_spectral import SpectralError, fit, transform
    from hf_spectral.dataset.processes import Processes
    from tests.dataset.test_dataset_processes import SETTINGS, digest, make_pipe

    folder, out, backbone = map(Path, sys.argv[1:])
    restarts, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    dying, read = make_pipe(), []
    records = dying.records

    def records_until_killed(group, *rest):
        read.extend(group)
        if restarts == 0 and rank == 1 and len(read) > 20:  # Of 13 in each pass: in the middle of the second.
            os.kill(os.getpid(), signal.SIGKILL)
        return records(group, *rest)

    dying.records = records_until_killed
    disturbed = fit(dying, folder, **SETTINGS, checkpoint_dir=out / "disturbed", checkpoint_every=3)
    assert restarts == 1 and len(read) < 13
    words = ["--model", str(backbone), "--device", "cpu", "--on-error", "skip"]
    assert main(["fit", str(folder), *words, "--num-eigenvectors", "5", "--output", str(out / "by-command")]) == 1
    pipe = make_pipe()
    basis, report = fit(pipe, folder, **SETTINGS, return_report=True, checkpoint_dir=out / "checkpoint")
    again = fit(pipe, folder, **SETTINGS, checkpoint_dir=out / "checkpoint")
    assert digest(again) == digest(basis) == digest(disturbed)
    settings = {"num_segments": 3, "dtype": "float32", "progress": False}
    transform(pipe, folder, basis, output_dir=out / "rows", on_error="skip", **settings)
    added = ["eigenvectors", "shape", "eigenvectors_rgb", "segmentation", "confidence"]
    table = datasets.load_from_disk(out / "rows").remove_columns(added)
    stream = table.to_iterable_dataset()
    streamed = transform(pipe, stream, basis, output_dir=out / "stream", **settings)
    try:
        fit(pipe, folder, **{**SETTINGS, "on_error": "raise"})
    except SpectralError as error:
        message = str(error)
    alone = fit(pipe, table.select([0]), num_eigenvectors=3, progress=False)
    processes = Processes(pipe.device)
    told = (basis.eigenvalues.tolist(), message, len(streamed), streamed["image_id"][:], alone.num_images)
    told = processes.gathered(told)
    if processes.is_main:
        basis.save_pretrained(out / "basis")
        report.to_json(out / "basis" / "fit.json")
        (out / "told.json").write_text(json.dumps({"count": processes.count, "told": told}))
    """


@SIGKILL
def test_two_processes_one_of_them_killed_and_restarted_find_what_one_finds(folder, undisturbed, tmp_path):
    backbone = saved_backbone(tmp_path / "backbone")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_spectral.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    # Torch hands the store of the first attempt on to the second, with addresses of processes that have gone
    # (pytorch/pytorch, issue 135712).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    ran = subprocess.run(
        [*words, *map(str, (script, folder, tmp_path, backbone))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[:30000]
    said = json.loads((tmp_path / "told.json").read_text())
    assert said["count"] == 2
    assert said["told"][0] == said["told"][1]
    _, message, streamed, identities, alone = said["told"][0]
    assert "07b.png" in message
    assert streamed == 25
    assert identities == sorted(identities)
    assert alone == 1
    _same_basis(SpectralBasis.from_pretrained(tmp_path / "basis"), undisturbed)
    _same_basis(SpectralBasis.from_pretrained(tmp_path / "by-command"), undisturbed)
    assert ran.stdout.count("5 eigenvectors of 25 images written to") == 1
    report = json.loads((tmp_path / "basis" / "fit.json").read_text())
    assert report["num_processes"] == 2
    assert [one["name"] for one in report["skipped"]] == ["07b.png"]
    _same_rows(datasets.load_from_disk(tmp_path / "rows"), folder, undisturbed)


def _same_basis(found, expected):
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, atol=1e-4, rtol=0)
    for mine, theirs in zip(found.projections, expected.projections, strict=True):
        torch.testing.assert_close(mine.abs(), theirs.abs(), atol=1e-4, rtol=0)


def _same_rows(found, folder, basis):
    expected = transform(make_pipe(), folder, basis, num_segments=3, on_error="skip", dtype="float32", progress=False)
    assert found["file_name"][:] == expected["file_name"][:]
    assert found["image_id"][:] == expected["image_id"][:]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.abs(one["eigenvectors"]), np.abs(other["eigenvectors"]), atol=1e-3)
        assert np.mean(np.asarray(one["segmentation"]) == np.asarray(other["segmentation"])) > 0.98


def test_processes_that_accelerate_does_not_know_are_refused(monkeypatch):
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpectralError, match=r"accelerate.PartialState\(cpu=True\)"):
        Processes(torch.device("cpu"))
