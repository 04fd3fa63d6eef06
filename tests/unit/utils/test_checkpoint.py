"""Checkpoint files: written whole or not at all, read without running code."""
import os
import pickle
import stat
import subprocess
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from yacs.config import CfgNode

from utils.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_weights,
    newest_good_checkpoint,
    remove_unfinished,
    save_checkpoint,
    weights_of,
)

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "config": "SEED: 1\n", "best": 0.5}


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_saved_checkpoint_loads_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "new" / "a.pth", STATE)
    content = load_checkpoint(tmp_path / "new" / "a.pth")
    assert torch.equal(content["model"]["weight"], STATE["model"]["weight"])
    assert {key: content[key] for key in ("epoch", "config", "best")} == {"epoch": 3, "config": "SEED: 1\n", "best": 0.5}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("no")])
def test_failing_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.pth"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def fails(state, file):
        file.write(b"the first half of")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    raised = OSError if isinstance(error, RuntimeError) else type(error)  # torch reports a full disk as RuntimeError
    with pytest.raises(raised):
        save_checkpoint(path, {"epoch": 4})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_save_reaches_the_disk_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("fsync") or fsync(number))
    monkeypatch.setattr(os, "replace", lambda *paths: order.append("replace") or replace(*paths))
    save_checkpoint(tmp_path / "a.pth", STATE)
    assert order == ["fsync", "replace", "fsync"]  # the second of the folder


ATTACKS = {  # what the message names: the call, given the file that it would write
    f"{os.name}.system": lambda marker: Call(os.system, f"touch {marker}"),
    r"(subprocess|commands)\.check_call": lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_malicious_pickle_is_refused_by_name_and_not_run(attack, is_zip, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    content = {"model": {"weight": torch.ones(1)}, "config": ATTACKS[attack](marker)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    message = rf"a\.pth holds (builtins\.)?{attack}, which is code, not data: refused, nothing was run\."
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is one: an unprotected reader runs it
    assert marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_that_torch_did_not_write_is_refused_and_not_run(protocol, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"model": Call(os.system, f"touch {marker}")}, protocol))
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"a\.pth (holds .*system, which is code|is no.* "
                                                                    r"checkpoint: .*nothing of it was run)"):
        warnings.simplefilter("error")
        load_checkpoint(path)
    assert not marker.exists()


def test_class_of_another_library_is_refused_with_what_to_do(tmp_path):
    torch.save({"model": {}, "args": stat.S_ISDIR}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds _stat\.S_ISDIR, which is code.*save the weights alone: torch\.save\("):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch_are_read(is_zip, tmp_path):
    torch.save(STATE | {"config": CfgNode({"SEED": 1})}, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    content = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(content["model"]["weight"], STATE["model"]["weight"]) and content["config"]["SEED"] == 1


def test_official_checkpoint_with_a_pickled_config_comes_back_as_plain_data(tmp_path):
    config = CfgNode({"MODEL": {"TYPE": "swin", "SWIN": {"DEPTHS": [2, 2]}}, "AMP": "O1"})
    torch.save(STATE | {"config": config}, tmp_path / "a.pth")
    content = load_checkpoint(tmp_path / "a.pth")
    assert content["config"]["MODEL"]["SWIN"]["DEPTHS"] == [2, 2] and content["config"]["AMP"] == "O1"
    node = content["config"]
    while isinstance(node, dict):
        assert not isinstance(node, CfgNode)
        node = next(iter(node.values()))


@pytest.mark.parametrize("content", [b"", b"half a fi", b"\x00\x01\x02garbage", b"\xff" * 40])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_broken_file_is_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a readable checkpoint: broken") as refusal:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(refusal.value) and "code" not in str(refusal.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_truncated_file_is_named_in_one_line(tmp_path, name, kept):
    save_checkpoint(tmp_path / name, {"model": {"weight": torch.zeros(50, 50)}, "epoch": 1})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"{name} is not a readable checkpoint: broken.*nothing of it was run") as refusal:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3)])
def test_file_that_holds_no_dictionary_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds (list|Tensor), expected a dictionary"):
        load_checkpoint(tmp_path / "a.pth")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="s3://b/x.pth is an address of a kind that is not downloaded: fetch it"):
        load_checkpoint("s3://b/x.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.pth")


def test_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"is not a checkpoint: a folder with state\.pth was expected"):
        load_checkpoint(tmp_path)


# ---- safetensors --------------------------------------------------------------------------------------------------

