"""Files of unknown origin: hundreds of damaged ones, each refused in one line and before memory is taken."""

import copy
import hashlib
import itertools
import json
import math
import random
import resource
import struct
import tracemalloc
import zlib

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_spectral import (
    SpectralBasis,
    SpectralConfig,
    SpectralError,
    SpectralResult,
    TokenGrid,
    fit,
    transform,
)
from hf_spectral.pipelines.images import read_image
from hf_spectral.result import SolveStatus
from tests.families.tiny_backbones import BACKBONES, PROCESSOR
from tests.synthetic import EQUAL, dataset, fitted, photo

LIMIT_BYTES = 256 << 20
NAN, INFINITY = math.nan, math.inf
VALUES = [None, "text", [], {}, -1, -(2**63), 1.5, 2**62, 10**400, NAN, INFINITY, True, [1, 2], {"a": 1}]
# What a value may be where it stands, so that putting it there damages nothing.
HARMLESS = {
    ("max_width",): [None, 2**62 - 1],
    ("config", "layers"): [None, [1, 2]],
    ("config", "layer_weights"): [[1, 2]],
    ("config", "affinity", "temperature"): [None, 1.5],
    ("layers", 0, "name"): ["text"],
    ("layers", 0, "timestep"): [None, -1, -(2**63), 1.5, 2**62],
    ("backbone",): [{}, {"a": 1}],
    ("versions",): [{}],
    ("skipped",): [[]],
    ("solver",): [{}, {"a": 1}],
}


def paths(values):
    """Every place of a description, but what is inside of the free texts about backbone, versions and solver."""
    for name, value in values.items():
        yield (name,)
        if name == "config":
            yield from ((name, key) for key in value)
            yield from ((name, "affinity", key) for key in value["affinity"])
        if name == "layers" and isinstance(value[0], dict):
            yield from ((name, 0, key) for key in value[0])


def put(values, path, value):
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def is_harmless(path, value):
    return any(value is one or (type(value) is type(one) and value == one) for one in HARMLESS.get(path, []))


def damaged_descriptions(values, free=()):
    for path in paths(values):
        for value in VALUES:
            if not is_harmless(path, value) and (path, value) not in free:
                yield f"{path} = {str(value)[:20]}", put(values, path, value)
        yield f"{path} gone", put(values, path, KeyError)
    yield "extra key in config", put(values, ("config", "extra"), 1)


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, data, length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def damaged_tensors(content, seed):
    """Safetensors files whose header and data do not fit each other, or hold no numbers."""
    generator = random.Random(seed)
    header, data = header_of(content)
    names = [name for name in header if name != "__metadata__"]
    shapes = [[], [-1], [2**62], [2**31, 2**31], [-(2**63), 2], [1.5], ["a"], [[1]], None, "text", {"a": 1}, [0]]
    offsets = [[-8, 8], [0, 2**62], [8, 0], [1, 9], ["a", "b"], None, [0], [2**63, 2**64]]
    dtypes = ["F16", "I64", "F64", "U8", "BOOL", "X", None, 7, ["F32"]]
    for name, shape in itertools.product(names, shapes):
        yield f"shape of {name}: {shape}", with_header(put(header, (name, "shape"), shape), data)
    for name, offset in itertools.product(names, offsets):
        yield f"offsets of {name}: {offset}", with_header(put(header, (name, "data_offsets"), offset), data)
    for name, dtype in itertools.product(names, dtypes):
        if dtype != header[name]["dtype"]:
            yield f"type of {name}: {dtype}", with_header(put(header, (name, "dtype"), dtype), data)
    for name in names:
        yield f"no {name}", with_header(put(header, (name,), KeyError), data)
        yield f"{name} is text", with_header(put(header, (name,), "text"), data)
        start = header[name]["data_offsets"][0]
        code, number = ("<d", NAN) if header[name]["dtype"] == "F64" else ("<f", generator.choice([NAN, INFINITY]))
        if header[name]["dtype"] != "I64":
            broken = bytearray(data)
            struct.pack_into(code, broken, start, number)
            yield f"{number} in {name}", with_header(header, bytes(broken))
    extra = {"dtype": "F32", "shape": [2**20], "data_offsets": [len(data), len(data) + 2**22]}
    yield "extra tensor", with_header({**header, "extra": extra}, data + bytes(2**22))
    for length in (0, 1, len(content), 2**31, 2**62, 2**64 - 1):
        yield f"header of {length} bytes", with_header(header, data, length)
    for _ in range(40):
        end = generator.randrange(len(content))
        yield f"cut at {end}", content[:end]
    yield "longer", content + bytes(8)
    yield "deep header", struct.pack("<Q", 10**5) + b"[" * 10**5
    yield "text", b"not a tensor in sight"


