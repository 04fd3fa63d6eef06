"""Loading and merging: kinds of values, inheritance, names, saving."""
import re
from pathlib import Path

import pytest

from config import differences, flatten, images_per_step, load_config, run_folder, save_config, scaled_config, with_values

from .helpers import opts_of

RECIPES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def load_text(tmp_path, text, name="recipe.yaml", opts=()):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return load_config(path, opts)


# ---- unknown keys -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("key", "closest"), [
    ("DATA.BATCHSIZE", "DATA.BATCH_SIZE"),
    ("TRAIN.BASELR", "TRAIN.BASE_LR"),
    ("data.img_size", "DATA.IMG_SIZE"),
    ("MASK_RATIO", "DATA.MASK_RATIO"),
    ("MODEL.SWIN.WINDOWSIZE", "MODEL.SWIN.WINDOW_SIZE"),
])
def test_unknown_key_names_the_closest_one_when_given_as_opt(key, closest):
    with pytest.raises(ValueError, match=rf"unknown key '{re.escape(key)}'; the closest valid key is {re.escape(closest)}\.$"):
        load_config(opts=[key, "1"])


def test_unknown_key_names_the_closest_one_and_the_file_when_given_in_yaml(tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.yaml: unknown key 'DATA\.MASK_RATOI'.*DATA\.MASK_RATIO"):
        load_text(tmp_path, "DATA:\n  MASK_RATOI: 0.5\n")


def test_unknown_section_is_refused_when_given_in_yaml(tmp_path):
    with pytest.raises(ValueError, match=r"unknown key 'TRIAN\.BASE_LR'.*TRAIN\.BASE_LR"):
        load_text(tmp_path, "TRIAN: {BASE_LR: 1.0}\n")


def test_key_below_a_value_is_refused():
    with pytest.raises(ValueError, match=r"unknown key 'DATA\.IMG_SIZE\.HEIGHT'"):
        load_config(opts=["DATA.IMG_SIZE.HEIGHT", 3])


def test_section_can_not_be_set_to_a_value():
    with pytest.raises(ValueError, match=r"MODEL\.SWIN is a section.*PATCH_SIZE"):
        load_config(opts=["MODEL.SWIN", 3])


@pytest.mark.parametrize("text", ["1: 2\n", "DATA: {1: 2}\n"])
def test_key_that_is_no_text_is_refused_in_words_when_given_in_yaml(tmp_path, text):
    with pytest.raises(ValueError, match="1"):
        load_text(tmp_path, text)


# ---- kinds of values ----------------------------------------------------------------------------------------------

def test_exponent_without_a_point_is_a_number_in_yaml(tmp_path):
    """YAML 1.1 reads 2e-4 as text."""
    rate = load_text(tmp_path, "TRAIN:\n  BASE_LR: 2e-4\n").TRAIN.BASE_LR
    assert rate == 0.0002 and isinstance(rate, float)


@pytest.mark.parametrize(("key", "given", "expected"), [
    ("TRAIN.BASE_LR", 1, 1.0),
    ("TRAIN.CLIP_GRAD", "3", 3.0),
    ("TRAIN.BASE_LR", "2e-4", 2e-4),
    ("MODEL.VIT.DEPTH", 4.0, 4),
    ("TRAIN.EPOCHS", "1e2", 100),
    ("MODEL.VIT.MLP_RATIO", 4, 4.0),
    ("DATA.IMG_SIZE", "224", 224),
    ("DATA.IMG_SIZE", "[224, 448.0]", [224, 448]),
    ("DATA.IMG_SIZE", (224, 448), [224, 448]),
    ("DATA.MEAN", "[0, 0.5, 1]", [0.0, 0.5, 1.0]),
    ("TRAIN.OPTIMIZER.BETAS", [0, 1e-1], [0.0, 0.1]),
    ("MODEL.SWIN.DEPTHS", "[2.0, 2, 6, 2]", [2, 2, 6, 2]),
    ("TAG", 12, "12"),
    ("TAG", "2e-4", "2e-4"),
    ("DATA.DATA_PATH", "True", "True"),
    ("TRAIN.AUTO_RESUME", "false", False),
    ("TEST.CROP", "True", True),
    ("AUG.CUTMIX_MINMAX", "[0.2, 0.8]", [0.2, 0.8]),
])
def test_value_is_brought_to_the_kind_of_its_default(key, given, expected):
    value = flatten(load_config(opts=[key, given]))[key]
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, list):
        assert [type(item) for item in value] == [type(item) for item in expected]


