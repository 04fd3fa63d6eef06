"""The released models: what is recorded about them, and how they are found. Nothing is downloaded."""
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import load_config
from models import build_model
from models.probe import build_probe
from models.weights import zoo

REPOSITORY = Path(__file__).parents[3]
RECORDED = REPOSITORY / "tests" / "parity" / "fixtures" / "mim" / "model_zoo_table.json"
ENTRIES = zoo.entries()
MMPRETRAIN = [row for family in ("simmim", "mixmim", "mae") for row in json.loads(RECORDED.read_text(encoding="utf-8"))[family]]


# ---- the data -----------------------------------------------------------------------------------------------------

def architectures():
    """{(recipe, settings, task, whether a linear probe): entries}."""
    found = {}
    for entry in ENTRIES.values():
        if entry.config is not None:
            found.setdefault((entry.config, entry.opts, entry.task, entry.linear_probe), []).append(entry)
    return found


@pytest.mark.parametrize("architecture", architectures(), ids=lambda architecture: Path(architecture[0]).stem)
def test_recipe_of_an_entry_builds_a_model_with_its_number_of_parameters(architecture):
    recipe, opts, task, linear_probe = architecture
    config = load_config(REPOSITORY / recipe, opts)
    with torch.device("meta"):
        model = build_probe(config, config.MODEL.NUM_CLASSES) if linear_probe else build_model(config, task == "pretrain")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert {entry.name: entry.params for entry in architectures()[architecture]} == {
        entry.name: parameters for entry in architectures()[architecture]}


def names_where(wrong):
    return [entry.name for entry in ENTRIES.values() if wrong(entry)]


def test_every_entry_is_built_here_or_says_why_not():
    assert names_where(lambda entry: (entry.config is None) != (entry.obstacle is not None)) == []


def test_every_recipe_is_of_the_stage_of_its_entry():
    def stage(entry):
        return "linprobe" if entry.linear_probe else {"pretrain": "pretrain", "classification": "finetune"}[entry.task]

    assert names_where(lambda entry: entry.config and f"_{stage(entry)}__" not in entry.config) == []


def test_every_entry_claims_only_what_its_kind_has():
    assert names_where(lambda entry: entry.task == "pretrain" and (entry.top1 is not None or entry.linear_probe)) == []
    assert names_where(lambda entry: entry.task == "classification" and (entry.top1 is None or entry.validation_loss)) == []
    assert names_where(lambda entry: (entry.flops_note is None) != (entry.gflops is None)) == []
    assert names_where(lambda entry: not re.fullmatch(r"2\d{3}\.\d{5}", entry.paper)) == []


def test_every_address_is_over_tls_and_has_a_file_name():
    assert names_where(lambda entry: entry.url and not (entry.url.startswith("https://") and entry.filename)) == []
    assert names_where(lambda entry: entry.url and "drive.google.com" not in entry.url
                       and entry.filename != entry.url.partition("?")[0].rpartition("/")[2]) == []


def test_every_checksum_is_the_one_in_the_published_file_name():
    published = {entry.name: re.search(r"-([0-9a-f]{8})\.pth$", entry.filename or "") for entry in ENTRIES.values()}
    assert sum(map(bool, published.values())) == 25  # mmpretrain 19, mmselfsup 6
    assert {entry.name: entry.sha256 for entry in ENTRIES.values()} == {
        name: found and found[1] for name, found in published.items()}


def test_entries_are_sorted_in_each_group_and_told_apart_by_name_and_file():
    for group in json.loads(zoo.DATA.read_text(encoding="utf-8")):
        assert list(group["models"]) == sorted(group["models"])
    names = [name for entry in ENTRIES.values() for name in (entry.name, *entry.aliases)]
    assert [name for name, times in Counter(names).items() if times > 1] == []
    files = [entry.filename for entry in ENTRIES.values() if entry.filename]
    assert [name for name, times in Counter(files).items() if times > 1] == []


@pytest.mark.parametrize("row", MMPRETRAIN, ids=lambda row: row["name"])
def test_numbers_of_mmpretrain_are_those_of_its_tables(row):
    entry = zoo.find(row["name"])
    assert (round(entry.gflops * 1e9), entry.top1, entry.source) == (row["flops"], row["top1"], "mmpretrain 1.2")
    assert entry.params == row["params"] or f"listed with {row['params']:,} parameters" in entry.note
    for downstream in row.get("downstream", []):
        assert zoo.find(downstream).name.startswith(entry.name.removesuffix("_mmpretrain"))


