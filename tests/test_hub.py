"""There and back again over HTTP: a local Hub, and the true client libraries in a process of their own."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import local_hub

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hub_address():
    listening = socket.create_server(("127.0.0.1", 0))
    server = local_hub.server(local_hub.Hub())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_every_scenario_passes_without_leaving_this_machine(hub_address, tmp_path):
    # Read when the libraries are imported, hence the process of its own.
    environment = os.environ | {
        "HF_ENDPOINT": hub_address,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        # Else `datasets` tells a server of Amazon which dataset was loaded.
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_TOKEN": "hf_alicewrites",
        "HF_SPECTRAL_TEST_HUB": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "tests/hub_scenarios.py",
    ]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    report = ended.stdout[-12_000:] + ended.stderr[-2_000:]
    assert ended.returncode == 0, report
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None, report
    assert int(passed[1]) >= 40, report