@pytest.mark.parametrize(("key", "given", "expected"), [
    ("TRAIN.EPOCHS", 1.5, "a whole number"),
    ("TRAIN.EPOCHS", "ten", "a whole number"),
    ("TRAIN.EPOCHS", "1e400", "a whole number"),
    ("TRAIN.EPOCHS", float("inf"), "a whole number"),
    ("TRAIN.EPOCHS", True, "a whole number"),
    ("TRAIN.EPOCHS", "{[1]: 2}", "a whole number"),
    ("TRAIN.BASE_LR", "fast", "a number"),
    ("TRAIN.BASE_LR", [1.0], "a number"),
    ("TRAIN.BASE_LR", False, "a number"),
    ("TRAIN.AUTO_RESUME", 1, "True or False"),
    ("TRAIN.AUTO_RESUME", "yes", "True or False"),
    ("TRAIN.AUTO_RESUME", 0.0, "True or False"),
    ("DATA.IMG_SIZE", [224], r"a whole number or \[height, width\]"),
    ("DATA.IMG_SIZE", [224, 224, 3], r"a whole number or \[height, width\]"),
    ("DATA.IMG_SIZE", 22.4, r"a whole number or \[height, width\]"),
    ("MODEL.SWIN.DEPTHS", 2, "a list of whole numbers"),
    ("MODEL.SWIN.DEPTHS", [2, 2.5], "a list of whole numbers"),
    ("DATA.MEAN", 0.5, "a list of numbers"),
    ("TAG", [1], "text"),
    ("TRAIN.EPOCHS", None, "a whole number"),
    ("DATA.DATA_PATH", None, "text"),
    ("TRAIN.CLIP_GRAD", "much", "a number or None"),
])
def test_value_of_another_kind_is_refused_and_names_key_and_kind(key, given, expected):
    with pytest.raises(ValueError, match=rf"{re.escape(key)}\b.*expected {expected}"):
        load_config(opts=[key, given])


@pytest.mark.parametrize("given", [None, "None", "none", "null"])
@pytest.mark.parametrize("key", ["MODEL.VIT.INIT_VALUES", "TRAIN.CLIP_GRAD", "AUG.AUTO_AUGMENT", "MODEL.SWIN.QK_SCALE",
                                 "AUG.CUTMIX_MINMAX"])
def test_none_is_accepted_when_the_key_can_be_off(key, given):
    if given == "null" and key == "AUG.AUTO_AUGMENT":
        given = "none"  # the name of a policy is text: only the word none is special
    assert flatten(load_config(opts=[key, given]))[key] is None


def test_empty_value_in_yaml_is_none_when_the_key_can_be_off(tmp_path):
    assert load_text(tmp_path, "MODEL:\n  VIT:\n    INIT_VALUES:\n").MODEL.VIT.INIT_VALUES is None


@pytest.mark.parametrize(("key", "given"), [("MODEL.SWIN.QK_SCALE", "[0.1, 0.2]"), ("AUG.CUTMIX_MINMAX", "0.3")])
def test_number_and_list_are_told_apart_when_the_default_is_none(key, given):
    with pytest.raises(ValueError, match=re.escape(key)):
        load_config(opts=[key, given])


def test_date_in_yaml_is_text_or_refused_in_words(tmp_path):
    """YAML reads 2024-01-31 as a date, an obvious thing to write as a TAG."""
    try:
        assert load_text(tmp_path, "TAG: 2024-01-31\n").TAG == "2024-01-31"
    except ValueError as error:
        assert "TAG" in str(error)


@pytest.mark.parametrize("opts", [["TAG"], ["TAG", "a", "SEED"]])
def test_opts_without_a_value_are_refused(opts):
    with pytest.raises(ValueError, match=f"pairs KEY VALUE, but {len(opts)} words"):
        load_config(opts=opts)


def test_opts_win_over_the_file_and_later_ones_over_earlier(tmp_path):
    assert load_text(tmp_path, "SEED: 1\n", opts=["SEED", 2, "SEED", "3"]).SEED == 3


# ---- inheritance --------------------------------------------------------------------------------------------------

