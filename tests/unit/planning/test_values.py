"""What is chosen, for facts that nobody has to measure."""
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks import check_job, check_steps
from config import load_config, scaled_config
from planning import values
from planning.facts import Cost, Images, Machine
from planning.recipe import recipe_text
from planning.sizes import FAMILIES, encoders

GB = 2 ** 30
CPU = Machine("cpu", "CPU", 24 * GB, 2)
SMALL_GPU = Machine("cuda", "RTX", 8 * GB, 8)
NODE = Machine("cuda", "A100", 80 * GB, 128, 8, 8)
LABELS = {"classes": 10, "labelled": 1000}
FOLDERS = {
    "tiny": Images(300), "5k": Images(5000, classes=10, labelled=4500), "50k": Images(50_000, classes=100, labelled=45_000),
    "ImageNet": Images(1_281_167, short_side=400, classes=1000, labelled=1_281_167, has_validation=True),
    "icons": Images(7570, short_side=32, transparent=1.0, light=0.3), "photographs": Images(900, short_side=4000, turned=0.3,
                                                                                            read_seconds=0.08),
    "grey": Images(2000, short_side=700, channels=1, bad=0.02, looked_at=1000),
    "six channels": Images(1500, short_side=128, channels=6, moments=([0.2] * 6, [0.1] * 6), classes=3, labelled=1350)}
SPEED = {"cpu": 5e10, "cuda": 2e13}  # multiply-adds a second, forward and backward


def cost_of(machine):
    def cost(encoder):
        return Cost(3 * encoder.work * 1e9 / SPEED[machine.kind], 16 * 1e6 * encoder.work * 5, encoder.work * 4e7)
    return cost


def chosen(images, machine=CPU, hours=1.0, family="swin", job="pretrain", side=None):
    """(Choice, Encoder) without anything measured."""
    cost = cost_of(machine)
    encoder = values.pick(encoders(family, images.short_side, side), images, machine, hours, cost)
    if job == "pretrain":
        return values.pretraining(images, machine, encoder, cost(encoder), hours), encoder
    return values.finetuning(images, machine, values.of_encoder(encoder, images), cost(encoder), hours), encoder


