"""Numbers in the settings that cannot be meant: one line that names the key, the value and what to type."""
import pytest

from config import load_config, scaled_config
from data.loader import check_finetuning
from data.masks import build_mask_generator

from .helpers import opts_of, tiny_config


@pytest.mark.parametrize("key, value, said", [
    ("DATA.MEAN", [123.675, 116.28, 103.53], r"\[0\.485, 0\.456, 0\.406\]"),
    ("DATA.STD", [58.395, 57.12, 57.375], r"\[0\.229, 0\.224, 0\.225\]"), ("DATA.STD", [0.2, 0, 0.2], "above 0")])
def test_statistics_of_pixels_up_to_255_are_refused_with_the_right_ones(key, value, said):
    with pytest.raises(ValueError, match=f"{key}=.*{said}"):
        load_config(opts=opts_of({key: value}))


def rates_of(**train):
    opts = {"TRAIN.EPOCHS": 4, **{f"TRAIN.{key.replace('__', '.')}": value for key, value in train.items()}}
    return scaled_config(load_config(opts=opts_of(opts)), 1).TRAIN


@pytest.mark.parametrize("train, key", [({"BASE_LR": 1e-5, "MIN_LR": 1e-3}, "MIN_LR"), ({"WARMUP_EPOCHS": 1, "BASE_LR": 1e-5,
                                        "MIN_LR": 0, "WARMUP_LR": 1e-3}, "WARMUP_LR")])
def test_rate_that_would_go_the_wrong_way_is_refused(train, key):
    with pytest.raises(ValueError, match=rf"TRAIN\.{key}=0\.001 is above TRAIN\.BASE_LR=1e-05.*--opts TRAIN\.{key} 0"):
        rates_of(**train)


@pytest.mark.parametrize("train", [{"BASE_LR": 1e-5, "MIN_LR": 1e-4, "WARMUP_LR": 0, "LR_SCHEDULER__NAME": "step"},
                                   {"BASE_LR": 1e-5, "MIN_LR": 1e-5, "WARMUP_LR": 1, "WARMUP_EPOCHS": 0}, {"BASE_LR": 0}])
def test_rate_that_is_not_used_is_not_looked_at(train):
    rates_of(**train)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_odd_batch_is_refused_for_every_way_to_mix(mode):
    config = load_config(opts=opts_of({"DATA.BATCH_SIZE": 5, "AUG.MIXUP": 0.8, "AUG.MIXUP_MODE": mode}))
    with pytest.raises(ValueError, match="DATA.BATCH_SIZE=5 is odd.*Use 6"):
        check_finetuning(config)


@pytest.mark.parametrize("ratio, what", [(0, "hides none"), (1, "hides all"), (0.999, "hides all")])
@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_mask_that_hides_nothing_or_all_is_refused(encoder, ratio, what):
    with pytest.raises(ValueError, match=rf"DATA\.MASK_RATIO={ratio}.* {what} of the .* units"):
        build_mask_generator(tiny_config(encoder, {"DATA.MASK_RATIO": ratio}))
