"""Numbers in the settings that cannot be meant: one line that names the key, the value and what to type."""
import pytest
import torch

from checks import check_job, check_steps, last_step
from config import load_config, scaled_config
from data.masks import build_mask_generator
from main_linprobe import neighbours
from models.probe import check_batch_norm

from .helpers import TINY, opts_of, tiny_config

PRETRAIN, FINETUNE, PROBE = "pretrain", "finetune", "probe"
EVAL, THROUGHPUT = {"EVAL_MODE": True}, {"THROUGHPUT_MODE": True}
WEIGHTS = {"PRETRAINED": "encoder.pth", "MODEL.RESUME": "head.pth", "TRAIN.CLIP_GRAD": 0}  # what a probe asks for
MAE = {"DATA.IMG_SIZE": 64, "MODEL.METHOD": "mae", "MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 16, "DATA.MASK_PATCH_SIZE": 16,
       "DATA.MASK_ROUND": "visible_down"}
CONVMAE = MAE | {"MODEL.TYPE": "convmae"}
LSMAE = MAE | {"DATA.MASK_TYPE": "blockwise", "DATA.MASK_PATCH_SIZE": 32}
MIXMIM = {"DATA.IMG_SIZE": 64, "MODEL.METHOD": "mixmim", "MODEL.TYPE": "mixmim", "MODEL.MIXMIM.WINDOW_SIZES": [4, 4, 4, 2],
          "DATA.MASK_SHARED": True, "DATA.MASK_PATCH_SIZE": 32, "DATA.MASK_RATIO": 0.5}
STEP = {"TRAIN.LR_SCHEDULER.NAME": "step", "TRAIN.EPOCHS": 40, "TRAIN.WARMUP_EPOCHS": 5}
MULTISTEP = {"TRAIN.LR_SCHEDULER.NAME": "multistep", "TRAIN.EPOCHS": 40, "TRAIN.WARMUP_EPOCHS": 5}
SCHEDULE, MILESTONES = "TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "TRAIN.LR_SCHEDULER.MULTISTEPS"
POLICY = "AUG.AUTO_AUGMENT"
RATE, STEPS = "TRAIN.BASE_LR", "TRAIN.ACCUMULATION_STEPS"


def begin(job, overrides, num_batches=100, world_size=1):
    """What a main does before it trains, evaluates or measures."""
    config = load_config(opts=opts_of((WEIGHTS if job == PROBE else {}) | overrides))
    check_job(config, job)
    if not config.EVAL_MODE and not config.THROUGHPUT_MODE and not (job == PROBE and config.PROBE.KNN):
        check_steps(config, scaled_config(config, world_size), num_batches)
    return config


