"""Folders of tensors: written and read by one process here, by several in tests/integration/test_sharded.py."""
import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import save

from utils.checkpoint import load_checkpoint, load_folder, newest_good_checkpoint, save_folder
from utils.sharding import METADATA, check_folder, read_tensors, read_whole_tensors, write_tensors


def tensors():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7.0), "c": torch.tensor([True, False]),
            "d": torch.randn(3, 2).bfloat16(), "e": torch.arange(4)}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    write_tensors(path, tensors() | {"d": torch.ones(3, 2).bfloat16()})
    return path


def rewrite(folder, change):
    """Change the table of contents of a folder."""
    with open(folder / METADATA, "rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    with open(folder / METADATA, "wb") as file:
        pickle.dump(metadata, file)


def test_folder_gives_back_what_was_written(folder):
    read, expected = read_whole_tensors(folder), tensors() | {"d": torch.ones(3, 2).bfloat16()}
    assert read.keys() == expected.keys()
    assert all(read[name].dtype == expected[name].dtype and torch.equal(read[name], expected[name]) for name in read)


def test_tensors_are_filled_in_place(folder):
    mine = {"a": torch.zeros(2, 3), "e": torch.zeros(4, dtype=torch.int64)}
    storage = mine["a"].data_ptr()
    read_tensors(folder, mine)
    assert mine["a"].data_ptr() == storage
    assert torch.equal(mine["a"], tensors()["a"]) and torch.equal(mine["e"], tensors()["e"])


@pytest.mark.parametrize(("wanted", "message"), [
    ({"f": torch.zeros(1)}, r"1 tensors missing, 0 of another shape \(f\)"),
    ({"a": torch.zeros(3, 2)}, r"0 tensors missing, 1 of another shape \(a \(2, 3\) instead of \(3, 2\)\)")])
def test_tensors_that_do_not_fit_are_an_error(folder, wanted, message):
    with pytest.raises(ValueError, match=message):
        read_tensors(folder, wanted)


def test_table_of_contents_that_would_run_code_is_refused(folder, tmp_path):
    marker = tmp_path / "marker"

    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    rewrite(folder, lambda metadata: metadata.state_dict_metadata.update(harm=Harm()))
    with pytest.raises(ValueError, match=r"holds (posix|nt)\.system, which is not a description of tensors; nothing was run"):
        read_whole_tensors(folder)
    assert not marker.exists()


def test_folder_with_other_things_than_tensors_is_refused(tmp_path):
    save({"a": torch.zeros(2), "note": "pickled"}, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"holds more than tensors \(note\): refused"):
        check_folder(tmp_path)


def test_file_outside_the_folder_is_refused(folder):
    def point_outside(metadata):
        for place in metadata.storage_data.values():
            place.relative_path = "../" + place.relative_path
    rewrite(folder, point_outside)
    with pytest.raises(ValueError, match=r"its file \.\./__0_0\.distcp is missing or cut off"):
        check_folder(folder)


def test_tensor_larger_than_its_parts_is_refused(folder):
    def enlarge(metadata):
        metadata.state_dict_metadata["a"].size = torch.Size([2, 3 * 10 ** 12])
    rewrite(folder, enlarge)
    with pytest.raises(ValueError, match="a part of a is missing"):
        read_whole_tensors(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"not a pickle"])
def test_broken_table_of_contents_is_an_error(folder, content):
    (folder / METADATA).write_bytes(content)
    with pytest.raises(ValueError, match=r"its table of contents, \.metadata, is broken"):
        check_folder(folder)


# ---- checkpoints --------------------------------------------------------------------------------------------------

def save_epoch(root, epoch=3):
    path = root / f"ckpt_epoch_{epoch}"
    model = {"w": torch.ones(2, 2), "b": torch.zeros(2)}
    moments = {"b": {"step": torch.tensor(5.0), "exp_avg": torch.ones(2)}}
    groups = [{"params": ["w"], "lr": 0.1}, {"params": ["b"], "lr": 0.2}]
    save_folder(path, model, moments, {"epoch": epoch, "optimizer_groups": groups})
    return path


def test_checkpoint_folder_reads_as_a_file_would(tmp_path):
    content = load_checkpoint(save_epoch(tmp_path))
    assert content.keys() == {"epoch", "model", "optimizer"} and content["epoch"] == 3
    assert torch.equal(content["model"]["w"], torch.ones(2, 2))
    assert content["optimizer"]["param_groups"] == [{"params": [0], "lr": 0.1}, {"params": [1], "lr": 0.2}]
    assert content["optimizer"]["state"].keys() == {1}
    assert content["optimizer"]["state"][1]["step"] == 5


def test_checkpoint_folder_can_be_read_in_parts(tmp_path):
    path = save_epoch(tmp_path)
    assert load_checkpoint(path, moments=False).keys() == {"epoch", "model"}
    assert load_folder(path, tensors=False).keys() == {"epoch", "optimizer_groups", "folder"}


def test_checkpoint_folder_replaces_a_broken_one(tmp_path):
    path = save_epoch(tmp_path)
    (path / METADATA).unlink()
    save_epoch(tmp_path)
    assert load_checkpoint(path)["epoch"] == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ckpt_epoch_3", "replaced_ckpt_epoch_3"]


def cut_off(folder):
    part = next(folder.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-part.stat().st_size // 2])


def flipped(folder):
    part = next(folder.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-9] + b"other" + part.read_bytes()[-4:])


def no_table_of_contents(folder):
    (folder / METADATA).unlink()


def no_state(folder):
    (folder / "state.pth").unlink()


@pytest.mark.parametrize("harm", [cut_off, flipped, no_table_of_contents, no_state])
def test_newest_good_checkpoint_passes_over_a_broken_folder(harm, tmp_path):
    save_epoch(tmp_path, 2)
    harm(save_epoch(tmp_path, 3))
    lines = []
    path, content = newest_good_checkpoint(tmp_path, lines.append)
    assert path.name == "ckpt_epoch_2" and content["epoch"] == 2
    assert len(lines) == 1 and "ckpt_epoch_3" in lines[0]


def test_flipped_bytes_in_a_part_are_noticed(tmp_path):
    path = save_epoch(tmp_path)
    part = next(path.glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"the checksum of its part {part.name} is wrong"):
        load_folder(path, tensors=False)


def test_folder_that_the_disk_does_not_give_is_passed_over_with_its_reason(tmp_path, monkeypatch):
    path, reports = save_epoch(tmp_path), []

    def fail(self, *args, **kwargs):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr("utils.sharding._Reader.read_metadata", fail)
    assert newest_good_checkpoint(path.parent, reports.append) == (None, None)
    assert "Input/output error" in reports[0] and "Trying the checkpoint before it" in reports[0]


def test_file_and_folder_of_an_epoch_are_both_tried(tmp_path):
    save_epoch(tmp_path, 3)
    (tmp_path / "ckpt_epoch_3.pth").write_bytes(b"broken")
    path, _ = newest_good_checkpoint(tmp_path, lambda line: None)
    assert path.name == "ckpt_epoch_3"


def test_folder_without_the_parts_of_another_machine_is_not_given_its_name(tmp_path, monkeypatch):
    def write_and_lose(folder, tensors):
        write_tensors(folder, tensors)
        next(folder.glob("*.distcp")).unlink()
    monkeypatch.setattr("utils.checkpoint.sharding.write_tensors", write_and_lose)
    with pytest.raises(OSError, match="--output must be on a file system that all of them share"):
        save_epoch(tmp_path)
    assert list(tmp_path.iterdir()) == []
