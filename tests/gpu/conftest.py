"""Where these tests run: `pytest tests/gpu` needs CUDA, `pytest tests/gpu --device cpu` tries their own code."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", help="where tests/gpu runs; default: cuda, skipped where there is none")


@pytest.fixture(scope="session")
def device(request):
    chosen = request.config.getoption("--device", None)
    if chosen is None and not torch.cuda.is_available():
        pytest.skip("no CUDA; `--device cpu` runs the code of these tests")
    return chosen or "cuda"