# a job; settings of which the last can't be meant; what must stand in the message beside its key: value and what to type;
# a neighbour of the value that is fine
WRONG = [
    # images and their statistics
    (PRETRAIN, {"DATA.MEAN": [123.675, 116.28, 103.53]}, "123.675; use [0.485, 0.456, 0.406]", [0.485, 0.456, 0.406]),
    (FINETUNE, {"DATA.STD": [58.395, 57.12, 57.375]}, "58.395; use [0.229, 0.224, 0.225]", [1, 1, 1]),
    (FINETUNE, {"DATA.MEAN": [-0.5, 0.5, 0.5]}, "[-0.5,; between 0 and 1", [0, 0.5, 1]),
    (PROBE, {"DATA.MEAN": [31000, 30000, 29000]}, "[31000.0,; e.g. 65535", [0.5, 0.5, 0.5]),
    (FINETUNE, {"DATA.STD": [0.2, 0, 0.2]}, "0.0,; above 0", [0.2, 1e-3, 0.2]),
    (FINETUNE, {"DATA.STD": [1e-9, 1, 1]}, "1e-09; at least 0.0001", [1e-4, 1, 1]),
    (FINETUNE, {"DATA.IMG_SIZE": 10 ** 9}, "1000000000; between 1 and 16384", 224),
    (FINETUNE, {"DATA.IMG_SIZE": 0}, "=0; between 1 and 16384", 224),
    (FINETUNE, {"DATA.IMG_SIZE": 1}, "=1; Use DATA.IMG_SIZE 224", 224),
    (FINETUNE, {"MODEL.TYPE": "vit", "DATA.IMG_SIZE": 8}, "=8; PATCH_SIZE=16; Use DATA.IMG_SIZE 16", 16),
    (PROBE, {"DATA.CROP_SCALE": [1.0, 0.2]}, "[1.0, 0.2]; e.g. [0.08, 1.0]", [0.2, 1.0]),
    (FINETUNE, {"AUG.CROP_SCALE": [0.0, 0.5]}, "[0.0, 0.5]; e.g. [0.08, 1.0]", [0.01, 0.5]),
    (FINETUNE, {"DATA.VAL_FRACTION": 1.5}, "1.5; between 0 and 0.9", 0.5),
    (FINETUNE, {"DATA.INTERPOLATION": "bicubik"}, "'bicubik'; 'bicubic'", "bicubic"),
    (FINETUNE, {"DATA.NUM_WORKERS": -1}, "-1; between 0 and", 0),
    # masks
    (PRETRAIN, {"DATA.MASK_RATIO": 0}, "=0; hides none; such as 0.6", 0.01),
    (PRETRAIN, {"DATA.MASK_RATIO": 1}, "=1; hides all; such as 0.6", 0.9),
    (PRETRAIN, {"DATA.MASK_RATIO": "60%"}, "'60%'; e.g. 0.6", 0.6),
    (PRETRAIN, {"DATA.MASK_RATIO": 0.99}, "=0.99; hides all; such as 0.6", 0.97),
    (PRETRAIN, MAE | {"DATA.MASK_RATIO": 0.99}, "=0.99; hides all; such as 0.6", 0.9),
    (PRETRAIN, CONVMAE | {"DATA.MASK_RATIO": 1}, "=1; hides all; such as 0.6", 0.75),
    (PRETRAIN, CONVMAE | {"DATA.MASK_RATIO": 0}, "=0; hides none; such as 0.6", 0.03),
    (PRETRAIN, LSMAE | {"DATA.MASK_RATIO": 0.95}, "=0.95; hides all; such as 0.6", 0.75),
    (PRETRAIN, MIXMIM | {"DATA.MASK_RATIO": 1}, "=1; hides all; such as 0.6", 0.5),
    (PRETRAIN, MIXMIM | {"MODEL.MIXMIM.RANGE_MASK_RATIO": 0.4}, "=0.4; hides all; such as 0.6", 0.1),
    (PRETRAIN, MIXMIM | {"MODEL.MIXMIM.RANGE_MASK_RATIO": 0.6}, "=0.6; above 1", 0.25),
    (PRETRAIN, EVAL | {"DATA.MASK_RATIO": 0}, "=0; hides none; such as 0.6", 0.6),
    (PRETRAIN, {"DATA.MASK_PATCH_SIZE": 224}, "=224; one unit; smaller units", 112),
    (PRETRAIN, {"DATA.MASK_PATCH_SIZE": 448}, "=448; Use DATA.MASK_PATCH_SIZE 224", 56),
    (PRETRAIN, {"DATA.MASK_PATCH_SIZE": 30}, "=30; Use DATA.MASK_PATCH_SIZE 28", 28),
    (PRETRAIN, {"MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": -1}, "-1.0; at least 0", 40),
    # the model
    (FINETUNE, {"MODEL.DROP_PATH_RATE": 1}, "=1.0; between 0 and 0.99", 0.9),
    (FINETUNE, {"MODEL.LABEL_SMOOTHING": 1}, "=1.0; between 0 and 0.99", 0),
    (FINETUNE, {"MODEL.SWIN.MLP_RATIO": 0.01}, "=0.01; no hidden channel; e.g. 4", 0.02),
    (FINETUNE, {"MODEL.TYPE": "vit", "MODEL.VIT.EMBED_DIM": 12, "MODEL.VIT.MLP_RATIO": 0.05}, "=0.05; e.g. 4", 1),
    (FINETUNE, {"MODEL.SWIN.QK_SCALE": 0}, "=0.0; at least", 0.1),
    (FINETUNE, {"MODEL.SWIN.NUM_HEADS": [1] * 40, "MODEL.SWIN.DEPTHS": [1] * 40}, "40 stages; Use fewer", None),
    (FINETUNE, {"MODEL.SWIN.PATCH_SIZE": 10 ** 6}, "=1000000; between 1 and 16384", 4),
    (FINETUNE, {"MODEL.TYPE": "vit", "MODEL.VIT.INIT_VALUES": -0.1}, "-0.1; at least 0", 1e-6),
    # lengths
    (PRETRAIN, {"TRAIN.EPOCHS": 0}, "=0; at least 1", 20),
    (PRETRAIN, {"TRAIN.EPOCHS": 2.5}, "2.5; a whole number", 20.0),
    (PRETRAIN, {"TRAIN.EPOCHS": 10, "TRAIN.WARMUP_EPOCHS": 11}, "=11; TRAIN.EPOCHS=10; TRAIN.WARMUP_EPOCHS 1", 10),
    (PROBE, {"TRAIN.EPOCHS": 10, "TRAIN.WARMUP_EPOCHS": 20}, "=20; TRAIN.EPOCHS=10; TRAIN.WARMUP_EPOCHS 1", 0),
    (FINETUNE, {"TRAIN.START_EPOCH": 300}, "=300; TRAIN.EPOCHS=300; at most 299", 299),
    (FINETUNE, {"PRINT_FREQ": 0}, "=0; between 1 and", 10 ** 9),
    (PROBE, {"SAVE_FREQ": 0}, "=0; between 1 and", 1000),
    (FINETUNE, {"SAVE_KEEP_EVERY": 10}, "=10; SAVE_KEEP", 0),
    # the schedule
    (PRETRAIN, STEP | {SCHEDULE: 40}, "=40; TRAIN.EPOCHS=40; DECAY_RATE 1", 30),
    (PRETRAIN, STEP | {SCHEDULE: 4}, "TRAIN.WARMUP_EPOCHS=5; =4; at most 4", 5),
    (PRETRAIN, STEP | {"TRAIN.LR_SCHEDULER.DECAY_RATE": -0.1}, "-0.1; at most 1, e.g. 0.1", 0.5),
    (PRETRAIN, STEP | {"TRAIN.LR_SCHEDULER.DECAY_RATE": 10}, "=10.0; at most 1, e.g. 0.1", 1),
    (PRETRAIN, MULTISTEP | {MILESTONES: [10], "TRAIN.LR_SCHEDULER.GAMMA": 0}, "=0.0; e.g. 0.1", 0.1),
    (PRETRAIN, MULTISTEP | {MILESTONES: [30, 20]}, "[30, 20]; e.g. [35]", [20, 30]),
    (PRETRAIN, MULTISTEP | {MILESTONES: [20, 20]}, "[20, 20]; e.g. [35]", [20, 21]),
    (PRETRAIN, MULTISTEP | {MILESTONES: [30, 700]}, "[30, 700]; below 40", [30, 39]),
    (PRETRAIN, MULTISTEP | {MILESTONES: [3]}, "TRAIN.WARMUP_EPOCHS=5; at most 3", [5]),
    # rates
    (FINETUNE, {RATE: 1e-5, "TRAIN.MIN_LR": 1e-3}, "=0.001; TRAIN.BASE_LR=1e-05; TRAIN.MIN_LR 0", 1e-5),
    (FINETUNE, {RATE: 1e-5, "TRAIN.MIN_LR": 0, "TRAIN.WARMUP_LR": 1e-3}, "=0.001; 1e-05; TRAIN.WARMUP_LR 0", 1e-5),
    (PROBE, {RATE: 0, "TRAIN.WARMUP_LR": 0, "TRAIN.MIN_LR": 1e-5}, "=1e-05; TRAIN.BASE_LR=0; raise TRAIN.BASE_LR", 0),
    (PRETRAIN, {RATE: -1e-4}, "-0.0001; at least 0", 1e-4),
    (PRETRAIN, {RATE: float("nan")}, "nan; not finite; a number", 1e-4),
    (PRETRAIN, {"TRAIN.WEIGHT_DECAY": 0, RATE: 5}, "=5 is 1.25 for this batch; Use e.g. 5e-4", 3),
    (PRETRAIN, {RATE: 0.1, "TRAIN.WEIGHT_DECAY": 50}, "=50; TRAIN.BASE_LR=0.1; 125 %; e.g. 0.05", 1),
    (PRETRAIN, {"TRAIN.WEIGHT_DECAY": -0.05}, "-0.05; at least 0", 0),
    (PRETRAIN, {"TRAIN.OPTIMIZER.BETAS": [0.999, 0.9]}, "[0.999, 0.9]; Use [0.9, 0.999]", [0.9, 0.9]),
    (PRETRAIN, {"TRAIN.OPTIMIZER.BETAS": [0.9, 1]}, "[0.9, 1.0]; e.g. [0.9, 0.999]", [0, 0.9]),
    (PRETRAIN, {"TRAIN.OPTIMIZER.EPS": 0}, "=0.0; at least", 1e-12),
    (PROBE, {"TRAIN.OPTIMIZER.TRUST_COEFFICIENT": 0}, "=0.0; between", 0.02),
    (FINETUNE, {"TRAIN.LAYER_DECAY": 0}, "=0.0; between", 0.65),
    (FINETUNE, {"TRAIN.LAYER_DECAY": 1.2}, "=1.2; between", 1),
    (PRETRAIN, {"TRAIN.CLIP_GRAD": -5}, "-5.0; between 0 and", 0),
    # batches and what is mixed
    (FINETUNE, {"AUG.MIXUP_MODE": "elem", "DATA.BATCH_SIZE": 5}, "=5; is odd; Use 6", 6),
    (FINETUNE, {"AUG.MIXUP": 0, "AUG.CUTMIX": 0, "AUG.CUTMIX_MINMAX": [0.2, 0.8], "DATA.BATCH_SIZE": 1}, "=1; Use 2", 2),
    (FINETUNE, {"AUG.CUTMIX_MINMAX": [0.8, 0.2]}, "[0.8, 0.2]; e.g. [0.2, 0.8]", [0.2, 0.8]),
    (FINETUNE, {"AUG.RECOUNT": 10 ** 6}, "=1000000; between 1 and", 3),
    (FINETUNE, {POLICY: "rand-m9-z1"}, "'rand-m9-z1'; 'z1'; e.g. rand-m9", "rand-m9"),
    (FINETUNE, {POLICY: "rand-magnitude9"}, "'magnitude9'; e.g. rand-m9", "rand-m9-n2"),  # timm takes the rest
    (FINETUNE, {POLICY: "rand-m-9"}, "'m'; e.g. rand-m9", "rand-m0"),
    (FINETUNE, {POLICY: "rand-m9-incl"}, "'incl'; e.g. rand", "rand-m9-inc1"),
    (FINETUNE, {POLICY: "rand-m9-p5"}, "'p5'; e.g. rand", "rand-m9-p0.5"),
    (FINETUNE, {POLICY: "rand-m9-m5"}, "says m twice; leave m5 out", "rand-m5"),
    (FINETUNE, {POLICY: "augmix-w0"}, "'w0'; e.g. augmix-m5", "augmix-w1"),
    (FINETUNE, {POLICY: "v0-m9"}, "'m9'; e.g. v0-mstd0.5", "v0-mstd1"),
    (FINETUNE, {POLICY: "randaugment"}, "'randaugment'; expected rand, augmix; or none", "None"),
    (FINETUNE, {"AUG.REPROB": 25}, "=25.0; between 0 and 1", 0.25),
    (PRETRAIN, {STEPS: 101}, "=101; 100 batches; at most 100", 100),
    (PROBE, {"PROBE.KNN_K": 5}, "=5; a list; e.g. [5]", [5]),
    (PROBE, {"PROBE.FEATURE": "CLS"}, "'CLS'; mean, cls; 'cls'", "mean"),
    (PROBE, {"PROBE.KNN_K": [0, 10]}, "[0, 10]; at least 1", [1, 10]),
    (PROBE, {"PROBE.SWEEP": True, "TRAIN.CLIP_GRAD": 5}, "=5.0; --sweep; TRAIN.CLIP_GRAD 0", 0),
    (FINETUNE, EVAL | {"THROUGHPUT_MODE": True}, "EVAL_MODE; leave one out", False),
]
NAMES = [f"{job}-{[*overrides][-1]}-{[*overrides.values()][-1]}".replace(" ", "")[:70] for job, overrides, *_ in WRONG]


