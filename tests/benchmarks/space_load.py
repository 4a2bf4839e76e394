"""The Space under a crowd: are answers right, does memory stay flat, is the queue fair and honest?

    python -m tests.benchmarks.space_load [--clients 8] [--minutes 5] [--json PATH]

Each client asks again as soon as it is answered, for five minutes, and each answer is compared with what the pipeline
gives for the same picture in this process. At the end one visitor sends more calls at once than the queue takes. Exits
with 1 if an answer is wrong, memory grows after the first minute (or fifth) by more than `FLAT` MiB, a call is
overtaken, or a call is refused without a message.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from gradio_client import Client, handle_file
from skimage import data
from sklearn.datasets import load_sample_image

from hf_spectral import SpectralResult, read_image
from spaces_app.interface import QUEUE_SIZE
from tests.benchmarks.common import default_pipe, machine, print_table, spread
from tests.spaces_app import space_server

#: MiB by which the server's memory may grow from the end of the first minute to the end.
FLAT = 32
SETTINGS = {"pathway": "what", "num_eigenvectors": 4, "num_segments": 4, "resolution": 336}
#: Calls beyond those that the queue takes, at the end.
BEYOND = 8
# Calls sent within so many seconds of each other may change places on their way.
_TOGETHER = 0.5


@dataclasses.dataclass
class Call:
    """One call: times in seconds since the start, the places in the queue that it was shown, what came of it."""

    client: int
    sent: float
    picture: int
    ended: float = 0.0
    places: list[int] = dataclasses.field(default_factory=list)
    eta: float | None = None
    seen: float = 0.0
    is_right: bool = False
    error: str = ""


def pictures(folder: Path) -> list[Path]:
    """Write twelve different photographs."""
    found = []
    photos = [load_sample_image("china.jpg"), data.chelsea(), data.coffee(), load_sample_image("flower.jpg")]
    for number, photo in enumerate(photos):
        for part in range(3):
            rows, columns = photo.shape[0] * (4 + part) // 6, photo.shape[1] * (6 - part) // 6
            path = folder / f"{number}-{part}.png"
            read_image(np.ascontiguousarray(photo[:rows, -columns:])).save(path)
            found.append(path)
    return found


class Crowd:
    """Clients of one server, and what they have been told.

    Args:
        server: The server.
        paths: Pictures.
        expected: The result of each.
    """

    def __init__(self, server: space_server.Server, paths: list[Path], expected: list[SpectralResult]) -> None:
        self.server, self.paths, self.expected = server, paths, expected
        self.calls: list[Call] = []
        self.start = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def ask(self, client: Client, number: int, picture: int) -> None:
        """Make one call and wait for its answer, looking at the queue meanwhile."""
        call = Call(number, self.now, picture)
        self.calls.append(call)
        job = client.submit(
            handle_file(str(self.paths[picture])), *space_server.choices(**SETTINGS), api_name="/analyze"
        )
        while not job.done():
            status = job.status()
            if status.rank is not None:
                call.places.append(status.rank)
                if call.eta is None and status.eta is not None:
                    call.eta, call.seen = status.eta, self.now
            time.sleep(0.1)
        call.ended = self.now
        if (error := job.exception()) is not None:
            call.error = str(error) or type(error).__name__
            return
        call.is_right = self._is_right(job.result(), picture)

    def keep_asking(self, client: Client, number: int, until: float) -> None:
        """Ask again as soon as an answer has come."""
        for turn in itertools.count(number):
            if self.now >= until:
                return
            self.ask(client, number, turn * 5 % len(self.paths))

    def _is_right(self, answer: Any, picture: int) -> bool:
        (path,) = {one for one in _strings(answer) if one.endswith(".safetensors")}
        url = path if path.startswith("http") else f"{self.server.url}/gradio_api/file={path}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.safetensors"
            file.write_bytes(httpx.get(url, timeout=60).raise_for_status().content)
            given = SpectralResult.from_pretrained(file)
        wanted = self.expected[picture]
        same_shape = given.eigenvectors.shape == wanted.eigenvectors.shape
        return same_shape and torch.allclose(given.eigenvectors, wanted.eigenvectors, atol=1e-3)


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([value.get("path"), value.get("value")])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings(one)


def overtaken(calls: list[Call]) -> int:
    """Count the calls that somebody who came clearly later was answered before."""
    calls = sorted(calls, key=lambda call: call.sent)
    return sum(
        any(other.sent > call.sent + _TOGETHER and other.ended < call.ended - _TOGETHER for other in calls[at + 1 :])
        for at, call in enumerate(calls)
    )


def eta_errors(calls: list[Call]) -> list[float]:
    """Return by how many seconds the times that were promised first were wrong."""
    return [abs(call.seen + call.eta - call.ended) for call in calls if call.eta is not None]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="M", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = pictures(folder)
        pipe = default_pipe(1)
        settings = {**SETTINGS, "num_eigenvectors": SETTINGS["num_eigenvectors"] + 1, "return_result": True}
        expected = [pipe(str(path), **settings)["result"] for path in paths]
        with space_server.demo(folder / "server") as server:
            crowd = Crowd(server, paths, expected)
            clients = [Client(server.url, verbose=False, download_files=False) for _ in range(options.clients)]
            crowd.start = time.monotonic()
            memory = watched(crowd, clients, seconds)
            calls = list(crowd.calls)
            burst(crowd)
            last = crowd.calls[len(calls) :]
    report(calls, last, memory, seconds, options.json)


def watched(crowd: Crowd, clients: list[Client], seconds: float) -> list[tuple[float, float]]:
    """Let the clients ask, and return the server's resident memory in MiB over time."""
    memory, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(min(5.0, seconds / 20)):
            memory.append((crowd.now, crowd.server.process.memory_info().rss / 2**20))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        for ending in [pool.submit(crowd.keep_asking, one, number, seconds) for number, one in enumerate(clients)]:
            ending.result()
    ended.set()
    watcher.join()
    return memory


