"""What is true of every family that works, shown on any backbone through the pipeline."""

import copy
import warnings

import numpy as np
import torch
from PIL import Image

import hf_spectral
from hf_spectral.capture import capture_attention, vision_tower
from hf_spectral.capture import transformers as host
from hf_spectral.families.transformers import family_of


def quarter_picture(height=96, width=144):
    """Return a picture whose lower left quarter differs from the rest, which is fine noise."""
    pixels = np.random.default_rng(0).normal(90, 12, (height, width, 3))
    pixels[height // 2 :, : width // 2] += (120, 20, -60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def randomized(model, seed=0):
    """Give random values to what starts as zeros (positions, gates); let pixels count for more than places."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                module.weight.mul_(10)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return model.eval()


def tensors_of(output):
    """Yield the tensors of whatever a model returns."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict) or hasattr(output, "items"):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_of(value)


def state(model):
    """Return what a capture could leave behind."""
    return {
        name: (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            {key: id(value) for key, value in vars(module).items()},
            copy.deepcopy(getattr(getattr(module, "config", None), "_attn_implementation_internal", None)),
        )
        for name, module in model.named_modules()
    }


def assert_unchanged_by_capture(model, processor):
    """A capture changes no number of the output and leaves the tower as it came."""
    tower = vision_tower(model)
    family = family_of(tower)
    geometry = family.geometry(tower)
    image = quarter_picture()
    inputs = family.to_inputs(tower, processor, image, geometry.size_for(image.height, image.width))

    def run():
        torch.manual_seed(0)
        with torch.no_grad():
            return list(tensors_of(tower(**inputs, **geometry.forward_arguments)))

    expected, before = run(), state(model)
    with capture_attention(model) as capture:
        output = run()
    assert state(model) == before
    assert len(output) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(output, expected, strict=True))
    return capture


def assert_layers_attend_as_recorded(model, processor, monkeypatch):
    """Softmax of query times key, times value, is what a layer projects next, in every layer that serves `where`."""
    tower = vision_tower(model)
    family = family_of(tower)
    geometry = family.geometry(tower)
    layers = {layer.path: layer for layer in host.attention_layers(model, tower)}
    attended, projected = {}, {path: [] for path in layers}
    arrange = host.arrange
    monkeypatch.setattr(host, "arrange", lambda call: attended.update({call.path: call.attention}) or arrange(call))
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "rel_pos" in name or "relative_position" in name:
                parameter.zero_()
        for path in layers:
            for module in tower.get_submodule(path.rpartition(".")[0]).modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.mul_(2)
                    module.register_forward_pre_hook(lambda _, args, path=path: projected[path].append(args[0]))
        with capture_attention(model) as capture:
            inputs = family.to_inputs(tower, processor, quarter_picture(), geometry.size_for(96, 144))
            tower(**inputs, **geometry.forward_arguments)
    paths = {layer.name: path for path, layer in layers.items()}
    for record in (one for one in capture if one.refusal("where") is None):
        call = attended[paths[record.name]].with_all_heads()
        weights = (call.query @ call.key.transpose(-1, -2) * call.scale).softmax(-1)
        expected = (weights @ call.value).transpose(1, 2).flatten(2)
        found = [
            one.reshape(expected.shape) for one in projected[paths[record.name]] if one.numel() == expected.numel()
        ]
        # Those that see a mask, as the queries of EoMT do, are fewer than the patches.
        assert min(float(((one - expected).abs().amax(-1) > 1e-4).float().mean()) for one in found) < 0.4, record.name


def assert_a_changed_patch_moves_its_node(model, pixels, arguments, place=(6, 2), side=8):
    """A patch of the picture that changes is the node whose values change most, in every layer."""
    changed = pixels.clone()
    row, column = place
    changed[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] += 3
    with capture_attention(model) as capture, torch.no_grad():
        model(pixels, **arguments)
        model(changed, **arguments)
    count = len(capture) // 2
    assert count > 0
    for first, second in zip(capture.records[:count], capture.records[count:], strict=True):
        moved = (first.value - second.value).abs().sum(dim=(0, 1, 3))
        assert divmod(int(moved.argmax()), first.grid.width) == place
    return capture.records[:count]


def assert_follows_the_quarter(model, processor, pathway="what"):
    """An eigenvector has the shape of the quarter that differs; the aspect ratio is kept, or a note says it is not."""
    pipe = hf_spectral.pipeline(model, image_processor=processor, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = pipe(quarter_picture(), pathway=pathway, num_eigenvectors=6, num_segments=None, return_result=True)
    height, width = output["grid"]
    kept = abs(height / width - 96 / 144) < 0.5 / min(height, width) + 0.05
    assert kept or any("aspect ratio not kept" in note for note in output["result"].notes)
    quarter = torch.zeros(height, width)
    quarter[height // 2 :, : width // 2] = 1
    vectors = output["eigenvectors"].flatten(1)
    correlations = [
        abs(float(torch.corrcoef(torch.stack([vector, quarter.flatten()]))[0, 1])) for vector in vectors[1:]
    ]
    assert max(correlations) >= 0.7, correlations
    return output