@pytest.mark.parametrize("job, overrides, words, neighbour", WRONG, ids=NAMES)
def test_number_that_can_not_be_meant_is_refused_by_name_with_what_to_type(job, overrides, words, neighbour):
    with pytest.raises(ValueError) as caught:
        begin(job, overrides)
    message, key = str(caught.value), [*overrides][-1]
    for word in [key, *words.split("; ")]:
        assert word in message
    assert "\n" not in message and len(message) < 450


@pytest.mark.parametrize("job, overrides, words, neighbour", [case for case in WRONG if case[3] is not None],
                         ids=[name for name, case in zip(NAMES, WRONG, strict=True) if case[3] is not None])
def test_its_neighbour_is_accepted(job, overrides, words, neighbour):
    begin(job, overrides | {[*overrides][-1]: neighbour})


LONG_WARMUP = {"TRAIN.EPOCHS": 10, "TRAIN.WARMUP_EPOCHS": 20}
NO_MASK, ODD_UNIT = {"DATA.MASK_RATIO": 0}, {"DATA.MASK_PATCH_SIZE": 30}
FLAT, LATE = {RATE: 1e-5, "TRAIN.MIN_LR": 1e-3}, MULTISTEP | {MILESTONES: [30, 20]}
DECODER = {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_NUM_HEADS": 7}
OTHERS = [  # what is wrong for one job, and another that it is nothing to
    (PRETRAIN, THROUGHPUT | LONG_WARMUP), (PRETRAIN, EVAL | LONG_WARMUP), (FINETUNE, THROUGHPUT | LONG_WARMUP),
    (FINETUNE, EVAL | LONG_WARMUP), (PROBE, EVAL | LONG_WARMUP), (PROBE, {"PROBE.KNN": True} | LONG_WARMUP),
    (PRETRAIN, THROUGHPUT | NO_MASK), (FINETUNE, NO_MASK), (FINETUNE, EVAL | NO_MASK), (PROBE, NO_MASK),
    (PRETRAIN, THROUGHPUT | ODD_UNIT), (FINETUNE, ODD_UNIT), (FINETUNE, EVAL | ODD_UNIT), (PROBE, ODD_UNIT),
    (FINETUNE, EVAL | FLAT), (PRETRAIN, EVAL | FLAT), (PROBE, EVAL | FLAT), (FINETUNE, STEP | FLAT),
    (FINETUNE, {RATE: 1e-5, "TRAIN.MIN_LR": 0, "TRAIN.WARMUP_LR": 1, "TRAIN.WARMUP_EPOCHS": 0}),
    (FINETUNE, EVAL | LATE), (PRETRAIN, THROUGHPUT | LATE), (PRETRAIN, {MILESTONES: [30, 20]}), (FINETUNE, {SCHEDULE: 999}),
    (FINETUNE, DECODER), (FINETUNE, EVAL | DECODER), (PROBE, DECODER),
    (FINETUNE, EVAL | {"DATA.BATCH_SIZE": 5}), (FINETUNE, THROUGHPUT | {"DATA.BATCH_SIZE": 5}),
    (PRETRAIN, {"DATA.BATCH_SIZE": 5}), (PROBE, {"DATA.BATCH_SIZE": 5}), (FINETUNE, EVAL | {STEPS: 1000}),
    (FINETUNE, EVAL | {"TRAIN.START_EPOCH": 300}),
    (PROBE, EVAL | {"PROBE.SWEEP": True, "TRAIN.CLIP_GRAD": 5.0}), (PROBE, {"PROBE.KNN": True, "TRAIN.PARALLEL": "fsdp"}),
    (PRETRAIN, {"TRAIN.OPTIMIZER.NAME": "lars", RATE: 10, "TRAIN.WEIGHT_DECAY": 1}),
]


@pytest.mark.parametrize("job, overrides", OTHERS)
def test_what_is_wrong_for_one_job_does_not_stop_another(job, overrides):
    begin(job, overrides)


@pytest.mark.parametrize("overrides", [LONG_WARMUP, NO_MASK, ODD_UNIT, FLAT, LATE, {"DATA.BATCH_SIZE": 5}, DECODER])
def test_what_is_wrong_for_training_does_not_stop_whoever_loads_the_config(overrides):
    load_config(opts=opts_of(overrides))


@pytest.mark.parametrize("method", [{}, MAE, CONVMAE, LSMAE, MIXMIM])
@pytest.mark.parametrize("rounding", ["up", "down", "visible_down"])
def test_ratio_that_is_suggested_works(method, rounding):
    for ratio in (0, 1):
        overrides = method | {"DATA.MASK_ROUND": rounding, "DATA.MASK_RATIO": ratio}
        with pytest.raises(ValueError, match="such as") as caught:
            begin(PRETRAIN, overrides)
        suggestion = str(caught.value).partition("such as ")[2].partition(",")[0]
        mask = build_mask_generator(begin(PRETRAIN, overrides | {"DATA.MASK_RATIO": suggestion}))()
        assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("ratio, what", [(0, "hides none"), (1, "hides all"), (0.999, "hides all")])
@pytest.mark.parametrize("encoder", TINY)
def test_mask_of_none_or_all_is_refused_whoever_draws_it(encoder, ratio, what):
    with pytest.raises(ValueError, match=rf"DATA\.MASK_RATIO={ratio} {what} of the .* units"):
        build_mask_generator(tiny_config(encoder, {"DATA.MASK_RATIO": ratio}))


@pytest.mark.parametrize("num_images, fit", [(100, [10, 20, 100]), (99, [10, 20]), (3, [3])])
def test_no_more_neighbours_vote_than_there_are_images_and_that_is_said(num_images, fit, caplog):
    assert neighbours([10, 20, 100], num_images) == fit
    assert (f"there are {num_images} training images" in caplog.text) == (fit != [10, 20, 100])


def test_batch_norm_of_one_image_is_refused_unless_other_processes_have_more(monkeypatch):
    config = load_config(opts=["DATA.BATCH_SIZE", 1])
    with pytest.raises(ValueError, match=r"DATA\.BATCH_SIZE=1 .*Use 2 or more, or --opts PROBE\.BATCH_NORM False"):
        check_batch_norm(config)
    check_batch_norm(load_config(opts=["DATA.BATCH_SIZE", 1, "PROBE.BATCH_NORM", False]))
    monkeypatch.setattr("utils.distributed.world_size", lambda: 2)
    check_batch_norm(config)


@pytest.mark.parametrize("world_size, refused", [(1, False), (4, True)])
def test_decay_of_all_of_a_weight_is_judged_by_the_rate_that_runs(world_size, refused):
    """128 images a process: a rate of 0.1 is 0.025 for one, and 0.1 for four."""
    overrides = {RATE: 0.1, "TRAIN.WEIGHT_DECAY": 10}
    if refused:
        with pytest.raises(ValueError, match=r"TRAIN\.WEIGHT_DECAY=10 with a learning rate of 0\.1 "):
            begin(PRETRAIN, overrides, world_size=world_size)
    else:
        begin(PRETRAIN, overrides, world_size=world_size)


@pytest.mark.parametrize("steps, num_batches, expected", [(1, 8, 1), (3, 8, 2), (4, 8, 4), (8, 8, 8), (5, 6, 1)])
def test_last_step_of_an_epoch_has_what_groups_leave(steps, num_batches, expected):
    groups = [list(range(num_batches))[i:i + steps] for i in range(0, num_batches, steps)]  # as train_epoch makes them
    assert last_step(steps, num_batches) == len(groups[-1]) == expected


def test_a_step_that_decays_by_one_leaves_nothing_of_a_weight():
    """What check_steps refuses, in torch: rate x decay = 1."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    torch.optim.AdamW([weight], lr=0.1, weight_decay=10).step()
    assert weight.abs().max() < 1e-6