def burst(crowd: Crowd) -> None:
    """Send more calls at once than the queue takes."""
    count = QUEUE_SIZE + 1 + BEYOND  # One is being answered.
    client = Client(crowd.server.url, verbose=False, download_files=False, max_workers=count)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for ending in [pool.submit(crowd.ask, client, -1, 0) for _ in range(count)]:
            ending.result()


def report(
    calls: list[Call], last: list[Call], memory: list[tuple[float, float]], seconds: float, path: Path | None
) -> None:
    """Print what came of it, write it, and exit with 1 if something is wrong."""
    wrong = [call for call in calls if not call.is_right]
    waits = [call.ended - call.sent for call in calls]
    answers = collections.Counter(call.client for call in calls if call.is_right)
    queued = [call for call in calls if call.places]
    rising = sum(any(two > one for one, two in itertools.pairwise(call.places)) for call in queued)
    first = next(rss for at, rss in memory if at >= min(60.0, seconds / 5))
    growth = memory[-1][1] - first
    refused = [call for call in last if call.error]
    served = [call for call in last if call.is_right]
    late, errors = overtaken(calls), eta_errors(calls)
    values = {
        "calls of the crowd, answered right": f"{len(calls)}, {len(calls) - len(wrong)}",
        "answers per client, fewest to most": f"{min(answers.values())} to {max(answers.values())}",
        "seconds from call to answer, median (range)": spread(waits, 1),
        "calls overtaken by one that came later": late,
        "calls that were shown a place in the queue": len(queued),
        "of these, whose place ever grew": rising,
        "seconds by which the promised time was wrong, median": f"{statistics.median(errors or [0]):.1f}",
        "memory of the server in MiB, after the first minute": f"{first:.0f}",
        "the same at the end": f"{memory[-1][1]:.0f}",
        "calls at once at the end, answered, refused": f"{len(last)}, {len(served)}, {len(refused)}",
        "what the refused are told": "; ".join(sorted({call.error for call in refused})) or "none",
    }
    rows = [{"measured": name, "value": value} for name, value in values.items()]
    print_table(rows)
    every = max(1, len(memory) // 20)
    print("MiB over time: " + ", ".join(f"{at:.0f} s {rss:.0f}" for at, rss in memory[::every]))
    for call in wrong[:5]:
        print(f"wrong: {call}")
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "load": rows}, indent=1))
    faults = {
        "an answer is wrong": bool(wrong),
        "memory grows": growth > FLAT,
        "a call was overtaken": late > 0,
        "nobody was refused, or without a message": not all("ueue is full" in call.error for call in refused or last),
        "a call at the end is neither answered nor refused": len(served) + len(refused) < len(last),
    }
    if found := [fault for fault, is_so in faults.items() if is_so]:
        sys.exit("; ".join(found))


if __name__ == "__main__":
    main()