def test_base_chain_is_merged_from_the_root_down(tmp_path):
    load_text(tmp_path, "SEED: 1\nTAG: root\nPRINT_FREQ: 7\n", "root.yaml")
    load_text(tmp_path, "BASE: ['../root.yaml']\nSEED: 2\nTAG: middle\n", "below/middle.yaml")
    config = load_text(tmp_path, "BASE: below/middle.yaml\nSEED: 3\n")
    assert (config.SEED, config.TAG, config.PRINT_FREQ) == (3, "middle", 7)
    assert config.given == {"SEED", "TAG", "PRINT_FREQ"}


def test_later_base_wins_over_an_earlier_one(tmp_path):
    load_text(tmp_path, "SEED: 1\nTAG: first\n", "first.yaml")
    load_text(tmp_path, "SEED: 2\n", "second.yaml")
    config = load_text(tmp_path, "BASE: [first.yaml, second.yaml]\n")
    assert (config.SEED, config.TAG) == (2, "first")


def test_base_that_comes_back_to_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("BASE: [b.yaml]\n")
    with pytest.raises(ValueError, match=r"inherits from itself through BASE: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        (tmp_path / "b.yaml").write_text("BASE: [a.yaml]\n")
        load_config(tmp_path / "a.yaml")


def test_two_files_may_share_a_base(tmp_path):
    load_text(tmp_path, "SEED: 1\n", "root.yaml")
    load_text(tmp_path, "BASE: root.yaml\nTAG: left\n", "left.yaml")
    load_text(tmp_path, "BASE: root.yaml\nPRINT_FREQ: 9\n", "right.yaml")
    config = load_text(tmp_path, "BASE: [left.yaml, right.yaml]\n")
    assert (config.SEED, config.TAG, config.PRINT_FREQ) == (1, "left", 9)


def test_missing_base_is_named_with_the_file_that_wants_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml does not exist \(named by BASE in .*recipe\.yaml\)"):
        load_text(tmp_path, "BASE: [absent.yaml]\n")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_base_is_refused_when_given_as_opt():
    """Nothing would be inherited: an option must not be ignored silently."""
    with pytest.raises(ValueError, match="BASE"):
        load_config(opts=["BASE", "['other.yaml']"])


# ---- YAML ---------------------------------------------------------------------------------------------------------

def test_yaml_tag_that_would_run_code_is_refused(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ValueError, match=r"recipe\.yaml is not valid YAML"):
        load_text(tmp_path, f"TAG: !!python/object/apply:os.mkdir ['{target}']\n")
    assert not target.exists()


@pytest.mark.parametrize("text", ["DATA: {IMG_SIZE: [\n", "- 1\n- 2\n", "just words\n"])
def test_yaml_that_is_no_tree_is_refused_and_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        load_text(tmp_path, text)


def test_empty_yaml_gives_the_defaults(tmp_path):
    assert load_text(tmp_path, "# nothing but a remark\n") == load_config()


# ---- what is made from a config -----------------------------------------------------------------------------------

def test_config_is_frozen_everywhere():
    config = load_config()
    for node, key in ((config, "SEED"), (config.TRAIN, "BASE_LR"), (config.MODEL.SIMMIM.NORM_TARGET, "ENABLE")):
        with pytest.raises(AttributeError):
            setattr(node, key, 1)


def test_loading_leaves_the_defaults_alone():
    before = load_config()
    load_config(opts=["MODEL.SWIN.DEPTHS", [2, 2, 18, 2], "SEED", 5])
    assert load_config() == before


def test_lists_of_a_config_are_its_own():
    one, other = load_config(), load_config()
    assert one.MODEL.SWIN.DEPTHS is not other.MODEL.SWIN.DEPTHS


UNUSUAL = {"DATA.IMG_SIZE": [224, 448], "MODEL.VIT.INIT_VALUES": None, "TRAIN.CLIP_GRAD": None, "AUG.AUTO_AUGMENT": None,
           "DATA.MEAN": [0.25, 0.5, 1.0], "DATA.STD": [1, 1, 1], "TRAIN.BASE_LR": 1e-20, "TRAIN.OPTIMIZER.EPS": 3e-7,
           "TAG": "007", "DATA.DATA_PATH": "no # comment: 'really'", "OUTPUT": "null", "AUG.CUTMIX_MINMAX": [0.1, 0.9],
           "TRAIN.LR_SCHEDULER.MULTISTEPS": [10, 20], "MODEL.SWIN.QK_SCALE": 0.125, "MODEL.NAME": "été"}


@pytest.mark.parametrize("overrides", [{}, UNUSUAL], ids=["defaults", "unusual"])
def test_saved_config_loads_as_the_same_one(tmp_path, overrides):
    config = load_config(opts=opts_of(overrides))
    save_config(config, tmp_path, "finetune")
    assert flatten(load_config(tmp_path / "config.yaml")) == flatten(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_as_the_same_one_when_saved(tmp_path, path):
    config = load_config(path)
    save_config(config, tmp_path, "finetune")
    assert flatten(load_config(tmp_path / "config.yaml")) == flatten(config)


def test_recipes_are_found():
    assert len(RECIPES) >= 11


def test_saving_keeps_a_config_that_differs_and_writes_an_equal_one_once(tmp_path):
    first, second = load_config(opts=["SEED", 1]), load_config(opts=["SEED", 2])
    for config in (first, first, second, first):
        save_config(config, tmp_path, "finetune")
    seeds = {path.name: load_config(path).SEED for path in tmp_path.iterdir()}
    assert seeds == {"config.yaml": 1, "config_1.yaml": 1, "config_2.yaml": 2}


def test_scaled_config_scales_the_three_rates_by_the_global_batch():
    config = load_config(opts=["DATA.BATCH_SIZE", 64, "TRAIN.ACCUMULATION_STEPS", 2, "TRAIN.BASE_LR", 0.1,
                               "TRAIN.WARMUP_LR", 0.01, "TRAIN.MIN_LR", 0.001])
    scaled = scaled_config(config, world_size=8)  # 64 * 2 * 8 = 1024 images a step, twice 512
    rates = [scaled.TRAIN.BASE_LR, scaled.TRAIN.WARMUP_LR, scaled.TRAIN.MIN_LR]
    assert rates == pytest.approx([0.2, 0.02, 0.002], rel=1e-12)


def test_rates_may_be_for_another_number_of_images():
    config = load_config(opts=["DATA.BATCH_SIZE", 64, "TRAIN.LR_SCALE_BATCH", 256, "TRAIN.BASE_LR", 0.1])
    assert scaled_config(config, world_size=8).TRAIN.BASE_LR == pytest.approx(0.2, rel=1e-12)


def test_scaled_config_leaves_the_raw_one_untouched():
    config = load_config(opts=["DATA.BATCH_SIZE", 3])
    before = flatten(config)
    scaled = scaled_config(config, world_size=5)
    assert flatten(config) == before
    changed = {key for key, value in flatten(scaled).items() if value != before[key]}
    assert changed == {"TRAIN.BASE_LR", "TRAIN.WARMUP_LR", "TRAIN.MIN_LR"}
    with pytest.raises(AttributeError):
        scaled.TRAIN.BASE_LR = 1.0


@pytest.mark.parametrize(("steps", "expected"), [(0, 12), (1, 12), (2, 24)])
def test_images_per_step_counts_zero_accumulation_steps_as_one(steps, expected):
    config = load_config(opts=["DATA.BATCH_SIZE", 4, "TRAIN.ACCUMULATION_STEPS", steps])
    assert images_per_step(config, world_size=3) == expected


def test_with_values_remembers_what_the_user_set():
    config = with_values(load_config(opts=["SEED", 1]), MODEL__NUM_CLASSES=7)
    assert config.MODEL.NUM_CLASSES == 7 and config.given == {"SEED"}


def test_run_folder_is_output_name_tag():
    assert Path(run_folder(load_config(opts=["MODEL.NAME", "n", "TAG", "t"]))) == Path("output/n/t")
    assert Path(run_folder(load_config(opts=["OUTPUT", "o", "MODEL.NAME", "n", "TAG", "t"]))) == Path("o/n/t")


def test_differences_lists_what_changed_since_a_config_was_saved():
    stored = load_config(opts=["SEED", 1, "DATA.IMG_SIZE", 448]).dump()
    now = load_config(opts=["SEED", 2, "DATA.IMG_SIZE", 448])
    assert differences(now, stored) == {"SEED": (1, 2)}


def test_key_given_twice_in_yaml_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("TRAIN:\n  EPOCHS: 3\nDATA:\n  IMG_SIZE: 224\nTRAIN:\n  WARMUP_EPOCHS: 1\n")
    with pytest.raises(ValueError, match="TRAIN is given twice"):
        load_config(path)
