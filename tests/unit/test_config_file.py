"""config.yaml of a run: what its job reads, and nothing that was set is lost."""
import os

import pytest
import yaml

from config import (
    _defaults,
    differences,
    dump,
    flatten,
    keys_of,
    load_config,
    matching,
    save_config,
)
from defaults import settings
from models.encoders import ENCODERS
from models.methods import METHODS
from utils.settings import JOBS

from .helpers import opts_of


def stored(config, job):
    return flatten(yaml.safe_load(dump(config, job)))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_keys_of_a_job_have_the_section_of_its_encoder_and_of_no_other(encoder, job):
    config = load_config(opts=["MODEL.TYPE", encoder])
    sections = {key.split(".")[1] for key in keys_of(config, job) if key.startswith("MODEL.") and key.count(".") > 1}
    method = {"SIMMIM", "PIXMIM"} if job == "pretrain" else set()
    assert sections == {encoder.upper()} | method


def test_keys_of_the_method_in_the_section_of_its_encoder_are_of_pretraining():
    keys = keys_of(load_config(opts=["MODEL.TYPE", "mixmim"]), "finetune")
    assert "MODEL.MIXMIM.DECODER_DEPTH" not in keys and "MODEL.MIXMIM.DEPTHS" in keys


def test_file_of_a_job_has_what_it_reads_and_not_what_others_read():
    config = load_config()
    names = {job: stored(config, job).keys() for job in JOBS}
    assert "DATA.MASK_RATIO" in names["pretrain"] and "DATA.MASK_RATIO" not in names["finetune"] | names["probe"]
    assert "TRAIN.LAYER_DECAY" in names["finetune"] and "TRAIN.LAYER_DECAY" not in names["pretrain"] | names["probe"]
    assert "PROBE.LAYER" in names["probe"] and "PROBE.LAYER" not in names["pretrain"] | names["finetune"]
    assert all("TRAIN.BASE_LR" in keys and len(keys) < 120 for keys in names.values())


@pytest.mark.parametrize("method", METHODS)
def test_file_of_a_pretraining_loads_as_the_same_config(method, tmp_path):
    overrides = {"MODEL.METHOD": method, "MODEL.TYPE": "vit", "MODEL.VIT.DEPTH": 3, "TAG": "007", "DATA.IMG_SIZE": [224, 448],
                 "TRAIN.CLIP_GRAD": None, "TRAIN.BASE_LR": 1e-20}
    config = load_config(opts=opts_of(overrides))
    (tmp_path / "config.yaml").write_text(dump(config, "pretrain"), encoding="utf-8")
    assert flatten(load_config(tmp_path / "config.yaml")) == flatten(config)


def test_what_was_set_but_is_not_read_is_kept_and_named():
    config = load_config(opts=["AUG.MIXUP", 0.3, "MODEL.VIT.DEPTH", 3])
    text = dump(config, "pretrain")
    assert "\n# Set, but not read by it: MODEL.VIT.DEPTH, AUG.MIXUP\n" in text
    assert stored(config, "pretrain")["AUG.MIXUP"] == 0.3 and stored(config, "pretrain")["MODEL.VIT.DEPTH"] == 3
    assert "not read" not in dump(load_config(), "pretrain")


def test_sections_have_headings_and_lists_stay_in_one_line():
    text = dump(load_config(), "finetune")
    assert "\n# Augmentation of labelled images\nAUG:\n" in text and "    DEPTHS: [2, 2, 6, 2]\n" in text
    assert text.startswith("# What main_finetune.py reads;")


def test_file_of_everything_that_an_older_version_wrote_is_kept_where_its_values_are_the_same(tmp_path):
    config = load_config(opts=["SEED", 3])
    (tmp_path / "config.yaml").write_text(config.dump(), encoding="utf-8")  # all keys, sorted
    save_config(config, tmp_path, "pretrain")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == config.dump()
    save_config(load_config(opts=["SEED", 4]), tmp_path, "pretrain")
    assert load_config(tmp_path / "config_1.yaml").SEED == 3 and load_config(tmp_path / "config.yaml").SEED == 4


def test_what_a_stored_config_lacks_has_its_default():
    config = load_config(opts=["SEED", 3, "TRAIN.EPOCHS", 5])
    assert differences(config, "TRAIN:\n  EPOCHS: 5\n") == {"SEED": (0, 3)}
    assert differences(config, dump(config, "probe")) == {}


def test_defaults_can_not_be_changed_through_a_config():
    before = flatten(_defaults())
    load_config().MODEL.SWIN.DEPTHS.append(9)
    assert flatten(_defaults()) == before == flatten(load_config())


# ---- python config.py -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("pattern", "keys"), [
    ("data.mask_r", ["DATA.MASK_RATIO", "DATA.MASK_ROUND"]), ("TEST.*", ["TEST.CROP", "TEST.CROP_RATIO"]), ("SEED", ["SEED"])])
def test_pattern_finds_keys(pattern, keys):
    assert matching(pattern) == keys


def test_no_pattern_finds_all_keys():
    assert matching("") == list(settings())


def test_pattern_without_a_key_names_the_closest():
    with pytest.raises(ValueError, match="no setting has 'mask_ratoi' in its name; the closest is DATA.MASK_RATIO"):
        matching("mask_ratoi")


# ---- a file that is broken ----------------------------------------------------------------------------------------

def broken_config(path, kind):
    content = path.read_bytes()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "dangling link":
        path.unlink()
        path.symlink_to(path.with_name("nowhere"))
    else:
        path.write_bytes({"binary": bytes(range(256)), "cut": content[:len(content) // 2] + b"\n  X: [", "empty": b"",
                          "list": b"- 1\n", "number as key": b"1: 2\n", "unknown key": content.replace(b"SEED:", b"SEEE:"),
                          "flipped": content.replace(b"TRAIN:", b"TRAIN\x7a"), "huge": b"# " + b"x" * 10 ** 6}[kind])


@pytest.mark.parametrize("kind", ["binary", "cut", "list", "number as key", "unknown key", "flipped", "huge", "folder", "pipe"])
def test_broken_file_is_kept_with_a_warning_and_written_anew(kind, tmp_path, caplog):
    config = load_config()
    save_config(config, tmp_path, "pretrain")
    whole = (tmp_path / "config.yaml").read_bytes()
    broken_config(tmp_path / "config.yaml", kind)
    with caplog.at_level("WARNING", "simmim.config"):
        save_config(config, tmp_path, "pretrain")
    assert (tmp_path / "config.yaml").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "config_1.yaml"]
    [record] = caplog.records
    assert "it is kept as config_1.yaml" in record.getMessage() and "\n" not in record.getMessage()
    save_config(config, tmp_path, "pretrain")
    assert len(list(tmp_path.iterdir())) == 2


def test_link_to_nowhere_is_replaced(tmp_path):
    save_config(load_config(), tmp_path, "pretrain")
    broken_config(tmp_path / "config.yaml", "dangling link")
    save_config(load_config(), tmp_path, "pretrain")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"] and (tmp_path / "config.yaml").is_file()


def test_failing_write_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    save_config(load_config(opts=["SEED", 1]), tmp_path, "pretrain")

    def fails(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        save_config(load_config(opts=["SEED", 2]), tmp_path, "pretrain")
    assert {path.name: load_config(path).SEED for path in tmp_path.iterdir()} == {"config_1.yaml": 1}


def test_config_of_a_checkpoint_that_is_no_text_is_refused_in_words():
    for text in (None, 3, "x" * 10 ** 6, "a: [", "- 1"):
        with pytest.raises(ValueError, match="the stored config"):
            differences(load_config(), text)
