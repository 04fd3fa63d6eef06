"""Files with a flipped bit or a lost end, and files made to do harm: what loads is what was written, the rest is refused."""
import argparse
import logging
import random
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from utils.checkpoint import load_checkpoint, save_checkpoint, save_folder
from utils.sharding import METADATA

MODEL = {"w": torch.linspace(-1, 1, 35).view(5, 7), "b": torch.arange(3), "half": torch.ones(2, 3).bfloat16(),
         "scale": torch.tensor(2.0)}
MOMENTS = {"w": {"step": torch.tensor(5.0), "exp_avg": torch.ones(5, 7)}}
PARTS = ("a.pth", "a.safetensors", f"folder/{METADATA}", "folder/__0_0.distcp", "folder/state.pth")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(root / name, {"model": MODEL, "epoch": 3, "config": "SEED: 1\n"})
    save_folder(root / "folder", MODEL, MOMENTS, {"epoch": 3, "optimizer_groups": [{"params": ["w"], "lr": 0.1}]})
    return root


@pytest.fixture(params=PARTS)
def damage(request, originals, tmp_path):
    """(intact bytes, bytes -> whether the checkpoint then loads as it was; else it is refused in one line)."""
    root = tmp_path / "copy"
    shutil.copytree(originals, root)
    part = root / request.param
    path = root / request.param.partition("/")[0]
    intact, whole = load_checkpoint(path), part.read_bytes()

    def loads(content):
        part.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return False
        assert equal(found, intact)
        return True
    return whole, loads


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bit_is_noticed_or_changes_nothing(damage):
    whole, loads = damage
    assert loads(whole)
    bits = random.Random(0).sample(range(8 * len(whole)), 200)
    assert sum(not loads(flipped(whole, bit)) for bit in bits) >= 100  # others are padding, and fields that nobody reads


def test_cut_file_is_noticed(damage):
    whole, loads = damage
    assert not any(loads(whole[:size]) for size in [0, 1, *random.Random(0).sample(range(2, len(whole)), 40)])


@pytest.mark.parametrize("part", ["model", "entries"])
def test_changed_safetensors_file_is_noticed(part, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"model": {"w": torch.ones(2)}, "note": "before"})
    content = path.read_bytes()
    changed = content[:-1] + b"\x00" if part == "model" else content.replace(b"before", b"behind")
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a readable checkpoint: broken.*its checksum is wrong"):
        load_checkpoint(path)


def test_checksum_covers_every_type_of_weights(tmp_path):
    types = ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "complex64"]
    weights = {name: torch.tensor([1.0, 0.0]).to(getattr(torch, name)) for name in types} | {"none": torch.ones(0, 3)}
    save_checkpoint(tmp_path / "a.safetensors", {"model": weights})
    found = load_checkpoint(tmp_path / "a.safetensors")["model"]
    assert all(found[name].dtype == weights[name].dtype and found[name].shape == weights[name].shape for name in weights)