def checked(choice, images, machine, tmp_path):
    """The config of a choice, read from its recipe and checked as its program does."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(choice, images, machine, "/data/a b", path), encoding="utf-8")
    config = load_config(path)
    check_job(config, choice.job)
    number = choice.settings.get("DATA.LIMIT", images.number) if choice.job == "pretrain" else images.labelled
    batches = number // (config.DATA.BATCH_SIZE * machine.processes)
    assert batches >= 1
    check_steps(config, scaled_config(config, machine.processes), batches)
    read = {key: config_value(config, key) for key in choice.settings}
    assert read == {key: None if value == "none" else value for key, value in choice.settings.items()}
    return config


def config_value(config, key):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("machine, hours", [(CPU, 0.1), (SMALL_GPU, 8.0), (NODE, 100.0)])
def test_choice_is_a_recipe_that_its_program_takes(folder, machine, hours, tmp_path):
    for job in ("pretrain", "finetune") if FOLDERS[folder].classes else ("pretrain",):
        choice, _ = chosen(FOLDERS[folder], machine, hours, "vit" if folder == "grey" else "swin", job)
        checked(choice, FOLDERS[folder], machine, tmp_path)
        assert choice.seconds <= 3600 * hours * 1.01 or choice.settings["TRAIN.EPOCHS"] == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(8, 2_000_000), side=st.integers(8, 6000), classes=st.integers(2, 50), hours=st.floats(0.02, 200),
       channels=st.sampled_from([1, 3, 6]), family=st.sampled_from(sorted(FAMILIES)), processes=st.sampled_from([1, 2, 3, 8]),
       kind=st.sampled_from(["cpu", "cuda"]), job=st.sampled_from(["pretrain", "finetune"]))
def test_any_facts_give_a_recipe_that_its_program_takes(number, side, classes, hours, channels, family, processes, kind, job,
                                                        tmp_path):
    images = Images(number, short_side=side, channels=channels, classes=classes, labelled=max(number * 9 // 10, 8))
    machine = Machine(kind, kind, 8 * GB, 8, processes, processes)
    choice, _ = chosen(images, machine, hours, family, job)
    checked(choice, images, machine, tmp_path)


def test_more_images_and_more_time_teach_a_larger_encoder():
    widths = [chosen(Images(number), NODE, hours)[1].size.width for number, hours in
              ((300, 100.0), (1000, 100.0), (3000, 100.0), (50_000, 100.0), (1_281_167, 100.0))]
    assert widths == [32, 48, 64, 96, 128]
    assert chosen(Images(50_000), CPU, 0.1)[1].size.name == "nano"


def test_encoder_that_does_not_fit_is_not_chosen():
    images, machine = Images(1_281_167), replace(NODE, memory=GB // 4)
    heavy = {"nano": 1, "micro": 2, "mini": 4, "tiny": 2000, "base": 9000}
    found = values.pick(encoders("swin", 224), images, machine, 100.0,
                        lambda encoder: Cost(1e-4, heavy[encoder.size.name] * 2 ** 20, 2 ** 20))
    assert found.size.name == "mini"


@pytest.mark.parametrize("short_side, side", [(8, 32), (32, 32), (50, 64), (100, 128), (150, 192), (4000, 192)])
def test_images_are_little_larger_than_they_are_stored(short_side, side):
    assert encoders("swin", short_side)[-1].side == side


@pytest.mark.parametrize("side, patch, unit", [(192, 4, 32), (224, 16, 32), (128, 8, 16), (96, 8, 16), (64, 8, 8), (32, 4, 4),
                                               (100, 20, 20)])
def test_mask_unit_is_a_sixth_of_the_image_or_less(side, patch, unit):
    assert values.unit_of(side, patch) == unit


def test_batch_fits_into_memory_and_micro_batches_make_up_the_rest():
    images, cost = Images(50_000), Cost(1e-4, 0, 100 * 2 ** 20)  # 80 % of 8 GB hold 65 images
    (encoder,) = [one for one in encoders("swin", 224) if one.size.name == "tiny"]
    found = values.pretraining(images, SMALL_GPU, encoder, cost, 8.0).settings
    assert (found["DATA.BATCH_SIZE"], found["TRAIN.ACCUMULATION_STEPS"], found["TRAIN.LR_SCALE_BATCH"]) == (64, 4, 256)


def test_processes_share_a_batch_and_the_rate_is_of_all():
    found = chosen(FOLDERS["ImageNet"], NODE, 100.0)[0].settings
    assert found["TRAIN.LR_SCALE_BATCH"] == 8 * found["DATA.BATCH_SIZE"] * found.get("TRAIN.ACCUMULATION_STEPS", 1) == 1024
    assert found["TRAIN.BASE_LR"] == pytest.approx(8e-4 * (1024 / 2048) ** 0.5, rel=0.05)


def test_time_bounds_epochs_and_a_part_is_trained_on_where_not_even_one_is_possible():
    short, long = (chosen(Images(5000), SMALL_GPU, hours)[0] for hours in (0.02, 2.0))
    assert short.settings["TRAIN.EPOCHS"] < long.settings["TRAIN.EPOCHS"] <= 800
    found = chosen(Images(1_281_167), CPU, 0.05)[0].settings
    assert found["TRAIN.EPOCHS"] == 5 and found["DATA.LIMIT"] < 100_000
    assert "DATA.LIMIT" not in chosen(Images(300), CPU, 0.5)[0].settings


def test_few_images_are_seen_more_often():
    few, many = (chosen(Images(number), NODE, 1000.0)[0].settings["TRAIN.EPOCHS"] for number in (300, 50_000))
    assert few == 1600 and many == 800


@pytest.mark.parametrize("facts, key, value", [
    ({"transparent": 0.5, "light": 0.9}, "DATA.BACKGROUND", "black"), ({"transparent": 0.5, "light": 0.2}, "DATA.BACKGROUND",
                                                                       "white"),
    ({}, "DATA.BACKGROUND", None), ({"turned": 0.1}, "DATA.EXIF", True), ({}, "DATA.EXIF", None),
    ({"peak": 4000}, "DATA.WHITE", 4095.0), ({"peak": 60_000}, "DATA.WHITE", None),
    ({"bad": 0.03, "looked_at": 1000}, "DATA.MAX_BAD_FRACTION", 0.062), ({"bad": 0.9}, "DATA.MAX_BAD_FRACTION", 1.0),
    ({"channels": 1}, "MODEL.SWIN.IN_CHANS", 1), ({}, "MODEL.SWIN.IN_CHANS", None)])
def test_images_are_read_as_they_are(facts, key, value):
    found = {one.key: one for one in chosen(Images(1000, **facts))[0].values}
    assert (found[key].value if key in found else None) == value
    assert value is None or found[key].why


def test_images_that_take_long_to_read_bound_the_run_and_get_workers():
    cost, slow = Cost(1e-4), Images(5000, read_seconds=0.1)
    assert values.seconds_an_image(slow, SMALL_GPU, cost) == pytest.approx(0.1 / 8)  # by eight cores
    assert values.seconds_an_image(slow, CPU, cost) == pytest.approx(1e-4 + 0.1 / 2)  # which compute as well
    assert chosen(slow, SMALL_GPU)[0].settings["DATA.NUM_WORKERS"] == 8
    assert chosen(replace(slow, read_seconds=1e-6), SMALL_GPU)[0].settings["DATA.NUM_WORKERS"] == 2


def test_fine_tuning_needs_labels():
    with pytest.raises(ValueError, match="needs labels: a folder for each of several classes"):
        chosen(Images(1000), job="finetune")


def test_encoder_of_a_checkpoint_is_fine_tuned_as_it_is():
    kept = [values.Value("MODEL.TYPE", "vit", ""), values.Value("MODEL.VIT.EMBED_DIM", 384, ""),
            values.Value("MODEL.VIT.USE_SHARED_RPB", True, ""), values.Value("DATA.IMG_SIZE", 96, "")]
    found = values.finetuning(FOLDERS["5k"], SMALL_GPU, kept, Cost(1e-3, 0, 2 ** 20), 8.0).settings
    assert found["MODEL.VIT.EMBED_DIM"] == 384 and found["DATA.IMG_SIZE"] == 96
    assert found["MODEL.VIT.USE_MEAN_POOLING"] and found["MODEL.VIT.USE_RPB"] and not found["MODEL.VIT.USE_SHARED_RPB"]
    assert found["TRAIN.LAYER_DECAY"] == 0.75 and found["AUG.MIXUP"] == 0.8


def test_encoder_with_positions_of_its_own_gets_no_other_ones():
    kept = [values.Value("MODEL.TYPE", "vit", ""), values.Value("MODEL.VIT.USE_SINCOS_APE", True, "")]
    found = values.finetuning(FOLDERS["5k"], SMALL_GPU, kept, Cost(1e-3), 8.0).settings
    assert found["MODEL.VIT.USE_MEAN_POOLING"] and "MODEL.VIT.USE_RPB" not in found


def test_fewer_images_than_processes_are_refused():
    with pytest.raises(ValueError, match="4 training images for 8 processes: start at most 4"):
        chosen(Images(4), NODE)