def test_numbers_of_pixmim_and_mixmim_are_those_of_their_tables():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for row in recorded["pixmim"]:
        name = zoo.find(row["name"]).name
        assert [zoo.find(f"{name}_{kind}").top1 for kind in ("ft224", "linear")] == [
            result["top1"] for result in row["downstream"]]
    for row in recorded["mixmim_official_readme"]:
        size, pixels = {"B": "base", "L": "large"}[row["model"][5]], "384" if "384" in row["model"] else "224"
        entry = zoo.find(f"mixmim_{size}_600ep_ft{pixels}")
        assert (entry.top1, entry.gflops) == (row["top1"], row["flops_G"])
        assert f"{row['params_M']}M" in entry.note
        assert entry.params == pytest.approx(row["params_M"] * 1e6, rel=6e-3)


def test_model_hub_of_swinv2_is_complete():
    """5 sizes, 3 lengths; 10 % of ImageNet-1K up to L, 20 % up to H; pre-trained and fine-tuned."""
    expected = {f"{size}_{data}_{length}" for size in ("small", "base", "large", "huge", "giant")
                for data in ("1kper10", "1kper20", "1kper50", "1k", "22k") for length in ("125k", "250k", "500k")
                if (size, data) not in {("small", "22k"), ("huge", "1kper10"), ("giant", "1kper10"), ("giant", "1kper20")}}
    assert len(expected) == 63
    hub = [entry for entry in ENTRIES.values() if entry.source == "Swin-Transformer MODELHUB"]
    for task, prefix, ending in (("pretrain", "swinv2", ""), ("classification", "finetune_swinv2", "_ft")):
        files = {entry.name: entry.filename for entry in hub if entry.task == task}
        assert files == {f"simmim_swinv2_{model}{ending}": f"{prefix}_{model}.pth" for model in expected}
    assert all(entry.validation_loss for entry in hub if entry.task == "pretrain")
    assert all(entry.top1 for entry in hub if entry.task == "classification")


def test_models_of_mmpretrain_see_the_middle_of_an_image():
    """Its test pipelines resize the short side to 8/7 of the size and crop the centre, at 448 px as well."""
    def evaluation_of(entry):
        return load_config(REPOSITORY / entry.config, entry.opts).TEST

    assert names_where(lambda entry: entry.config and entry.task == "classification" and entry.source == "mmpretrain 1.2"
                       and (not evaluation_of(entry).CROP or evaluation_of(entry).CROP_RATIO != 7 / 8)) == []


# ---- names --------------------------------------------------------------------------------------------------------

def length(entry):
    """Of a pre-training by its authors, as something to compare; -1 for others."""
    if entry.name.endswith("_mmpretrain"):
        return -1
    iterations = re.search(r"_1k_(\d+)k", entry.name)
    epochs = re.search(r"_(\d+)ep", entry.name)
    return int((iterations or epochs)[1]) if iterations or epochs else -1


@pytest.mark.parametrize("ending", ["", "_ft", "_linear"])
def test_short_name_is_the_longest_pretraining_by_the_authors(ending):
    kinds = {"": lambda entry: entry.task == "pretrain", "_linear": lambda entry: entry.linear_probe,
             "_ft": lambda entry: entry.task == "classification" and re.search("_ft(224)?$", entry.name)}
    models = {}
    for entry in filter(kinds[ending], ENTRIES.values()):
        if length(entry) >= 0:
            models.setdefault(re.split(r"_\d+ep|_1k_", entry.name)[0], []).append(entry)
    assert len(models) == {"": 15, "_ft": 15, "_linear": 1}[ending]
    assert {model: zoo.find(model + ending).name for model in models} == {
        model: max(choice, key=length).name for model, choice in models.items()}


def test_list_has_all_names_sorted_and_no_alias():
    names = zoo.list_models()
    assert names == sorted(ENTRIES)
    assert zoo.list_models(task="pretrain") + zoo.list_models(task="classification") != names
    assert sorted(zoo.list_models(task="pretrain") + zoo.list_models(task="classification")) == names


@pytest.mark.parametrize(("pattern", "task", "names"), [
    ("pixmim_vit_base_300", None, ["pixmim_vit_base_300ep", "pixmim_vit_base_300ep_ft224", "pixmim_vit_base_300ep_linear"]),
    ("*base*300ep_ft224", "classification", ["mae_vit_base_300ep_ft224_mmpretrain", "mixmim_base_300ep_ft224_mmpretrain",
                                             "pixmim_vit_base_300ep_ft224"]),
    ("mixmim_base*ft384", "pretrain", []),
    ("mixmim-base", None, ["mixmim-base_3rdparty_in1k", "mixmim-base_mixmim-pre_8xb128-coslr-100e_in1k"]),
    ("simmim_swin-large", None, ["simmim_swin-large-w12_16xb128-amp-coslr-800e_in1k-192px"]),
    ("convmae_base_1600ep_ft2?4", None, ["convmae_base_1600ep_ft224"]),
    ("CONVMAE", None, [])])
