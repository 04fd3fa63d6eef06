"""Settings that can't work together are refused, with the key's name and a fix that really works."""
import re

import pytest
import torch

from checks import check_training
from config import check_pretraining, flatten, load_config
from data.loader import build_mixup, check_finetuning

from .helpers import opts_of


def checked(overrides):
    config = load_config(opts=opts_of(overrides))
    check_pretraining(config)
    check_finetuning(config)
    check_training(config)
    return config


NO_MIXING = {"AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0}
SWIN = {"DATA.IMG_SIZE": 192, "MODEL.SWIN.WINDOW_SIZE": 6}
VIT = {"MODEL.TYPE": "vit"}
SMALL_SWIN = {"MODEL.SWIN.DEPTHS": [1, 1], "MODEL.SWIN.NUM_HEADS": [3, 6]}

# what is wrong; the key that the message must begin with; pattern of a suggested value; the key to give it to
FIXABLE = {
    "mask_unit_does_not_divide_the_image": (
        VIT | {"DATA.MASK_PATCH_SIZE": 48}, "DATA.MASK_PATCH_SIZE", r"DATA\.MASK_PATCH_SIZE (\d+)", None),
    "mask_unit_does_not_divide_one_side": (
        VIT | {"DATA.IMG_SIZE": [192, 208], "DATA.MASK_PATCH_SIZE": 64}, "DATA.MASK_PATCH_SIZE",
        r"DATA\.MASK_PATCH_SIZE (\d+)", None),
    "image_is_no_multiple_of_the_mask_unit": (
        VIT | {"DATA.IMG_SIZE": 240, "DATA.MASK_PATCH_SIZE": 32}, "DATA.MASK_PATCH_SIZE",
        r"DATA\.IMG_SIZE that is a multiple of (\d+)", "DATA.IMG_SIZE"),
    "mask_unit_is_no_whole_number_of_patches": (
        VIT | {"DATA.MASK_PATCH_SIZE": 28}, "DATA.MASK_PATCH_SIZE", r"DATA\.MASK_PATCH_SIZE (\d+)\.", None),
    "mask_unit_is_no_whole_number_of_patches_and_the_nearest_does_not_divide_the_image": (
        VIT | {"DATA.MASK_PATCH_SIZE": 56}, "DATA.MASK_PATCH_SIZE", r"DATA\.MASK_PATCH_SIZE (\d+)\.", None),
    "mask_unit_is_smaller_than_a_patch": (
        SWIN | {"DATA.MASK_PATCH_SIZE": 2}, "DATA.MASK_PATCH_SIZE", r"DATA\.MASK_PATCH_SIZE (\d+)\.", None),
    "window_does_not_divide_the_first_map_fixed_by_window": (
        SWIN | {"MODEL.SWIN.WINDOW_SIZE": 7}, "DATA.IMG_SIZE", r"MODEL\.SWIN\.WINDOW_SIZE (\d+)", "MODEL.SWIN.WINDOW_SIZE"),
    "window_does_not_divide_the_first_map_fixed_by_size": (
        SWIN | {"MODEL.SWIN.WINDOW_SIZE": 7}, "DATA.IMG_SIZE", r"DATA\.IMG_SIZE (\d+)", "DATA.IMG_SIZE"),
    "window_does_not_divide_a_late_map": (  # 24 and 12 tokens are divided by 4, the 6 of stage 2 are not
        {"DATA.IMG_SIZE": 96, "MODEL.SWIN.WINDOW_SIZE": 4}, "DATA.IMG_SIZE", r"MODEL\.SWIN\.WINDOW_SIZE (\d+)",
        "MODEL.SWIN.WINDOW_SIZE"),
    "window_divides_one_side_only": (
        SMALL_SWIN | {"DATA.IMG_SIZE": [48, 80], "MODEL.SWIN.WINDOW_SIZE": 7, "DATA.MASK_PATCH_SIZE": 16},
        "DATA.IMG_SIZE", r"MODEL\.SWIN\.WINDOW_SIZE (\d+)", "MODEL.SWIN.WINDOW_SIZE"),
    "window_divides_one_side_only_fixed_by_size": (
        SMALL_SWIN | {"DATA.IMG_SIZE": [48, 80], "MODEL.SWIN.WINDOW_SIZE": 6, "DATA.MASK_PATCH_SIZE": 8},
        "DATA.IMG_SIZE", r"DATA\.IMG_SIZE (\[[\d,]+\])", "DATA.IMG_SIZE"),
    "image_is_no_multiple_of_the_stride": (
        SWIN | {"DATA.IMG_SIZE": 200}, "DATA.IMG_SIZE", r"DATA\.IMG_SIZE (\d+)", "DATA.IMG_SIZE"),
    "image_is_no_multiple_of_the_patch": (
        VIT | {"DATA.IMG_SIZE": 230}, "MODEL.VIT.PATCH_SIZE", r"DATA\.IMG_SIZE (\d+)\.", "DATA.IMG_SIZE"),
    "vit_heads_do_not_divide_the_width": (
        VIT | {"MODEL.VIT.NUM_HEADS": 7}, "MODEL.VIT.NUM_HEADS", r"e\.g\. (\d+) heads", None),
    "normalising_window_is_even": (
        {"MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": 46}, "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", r"Use (\d+)\.", None),
    "warmup_is_longer_than_the_first_milestone": (
        {"TRAIN.LR_SCHEDULER.NAME": "multistep", "TRAIN.LR_SCHEDULER.MULTISTEPS": [10, 15]}, "TRAIN.WARMUP_EPOCHS",
        r"at most (\d+)\.", None),
    "batch_is_odd_with_mixup": ({"DATA.BATCH_SIZE": 7}, "DATA.BATCH_SIZE", r"Use (\d+),", None),
}
fixable = pytest.mark.parametrize(("overrides", "key", "pattern", "fixed_key"), FIXABLE.values(), ids=FIXABLE.keys())


@fixable
def test_impossible_combination_names_the_key(overrides, key, pattern, fixed_key):
    with pytest.raises(ValueError, match=f"^{re.escape(key)}="):
        checked(overrides)


@fixable
def test_suggested_fix_of_an_impossible_combination_works(overrides, key, pattern, fixed_key):
    with pytest.raises(ValueError) as caught:
        checked(overrides)
    suggestion = re.search(pattern, str(caught.value))
    assert suggestion, str(caught.value)
    checked(overrides | {fixed_key or key: suggestion[1]})  # as typed on a command line


def test_suggested_number_of_swin_heads_works():
    overrides = SWIN | {"MODEL.SWIN.NUM_HEADS": [3, 6, 13, 24]}
    with pytest.raises(ValueError, match=r"^MODEL\.SWIN\.NUM_HEADS=.*13 heads.*384 channels of stage 2") as caught:
        checked(overrides)
    fit = int(re.search(r"e\.g\. (\d+) heads", str(caught.value))[1])
    checked(overrides | {"MODEL.SWIN.NUM_HEADS": [3, 6, fit, 24]})


def test_window_shrinks_to_a_smaller_map_before_it_is_checked():
    """Maps of 12, 6, 3 tokens: a window of 6 fits the last one because it shrinks to 3."""
    config = checked({"DATA.IMG_SIZE": 96, "MODEL.SWIN.PATCH_SIZE": 8, "MODEL.SWIN.DEPTHS": [1, 1, 1],
                      "MODEL.SWIN.NUM_HEADS": [3, 6, 12], "MODEL.SWIN.WINDOW_SIZE": 6})
    assert config.MODEL.SWIN.WINDOW_SIZE == 6


def test_default_mask_unit_is_not_checked_in_fine_tuning():
    """240 px is no multiple of the default unit of 32, and fine-tuning has no mask."""
    config = load_config(opts=opts_of(VIT | {"DATA.IMG_SIZE": 240}))
    with pytest.raises(ValueError, match=r"DATA\.MASK_PATCH_SIZE=32"):
        check_pretraining(config)


def test_odd_batch_is_accepted_when_images_are_not_mixed():
    check_finetuning(load_config(opts=opts_of({"DATA.BATCH_SIZE": 7} | NO_MIXING)))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_batch_that_is_refused_is_one_that_timm_can_not_mix(mode):
    mix = build_mixup(load_config(opts=["AUG.MIXUP_MODE", mode]), 3)
    assert len(mix(torch.zeros(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2]))[1]) == 6
    with pytest.raises(AssertionError):
        mix(torch.zeros(7, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def test_odd_batch_is_refused_when_only_cutmix_minmax_is_on():
    with pytest.raises(ValueError, match=r"DATA\.BATCH_SIZE=7"):
        checked(NO_MIXING | {"DATA.BATCH_SIZE": 7, "AUG.CUTMIX_MINMAX": [0.2, 0.8]})


@pytest.mark.parametrize("steps", [[], [30, 20]])
def test_multistep_without_rising_epochs_is_refused(steps):
    with pytest.raises(ValueError, match=r"TRAIN\.LR_SCHEDULER\.MULTISTEPS="):
        checked({"TRAIN.LR_SCHEDULER.NAME": "multistep", "TRAIN.LR_SCHEDULER.MULTISTEPS": steps})


@pytest.mark.parametrize(("key", "value"), [("MODEL.SWIN.DEPTHS", [2, 2, 6]), ("MODEL.SWIN.DEPTHS", []),
                                            ("MODEL.SWIN.DEPTHS", [2, 0, 6, 2]), ("MODEL.SWIN.NUM_HEADS", [3, 0, 12, 24]),
                                            ("DATA.MEAN", [0.5]), ("DATA.STD", [0.5, 0.5, 0.5, 0.5])])
def test_list_of_the_wrong_length_or_content_is_refused(key, value):
    with pytest.raises(ValueError, match=re.escape(key)):
        load_config(opts=[key, value])


@pytest.mark.parametrize(("overrides", "message"), [
    ({"MODEL.TYPE": "vit", "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.EMBED_DIM": 30, "MODEL.VIT.NUM_HEADS": 3},
     r"MODEL\.VIT\.EMBED_DIM=30 must be a multiple of 4.*Use 32"),
    ({"MODEL.TYPE": "vit", "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_APE": True}, "USE_APE and USE_SINCOS_APE are both"),
    ({"MODEL.TYPE": "swinv2", "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": [6, 6]},
     r"MODEL\.SWINV2\.PRETRAINED_WINDOW_SIZES=\[6, 6\] must have one value.*4 stages"),
    ({"MODEL.TYPE": "swinv2", "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": [6, 6, 6, -1]}, r"one value, 0 or more")])
def test_settings_of_an_encoder_that_can_not_work_are_refused_when_it_is_chosen(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(opts=opts_of(overrides))
    load_config(opts=opts_of(overrides | {"MODEL.TYPE": "swin"}))


@pytest.mark.parametrize(("key", "value", "valid"), [
    ("TRAIN.LR_SCHEDULER.NAME", "cosin", "cosine, linear, step, multistep"),
    ("TRAIN.OPTIMIZER.NAME", "adam", "adamw, sgd, lars, fused_adam, fused_lamb"),
    ("DATA.INTERPOLATION", "cubic", "bicubic, bilinear, lanczos, nearest"),
    ("AMP_OPT_LEVEL", "O3", "'', O0, O1, O2"),
    ("AMP_BACKEND", "torch", "native, apex"),
    ("AUG.REMODE", "noise", "const, rand, pixel"),
    ("AUG.MIXUP_MODE", "all", "batch, pair, elem"),
])
def test_unknown_choice_lists_the_valid_ones(key, value, valid):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}='{value}' is unknown; valid: {valid}\."):
        load_config(opts=[key, value])


@pytest.mark.parametrize(("key", "value"), [
    ("DATA.BATCH_SIZE", 0), ("DATA.MASK_RATIO", 1.1), ("DATA.MASK_RATIO", -0.1), ("DATA.MASK_PATCH_SIZE", 0),
    ("DATA.NUM_WORKERS", -1), ("DATA.VAL_FRACTION", 1.0), ("MODEL.DROP_PATH_RATE", 1.0), ("MODEL.NUM_CLASSES", 0),
    ("TRAIN.EPOCHS", 0), ("TRAIN.ACCUMULATION_STEPS", -1), ("TRAIN.LAYER_DECAY", 0.0), ("TRAIN.LAYER_DECAY", 1.5),
    ("TRAIN.WARMUP_EPOCHS", -1), ("SAVE_FREQ", 0), ("PRINT_FREQ", 0), ("MODEL.SWIN.WINDOW_SIZE", 0),
    ("MODEL.VIT.DEPTH", 0), ("DATA.IMG_SIZE", 0), ("DATA.IMG_SIZE", [224, 0]), ("TRAIN.BASE_LR", -1.0),
    ("TRAIN.BASE_LR", float("nan")), ("TRAIN.WARMUP_LR", -1.0), ("TRAIN.MIN_LR", -1.0),
    ("TRAIN.CLIP_GRAD", -1.0),  # a negative limit turns the gradient round
    ("TRAIN.OPTIMIZER.BETAS", [0.9]), ("TRAIN.OPTIMIZER.BETAS", [0.9, 1.0]),
    ("AUG.CROP_SCALE", [0.5, 0.2]), ("AUG.CROP_SCALE", [0.0, 1.0]), ("AUG.CROP_SCALE", [0.5, 1.5]),
    ("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", 1),  # the unbiased variance of one pixel is 0 / 0
    ("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", -3),
])
def test_value_out_of_range_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"\b{re.escape(key)}="):
        load_config(opts=[key, value])


@pytest.mark.parametrize(("key", "value"), [("DATA.MASK_RATIO", 0), ("DATA.MASK_RATIO", 1), ("TRAIN.LAYER_DECAY", 1),
                                            ("TRAIN.CLIP_GRAD", 0), ("DATA.NUM_WORKERS", 0), ("TRAIN.WARMUP_EPOCHS", 0)])
def test_value_at_the_border_of_its_range_is_accepted(key, value):
    assert flatten(load_config(opts=[key, value]))[key] == value


@pytest.mark.parametrize(("key", "value"), [("PROBE.LAYER", "first"), ("PROBE.LAYER", "1.5"), ("PROBE.KNN_K", []),
                                            ("PROBE.KNN_K", [0, 10]), ("PROBE.TEMPERATURE", 0.0), ("PROBE.FEATURE", "max")])
def test_probe_of_what_does_not_exist_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"{key}=.* (must|unknown)"):
        load_config(opts=[key, value])
