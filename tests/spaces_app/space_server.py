"""The app in a process of its own, as a visitor's browser meets it."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from hf_spectral import SpectralResult

CHOICES = {"model": "", "pathway": "what", "num_eigenvectors": 4, "num_segments": "auto", "resolution": "", "basis": ""}
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Server:
    """Where it answers, its process, and the folder of what it serves."""

    url: str
    process: psutil.Process
    cache: Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command, folder, port, **variables):
    """Run a command that serves the app on a port, until the block ends; variables are added to its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "gradio"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(cache),
        **variables,
    }
    url = f"http://127.0.0.1:{port}"
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 90
        while not _answers(url):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < end, "the app has not started within 90 s"
            time.sleep(0.1)
        yield Server(url, psutil.Process(process.pid), cache)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def demo(folder, *words, **variables):
    """Run `hf-spectral demo`."""
    port = free_port()
    command = ["-m", "hf_spectral", "demo", "--port", str(port), *words]
    with serving(command, folder, port, **variables) as server:
        yield server


def _answers(url):
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def choices(**changes):
    return [*{**CHOICES, **changes}.values()]


def downloaded(answer):
    """Return the result among the values of an answer."""
    paths = [value for value in answer if isinstance(value, str) and value.endswith(".safetensors")]
    assert len(paths) == 1
    return SpectralResult.from_pretrained(paths[0])