def test_pattern_of_the_list_is_a_shell_one_and_finds_aliases_where_no_name_matches(pattern, task, names):
    assert zoo.list_models(pattern, task) == names


def test_list_of_an_unknown_task_says_which_there_are():
    with pytest.raises(ValueError, match="task='pretraining' is unknown; valid: classification, pretrain.*'pretrain'"):
        zoo.list_models(task="pretraining")


def test_pattern_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="is list, expected one text"):
        zoo.list_models(["mae*"])


def test_aliases_lead_to_the_same_entry():
    assert zoo.find("mixmim-base_3rdparty_in1k") is zoo.find("mixmim-base_mixmim-pre_8xb128-coslr-100e_in1k")
    assert zoo.find("mixmim-base_3rdparty_in1k").name == "mixmim_base_300ep_ft224_mmpretrain"


def test_unknown_name_is_answered_with_names_like_it():
    with pytest.raises(ValueError, match=r"'simmim_swin_bse_800ep' is unknown. Did you mean 'simmim_swin_base_800ep'"):
        zoo.find("simmim_swin_bse_800ep")
    with pytest.raises(ValueError, match=r"'\?' is unknown. docs/models.md and models.weights.zoo.list_models\(\) have all"):
        zoo.find("?")


# ---- weights ------------------------------------------------------------------------------------------------------

@pytest.fixture
def folders(tmp_path, monkeypatch):
    """weights_dir, that of SIMMIM_WEIGHTS, that of torch.hub; none exists yet."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("SIMMIM_WEIGHTS", str(tmp_path / "variable"))
    return tmp_path / "given", tmp_path / "variable", tmp_path / "hub" / "checkpoints"


def put(folder, entry, content=b"weights"):
    folder.mkdir(parents=True)
    (folder / entry.filename).write_bytes(content)
    return folder / entry.filename


def test_weights_are_looked_for_in_the_given_folder_then_the_variable_then_the_hub(folders):
    entry = zoo.find("mixmim_base")  # behind a share link: any attempt to download it is an error
    for folder in reversed(folders):
        path = put(folder, entry)
        assert zoo.weights_file(entry, folders[0]) == path


def test_weights_without_an_address_that_can_be_downloaded_say_where_to_put_them(folders):
    given, variable, _ = folders
    with pytest.raises(ValueError, match=rf"drive\.google\.com/\S+ is a share link.*at {variable}/mixmim_base_600ep\.pth"):
        zoo.weights_file(zoo.find("mixmim_base"))
    with pytest.raises(ValueError, match=rf"put it at {given}/mixmim_base_600ep\.pth"):
        zoo.weights_file(zoo.find("mixmim_base"), given)
    with pytest.raises(ValueError, match=rf"Alpha-VL/ConvMAE. Put the file at {given}/convmae_base_1600ep\.pth"):
        zoo.weights_file(zoo.find("convmae_base"), given)


def test_weights_that_are_not_known_are_an_error():
    with pytest.raises(ValueError, match="no weights of mae_vit_base_300ep_ft224_mmpretrain are known"):
        zoo.weights_file(zoo.find("mae_vit_base_300ep_ft224_mmpretrain"))


def test_local_weights_are_held_to_the_published_checksum(folders):
    entry = zoo.find("simmim_swin_base_100ep_mmpretrain")
    path = put(folders[0], entry)
    with pytest.raises(ValueError, match=rf"{path.name} is not the published file.*the published one begins with 0e15782d"):
        zoo.weights_file(entry, folders[0])
    same = replace(entry, sha256=hashlib.sha256(b"weights").hexdigest()[:8])
    assert zoo.weights_file(same, folders[0]) == path


def test_weights_are_downloaded_into_the_first_folder(folders, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "fetch", lambda *arguments: asked.append(arguments))
    entry = zoo.find("mae_vit_base")
    zoo.weights_file(entry, progress=False)
    zoo.weights_file(entry, folders[0])
    assert asked == [(entry.url, folders[1] / "mae_pretrain_vit_base.pth", None, False),
                     (entry.url, folders[0] / "mae_pretrain_vit_base.pth", None, True)]
