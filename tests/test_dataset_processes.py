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

import hf_spectral
from hf_spectral import FitReport, SpectralBasis, SpectralError, fit, transform
from hf_spectral.dataset.checkpoint import Checkpoint
from hf_spectral.dataset.processes import Processes
from tests.test_pipeline import PROCESSOR, photo, saved_backbone
from tests.tiny_backbones import BACKBONES

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
    context.set_forkserver_preload(["hf_spectral", "transformers", "tests.test_dataset_processes"])
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
    report = FitReport()
    resumed = fit(make_pipe(), folder, **SETTINGS, checkpoint_dir=tmp_path, checkpoint_every=3, report=report)
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
    import json, sys
    from pathlib import Path
    import datasets
    from hf_spectral.cli import main
    from hf_spectral import FitReport, SpectralError, fit, transform
    from hf_spectral.dataset.processes import Processes
    from tests.test_dataset_processes import SETTINGS, make_pipe

    folder, out, backbone = map(Path, sys.argv[1:])
    datasets.disable_progress_bars()
    words = ["--model", str(backbone), "--device", "cpu", "--on-error", "skip"]
    assert main(["fit", str(folder), *words, "--num-eigenvectors", "5", "--output", str(out / "by-command")]) == 1
    pipe = make_pipe()
    report = FitReport()
    basis = fit(pipe, folder, **SETTINGS, report=report, checkpoint_dir=out / "checkpoint")
    again = fit(pipe, folder, **SETTINGS, checkpoint_dir=out / "checkpoint")
    assert again.eigenvalues.equal(basis.eigenvalues)
    transform(pipe, folder, basis, 3, output_dir=out / "rows", on_error="skip", dtype="float32", progress=False)
    table = datasets.load_from_disk(out / "rows").remove_columns(["eigenvectors", "shape", "segmentation"])
    stream = table.to_iterable_dataset()
    streamed = transform(pipe, stream, basis, 3, output_dir=out / "stream", dtype="float32", progress=False)
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
        report.save(out / "basis")
        (out / "told.json").write_text(json.dumps({"count": processes.count, "told": told}))
    """


def test_two_processes_find_what_one_finds(folder, undisturbed, tmp_path):
    backbone = saved_backbone(tmp_path / "backbone")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_spectral.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*words, *map(str, (folder, tmp_path, backbone))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[:3000]
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
    expected = transform(make_pipe(), folder, basis, 3, on_error="skip", dtype="float32", progress=False)
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