def test_safetensors_file_of_others_needs_no_checksum(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors")["model"]["w"], torch.ones(2))


# ---- torch's old format -------------------------------------------------------------------------------------------

def test_old_format_is_said_to_have_no_checksums_once_a_file(tmp_path, caplog):
    path = tmp_path / "a.pth"
    torch.save({"model": MODEL}, path, _use_new_zipfile_serialization=False)
    with caplog.at_level(logging.WARNING, "simmim.checkpoint"):
        load_checkpoint(path)
        load_checkpoint(path)
    assert [record.getMessage() for record in caplog.records if "old format" in record.getMessage()] == [
        f"{path} is of torch's old format, which has no checksums: damage would go unnoticed. Save it anew with torch.save, or "
        f"tools/convert.py"]


def test_new_formats_are_read_without_a_word(originals, caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("a.pth", "a.safetensors", "folder"):
            load_checkpoint(originals / name)
    assert caplog.records == []


# ---- folders ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [METADATA, "__0_0.distcp"])
def test_folder_without_a_checksum_of_a_part_is_refused(name, originals, tmp_path):
    path = tmp_path / "folder"
    shutil.copytree(originals / "folder", path)
    state = load_checkpoint(path / "state.pth")
    assert state["digests"].keys() == {METADATA, "__0_0.distcp"}
    del state["digests"][name]
    save_checkpoint(path / "state.pth", state)
    with pytest.raises(ValueError, match=rf"it has no checksum of its part {name}"):
        load_checkpoint(path)


@pytest.mark.parametrize("digests", [{}, None, 3])
def test_folder_without_checksums_is_refused(digests, originals, tmp_path):
    path = tmp_path / "folder"
    shutil.copytree(originals / "folder", path)
    save_checkpoint(path / "state.pth", load_checkpoint(path / "state.pth") | {"digests": digests})
    with pytest.raises(ValueError, match="it has no checksum of its part"):
        load_checkpoint(path)


# ---- archives that ask for much -----------------------------------------------------------------------------------

def rewritten(path, change):
    """The archive at `path` with other entries in its table of contents."""
    with zipfile.ZipFile(path, "a") as archive:
        for part in archive.infolist():
            change(part)
        archive._didModify = True  # so that the table is written again


def test_compressed_part_is_refused_before_it_is_read(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(tmp_path / "a.pth", "w") as bomb:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"a\.pth is not a readable.*its part \S+ is compressed, as torch\.save never does"):
        load_checkpoint(tmp_path / "a.pth")


def test_part_marked_as_a_folder_is_refused(tmp_path):
    """torch reads nothing into the memory of its tensor."""
    torch.save({"w": torch.zeros(10)}, tmp_path / "a.pth")

    def mark(part):
        part.external_attr |= 0x10 if part.filename.endswith("data/0") else 0
    rewritten(tmp_path / "a.pth", mark)
    with pytest.raises(ValueError, match=r"its part \S+data/0 is marked as a folder"):
        load_checkpoint(tmp_path / "a.pth")


def test_parts_that_share_bytes_are_refused(tmp_path):
    torch.save({"w": torch.zeros(500), "v": torch.zeros(500)}, tmp_path / "a.pth")
    whole = zipfile.ZipFile(tmp_path / "a.pth")
    first = next(part for part in whole.infolist() if part.filename.endswith("data/0"))
    whole.close()

    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.filelist.extend([first] * 5)
        archive._didModify = True
    with pytest.raises(ValueError, match="its parts overlap"):
        load_checkpoint(tmp_path / "a.pth")


# ---- contents that ask for much -----------------------------------------------------------------------------------

def doubled(kind, levels=60):
    found = kind([1])
    for _ in range(levels):
        found = kind([found, found])
    return found


def nested(levels):
    found = []
    for _ in range(levels):
        found = {"x": [found]}
    return found


def circle():
    found = []
    found.append({"again": found})
    return found


HARMFUL = {
    "stretched": lambda: (torch.zeros(1).expand(10 ** 10), r"take 37 GB written out, but the file has 0\.0 MB"),
    "repeated": lambda: ([torch.zeros(1, 10 ** 3).expand(10 ** 6, -1)[i:] for i in range(2)], "GB written out"),
    "on no device": lambda: (torch.zeros(3, device="meta"), "a tensor without values"),
    "sparse": lambda: (torch.eye(3).to_sparse(), "or a sparse one"),
    "lists": lambda: (doubled(list), "more than 10000000 items"),
    "tuples": lambda: (doubled(tuple), "more than 10000000 items"),
    "deep": lambda: (nested(60), "nested more than 100 levels"),
    "circle": lambda: (circle(), "holds itself"),
    "arguments": lambda: (argparse.Namespace(lists=doubled(list)), "more than 10000000 items"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_small_file_that_stands_for_too_much_is_refused(kind, is_zip, tmp_path):
    value, message = HARMFUL[kind]()
    torch.save({"model": {"w": torch.zeros(2)}, "x": value}, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf"a\.pth is not a readable checkpoint.*{message}") as refusal:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(refusal.value)


def test_tied_and_stretched_weights_of_usual_size_are_read(tmp_path):
    weight = torch.randn(100, 100)
    content = {"model": {"a": weight, "tied": weight, "ids": torch.arange(9).expand(50, -1)}, "list": [[[1, 2], (3, {4})]]}
    torch.save(content, tmp_path / "a.pth")
    assert equal(load_checkpoint(tmp_path / "a.pth")["model"], content["model"])