@pytest.fixture(scope="module")
def basis_folder(tmp_path_factory):
    backbone = {"id": "user/backbone", "resolution": 64}
    return fitted(dataset(EQUAL[:2])).solve(2, backbone=backbone).save_pretrained(tmp_path_factory.mktemp("basis"))


def damaged_bases(folder):
    content = (folder / "basis.safetensors").read_bytes()
    text = (folder / "config.json").read_text()
    values = json.loads(text)
    for name, changed in damaged_descriptions(values):
        if "model_type" in changed:  # Files of version 0.1 have none.
            yield name, json.dumps(changed), content
    for size in (10**9, 2**62, INFINITY):
        yield f"resolution {size}", json.dumps(put(values, ("backbone", "resolution"), size)), content
    yield "extra key in a layer", json.dumps(put(values, ("layers", 0, "extra"), 1)), content
    yield "extra key", json.dumps({**values, "extra": 1}), content
    for end in range(0, len(text), len(text) // 20):
        yield f"config cut at {end}", text[:end], content
    for name, changed in damaged_tensors(content, seed=0):
        # Who writes a hostile file writes the checksum that fits it.
        checksum = hashlib.sha256(changed).hexdigest()
        yield name, json.dumps({**values, "sha256": checksum}), changed


def refused(load):
    """Return the message, and the largest amount of memory that was taken on the way to it, in bytes."""
    tracemalloc.start()
    with pytest.raises(ValueError, match="expected") as caught:
        load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return str(caught.value), peak


def refuse_all(cases, write, load, record_property):
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, largest = 0, 0
    for name, *contents in cases:
        write(*contents)
        try:
            message, peak = refused(load)
        except BaseException as error:  # Which of the hundreds it was.
            error.add_note(f"damage: {name}")
            raise
        assert "\n" not in message, name
        assert len(message) < 1000, name
        count, largest = count + 1, max(largest, peak)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) << 10
    record_property("refused", count)
    print(f"{count} damaged files refused; at most {largest >> 10} KiB traced and {grown >> 10} KiB resident more")
    assert max(largest, grown) < LIMIT_BYTES
    return count


def test_hundreds_of_damaged_bases_are_refused(basis_folder, tmp_path, record_property):
    def write(text, content):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "basis.safetensors").write_bytes(content)

    cases = damaged_bases(basis_folder)
    assert refuse_all(cases, write, lambda: SpectralBasis.from_pretrained(tmp_path), record_property) >= 200


def test_hundreds_of_damaged_results_are_refused(tmp_path, record_property):
    result = SpectralResult(
        torch.rand(3), torch.rand(3, 4, 5), torch.rand(3), SolveStatus.CONVERGED, 7, TokenGrid(4, 5, 1),
        ("layer.0", "layer.1"), (0.5, 0.5), SpectralConfig(num_eigenvectors=3), {"name": "EigenSolver"},
    )  # fmt: skip
    content = result.save_pretrained(tmp_path / "good.safetensors").read_bytes()
    header, data = header_of(content)
    values = json.loads(header["__metadata__"]["hf_spectral"])

    def described(changed):
        return with_header({**header, "__metadata__": {"hf_spectral": json.dumps(changed)}}, data)

    descriptions = damaged_descriptions(values, free=[(("layers",), []), (("config", "affinity"), None)])
    cases = [(name, described(changed)) for name, changed in descriptions]
    cases += [("no metadata", with_header({**header, "__metadata__": {}}, data))]
    cases += damaged_tensors(content, seed=1)
    path = tmp_path / "result.safetensors"
    assert refuse_all(cases, path.write_bytes, lambda: SpectralResult.from_pretrained(path), record_property) >= 200


def test_untouched_files_are_accepted_by_the_same_readers(basis_folder):
    assert SpectralBasis.from_pretrained(basis_folder).num_images == 2