def test_safetensors_file_holds_weights_numbers_and_text(tmp_path):
    state = STATE | {"note": None, "done": True}
    save_checkpoint(tmp_path / "new" / "a.safetensors", state)
    content = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert torch.equal(content.pop("model")["weight"], STATE["model"]["weight"])
    assert content == {"epoch": 3, "config": "SEED: 1\n", "best": 0.5, "note": None, "done": True}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_safetensors_file_can_be_read_by_others(key, tmp_path):
    weights = {"weight": torch.randn(2, 3).t(), "half": torch.ones(2, dtype=torch.bfloat16), "step": torch.tensor(3)}
    save_checkpoint(tmp_path / "a.safetensors", {key: weights} if key else weights)
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights)
    assert found.keys() == weights.keys() == weights_of(load_checkpoint(tmp_path / "a.safetensors")).keys()


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "author": "another"}])
def test_safetensors_file_of_others_is_read(metadata, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata=metadata)
    content = load_checkpoint(tmp_path / "a.safetensors")
    assert content.keys() == {"model"} and torch.equal(content["model"]["weight"], torch.ones(2))


@pytest.mark.parametrize("entries", ["[1, 2]", "not json"])
def test_safetensors_file_with_broken_entries_is_named(entries, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"checkpoint": entries})
    with pytest.raises(ValueError, match=r"a\.safetensors is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_weights_that_share_memory_are_written_apart(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    weights = {"whole": base, "tied": base, "row": base[1], "columns": base[:, 1:3]}
    save_checkpoint(tmp_path / "a.safetensors", {"model": weights})
    found = load_checkpoint(tmp_path / "a.safetensors")["model"]
    assert all(torch.equal(found[name], weights[name]) for name in weights) and found.keys() == weights.keys()


@pytest.mark.parametrize(("state", "named"), [
    (STATE | {"optimizer": {"state": {}}, "scaler": []}, "optimizer, scaler"),
    ({"model": {"weight": torch.ones(1), "extra": {"a": 1}}}, "extra"),
    (STATE | {"moment": torch.ones(1)}, "moment")])
def test_safetensors_file_refuses_what_it_can_not_hold(state, named, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", STATE)
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"holds weights, numbers and text, but not {named}: .*\.pth"):
        save_checkpoint(tmp_path / "a.safetensors", state)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_failing_safetensors_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def fails(tensors, file, metadata):
        file.write_bytes(b"the first half of")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("utils.formats.save_file", fails)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written.*No space left"):
        save_checkpoint(path, STATE)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_both_formats_leave_files_that_the_same_people_can_read(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(tmp_path / name, STATE)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.pth", "a.safetensors")}
    assert len(modes) == 1


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    """What a live process writes stays: here that of the process that started this one."""
    live = f".encoder.pth.{os.getppid()}.tmp"
    for name in (".ckpt_epoch_1.pth.99999999.tmp", ".encoder.safetensors.99999999.tmp", live, "ckpt_epoch_0.pth", "notes.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".ckpt_epoch_3_step_2.tmp").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([live, "ckpt_epoch_0.pth", "notes.tmp"])


# ---- addresses ----------------------------------------------------------------------------------------------------

@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, folder it serves) on the loopback device; torch.hub caches below tmp_path."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


def test_address_is_downloaded_once(server):
    address, folder = server
    save_checkpoint(folder / "a.pth", STATE)
    assert load_checkpoint(f"{address}/a.pth?download=1")["epoch"] == 3
    (folder / "a.pth").unlink()
    assert load_checkpoint(f"{address}/a.pth?download=1")["epoch"] == 3


def test_address_that_is_missing_names_it_and_the_place_to_put_it(server):
    address, _ = server
    with pytest.raises(ValueError, match=r"absent\.pth could not be downloaded.*put it at .*hub/checkpoints/.*absent"):
        load_checkpoint(f"{address}/absent.pth")


def test_files_of_equal_name_at_two_addresses_are_not_mixed_up(server):
    address, folder = server
    for epoch in (1, 2):
        save_checkpoint(folder / f"run{epoch}" / "encoder.pth", {"epoch": epoch})
    assert [load_checkpoint(f"{address}/run{epoch}/encoder.pth")["epoch"] for epoch in (1, 2)] == [1, 2]


# ---- run folders --------------------------------------------------------------------------------------------------

def test_checkpoints_are_sorted_by_where_the_run_goes_on(tmp_path):
    for name in ("ckpt_epoch_10.pth", "ckpt_epoch_9.pth", "ckpt_best.pth", "ckpt_epoch_2.pth.tmp", "xckpt_epoch_3.pth",
                 "ckpt_epoch_10_step_20.pth", "ckpt_epoch_10_step_3.pth", "ckpt_epoch_4_step_.pth",
                 ".ckpt_epoch_11.pth.1.tmp"):
        (tmp_path / name).touch()
    assert [(place, path.name) for place, path in checkpoints(tmp_path)] == [
        ((10, 0), "ckpt_epoch_9.pth"), ((10, 3), "ckpt_epoch_10_step_3.pth"), ((10, 20), "ckpt_epoch_10_step_20.pth"),
        ((11, 0), "ckpt_epoch_10.pth")]
    assert checkpoints(tmp_path / "absent") == []


def test_newest_is_by_epoch_not_by_time(tmp_path):
    for epoch in (10, 9):
        save_checkpoint(tmp_path / f"ckpt_epoch_{epoch}.pth", {"epoch": epoch})
    path, content = newest_good_checkpoint(tmp_path, pytest.fail)
    assert path.name == "ckpt_epoch_10.pth" and content["epoch"] == 10


def test_broken_newest_is_reported_and_passed_over(tmp_path):
    for epoch in (0, 1):
        save_checkpoint(tmp_path / f"ckpt_epoch_{epoch}.pth", {"epoch": epoch})
    for epoch in (2, 3):
        whole = (tmp_path / "ckpt_epoch_1.pth").read_bytes()
        (tmp_path / f"ckpt_epoch_{epoch}.pth").write_bytes(whole[:len(whole) // epoch])
    reports = []
    path, content = newest_good_checkpoint(tmp_path, reports.append)
    assert path.name == "ckpt_epoch_1.pth" and content["epoch"] == 1
    assert ["ckpt_epoch_3.pth" in reports[0], "ckpt_epoch_2.pth" in reports[1], len(reports)] == [True, True, 2]


def test_no_checkpoint_is_none(tmp_path):
    assert newest_good_checkpoint(tmp_path, pytest.fail) == (None, None)


# ---- weights ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [{"model": {"a": torch.ones(1)}}, {"state_dict": {"a": torch.ones(1)}, "epoch": 1},
                                     {"a": torch.ones(1), "epoch": 1}])
def test_weights_are_found_in_each_form(content):
    assert list(weights_of(content)) == ["a"]


@pytest.mark.parametrize("name", ["module.layers.0.attn.rpe_mlp.0.weight", "_orig_mod.layers.0.attn.rpe_mlp.0.weight",
                                  "module._orig_mod.layers.0.attn.cpb_mlp.0.weight", "layers.0.attn.cpb_mlp.0.weight"])
def test_weights_have_the_present_names_without_wrappers(name):
    assert list(weights_of({"model": {name: torch.ones(1), "version": 2}})) == ["layers.0.attn.cpb_mlp.0.weight"]


def test_weights_of_the_same_model_are_loaded():
    source, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_weights(model, {"model": source.state_dict()}, "file")
    assert torch.equal(model.weight, source.weight) and torch.equal(model.bias, source.bias)


@pytest.mark.parametrize(("source", "message"), [
    (torch.nn.Linear(3, 2, bias=False), r"1 missing \(bias\)"),
    (torch.nn.Linear(4, 2), r"1 of another shape \(weight \(2, 4\) instead of \(2, 3\)\)"),
    (torch.nn.Sequential(torch.nn.Linear(3, 2)), r"2 missing \(weight, bias\); 2 unexpected \(0\.weight, 0\.bias\)"),
])
def test_weights_of_another_model_are_refused_and_say_what_to_use(source, message):
    model = torch.nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=rf"checkpoint file is of another model: {message}.*--pretrained"):
        load_weights(model, {"model": source.state_dict()}, "file")
    assert torch.equal(model.weight, before)


def test_flipped_bytes_of_a_tensor_are_noticed(tmp_path):
    path = tmp_path / "ckpt.pth"
    save_checkpoint(path, {"model": {"w": torch.arange(1000.0)}})
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(500.0, 502.0).numpy().tobytes())
    content[place + 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="the checksum of its part .* is wrong"):
        load_checkpoint(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_wrappers_add_to_are_cleaned(prefix):
    assert weights_of({"model": {f"{prefix}w": torch.ones(1)}}).keys() == {"w"}