def test_a_width_that_no_record_confirms_takes_no_memory():
    basis = fitted(dataset(EQUAL[:2]), max_width=20).solve(2)
    basis.project(dataset(EQUAL[:1])[0], walk=0)  # What the first use allocates once is not of interest.
    huge = basis.layers[0].__class__("huge", 7, None, 1 << 17, (1 << 17) - 1)
    object.__setattr__(basis, "layers", (*basis.layers, huge))
    projector = basis.projector(0)
    tracemalloc.start()
    for record in dataset(EQUAL[:1])[0]:
        projector.add(record)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # The columns of that layer alone would be 137 GB.


def png(width, height, data=b""):
    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [100_000, 10_000], ids=["ten thousand million", "a hundred million"])
def test_bombs_are_refused_before_a_pixel_is_decoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    for source in (path, path.read_bytes(), {"bytes": path.read_bytes(), "path": "bomb.png"}):
        message, peak = refused(lambda source=source: read_image(source))
        assert "decompression bomb" in message
        assert peak < 4 << 20


def test_a_bomb_is_refused_where_warnings_are_errors(tmp_path):
    with pytest.raises(SpectralError, match="decompression bomb"):
        read_image(png(10_000, 10_000))


def test_names_inside_a_dataset_never_become_paths(tmp_path):
    outside = tmp_path / "outside.png"
    images, names = [], ["../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "a/\x00b.png", "-rf"]
    for seed, name in enumerate(names):
        photo(seed=seed).save(outside)
        images.append({"bytes": outside.read_bytes(), "path": name})
    outside.unlink()
    table = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    model = BACKBONES["dinov2"].model()
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    out = tmp_path / "deep" / "rows"
    rows = transform(pipe, table, fit(pipe, table, num_eigenvectors=2, progress=False), output_dir=out, progress=False)
    assert len(rows) == len(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert [path.name for path in out.parent.iterdir()] == ["rows"]
    assert {path.name for path in out.iterdir() if path.suffix not in (".arrow", ".json")} == {"basis"}
    assert np.array_equal(np.asarray(rows[0]["image"]), np.asarray(photo(seed=0)))
    assert isinstance(rows[0]["image"], Image.Image)


def test_a_column_that_names_a_file_of_this_machine_does_not_carry_it_off(tmp_path):
    (tmp_path / "secret").write_text("a token")
    photo().save(tmp_path / "mask.png")
    model = BACKBONES["dinov2"].model()
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    columns = {"image": [photo()], "mask": [{"bytes": None, "path": str(tmp_path / "mask.png")}]}

    def table():
        features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
        return datasets.Dataset.from_dict(columns, features=features)

    basis = fit(pipe, table(), image_column="image", num_eigenvectors=2, progress=False)
    rows = transform(pipe, table(), basis, image_column="image", output_dir=tmp_path / "rows", progress=False)
    assert np.array_equal(np.asarray(rows[0]["mask"]), np.asarray(photo()))
    columns["mask"] = [{"bytes": None, "path": str(tmp_path / "secret")}]
    with pytest.raises(SpectralError, match="expected image columns that name pictures, got secret, which is none"):
        transform(pipe, table(), basis, image_column="image", output_dir=tmp_path / "none", progress=False)


def test_a_row_whose_other_picture_is_none_is_skipped_and_the_others_are_kept(tmp_path):
    (tmp_path / "secret").write_text("a token")
    model = BACKBONES["dinov2"].model()
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR)
    masks = [None, {"bytes": None, "path": str(tmp_path / "secret")}, photo(seed=9)]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [photo(seed=i) for i in range(3)], "mask": masks}, features=features)
    basis = fit(pipe, table, image_column="image", num_eigenvectors=2, progress=False)
    settings = {"image_column": "image", "batch_size": 3, "on_error": "skip", "progress": False}
    rows, report = transform(pipe, table, basis, **settings, return_report=True)
    assert rows["image_id"][:] == [0, 2]
    assert rows[0]["mask"] is None
    assert np.array_equal(np.asarray(rows[1]["mask"]), np.asarray(photo(seed=9)))
    ((position, reason),) = [(one.position, one.reason) for one in report.skipped]
    assert position == 1
    assert "expected image columns that name pictures, got secret, which is none" in reason
    assert str(tmp_path) not in reason
