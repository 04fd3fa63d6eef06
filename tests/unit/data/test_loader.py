"""Samplers, and what a config makes of folders on disk."""
from functools import partial

import numpy as np
import pytest
import torch

from config import load_config, mask_preparation, with_values
from data import build_loader
from data.loader import build_mixup, build_probe_loaders
from data.masks import build_mask_generator, draw_masks
from data.samplers import EpochSampler, EvalSampler
from utils.devices import to_device

from ..helpers import TINY, opts_of, tiny_config, write_image


def global_batches(num_samples, images_per_step, world_size, epoch, seed=0):
    """The images of each step over all processes, in order."""
    samplers = [EpochSampler(num_samples, images_per_step // world_size, rank, world_size, seed) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    parts = [torch.tensor(list(sampler)).view(sampler.num_batches, -1, 2) for sampler in samplers]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_training_order_does_not_depend_on_the_number_of_processes(world_size):
    for epoch in (0, 3):
        assert torch.equal(global_batches(30, 8, world_size, epoch), global_batches(30, 8, 1, epoch))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_epoch_holds_only_whole_global_batches_and_no_image_twice(world_size):
    batches = global_batches(30, 8, world_size, epoch=1)
    assert batches.shape == (3, 8, 2)
    indices = batches[..., 1].flatten().tolist()
    assert len(set(indices)) == 24 and set(indices) <= set(range(30))
    assert len(EpochSampler(30, 8 // world_size, 0, world_size, 0)) == 24 // world_size


def test_keys_carry_the_epoch():
    assert set(global_batches(30, 8, 2, epoch=5)[..., 0].flatten().tolist()) == {5}


def test_epochs_and_seeds_shuffle_differently():
    orders = [global_batches(30, 8, 1, epoch, seed)[..., 1].flatten().tolist() for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_images_left_out_of_one_epoch_come_in_others():
    seen = {index for epoch in range(8) for index in global_batches(30, 8, 1, epoch)[..., 1].flatten().tolist()}
    assert seen == set(range(30))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_samples", [1, 10, 12])
def test_evaluation_sees_each_image_exactly_once(num_samples, world_size):
    samplers = [EvalSampler(num_samples, rank, world_size) for rank in range(world_size)]
    keys = [key for sampler in samplers for key in sampler]
    assert sorted(keys) == [(0, index) for index in range(num_samples)]
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


# ---- from folders -------------------------------------------------------------------------------------------------

def tree(root, **counts):
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            write_image(root / name / f"{index}.png", (40 * number, 100, 150))
    return root


def config_for(root, **data):
    base = {"DATA.DATA_PATH": str(root), "DATA.NUM_WORKERS": 0, "DATA.BATCH_SIZE": 2}
    return load_config(opts=opts_of(TINY["vit"] | base | {f"DATA.{key}": value for key, value in data.items()}))


def test_pretraining_reads_any_folder_without_labels(tmp_path):
    tree(tmp_path, a=2, b=1)
    write_image(tmp_path / "loose.png")
    loaders = build_loader(config_for(tmp_path), is_pretrain=True)
    images, masks = next(iter(loaders.train))
    assert images.shape == (2, 3, 32, 64) and masks.shape == (2, 4, 8) and masks.dtype == torch.bool
    assert len(loaders.train.dataset) == 4 and len(loaders.train) == 2
    assert loaders.val is None and loaders.classes == [] and len(loaders.pictures) == 4


def test_pretraining_holds_out_the_folder_it_is_given(tmp_path):
    tree(tmp_path, train=3, val=3)
    loaders = build_loader(config_for(tmp_path / "train", VAL_PATH=str(tmp_path / "val")), is_pretrain=True)
    assert len(loaders.val.dataset) == 3 and sum(len(images) for images, _ in loaders.val) == 3
    assert all("/val/" in path for path, _ in loaders.pictures.samples)


@pytest.mark.parametrize("pictures", [False, True])
def test_held_out_images_are_always_the_same_with_the_same_masks_whatever_the_seed(pictures, tmp_path):
    """So that runs of several seeds can be compared."""
    tree(tmp_path, train=2, val=2)
    config = config_for(tmp_path / "train", VAL_PATH=str(tmp_path / "val"))
    built = [build_loader(with_values(config, SEED=seed), is_pretrain=True) for seed in (0, 0, 5)]
    first, *others = [loaders.pictures[1] if pictures else next(iter(loaders.val)) for loaders in built]
    for other in others:
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


def test_training_masks_follow_the_seed(tmp_path):
    tree(tmp_path, train=2)
    first, other = (build_loader(with_values(config_for(tmp_path), SEED=seed), is_pretrain=True).train.dataset[0][1]
                    for seed in (0, 5))
    assert not torch.equal(first, other)


def test_what_is_held_out_of_a_folder_of_classes_does_not_depend_on_the_seed(tmp_path):
    tree(tmp_path, axe=10, mug=10)
    config = config_for(tmp_path, DATASET="folder", VAL_FRACTION=0.3)
    first, other = (list(build_loader(with_values(config, SEED=seed), is_pretrain=False).val.dataset.samples)
                    for seed in (0, 5))
    assert len(first) == 6 and first == other


def test_limit_pretrains_on_so_many_images_spread_over_all_and_the_same_for_every_seed(tmp_path):
    tree(tmp_path, axe=4, mug=4)
    config = config_for(tmp_path, LIMIT=4)
    found = [[path for path, _ in build_loader(with_values(config, SEED=seed), is_pretrain=True).train.dataset.samples]
             for seed in (0, 5)]
    assert [sum(f"/{name}/" in path for path in found[0]) for name in ("axe", "mug")] == [2, 2] and found[0] == found[1]
    assert len(build_loader(config_for(tmp_path, LIMIT=100), is_pretrain=True).train.dataset) == 8


def test_images_per_class_in_pretraining_names_the_key_that_limits_images(tmp_path):
    tree(tmp_path, axe=4)
    with pytest.raises(ValueError, match=r"IMAGES_PER_CLASS=2 is for fine-tuning: .*DATA\.LIMIT"):
        build_loader(config_for(tmp_path, IMAGES_PER_CLASS=2), is_pretrain=True)


def test_imagenet_reads_train_and_val(tmp_path):
    tree(tmp_path / "train", axe=3, mug=2)
    tree(tmp_path / "val", axe=1, mug=2)
    loaders = build_loader(config_for(tmp_path), is_pretrain=False)
    assert loaders.classes == ["axe", "mug"]
    assert (len(loaders.train.dataset), len(loaders.val.dataset)) == (5, 3)
    assert sorted(label for _, labels in loaders.val for label in labels.tolist()) == [0, 1, 1]


def test_imagenet_evaluation_needs_no_training_images(tmp_path):
    tree(tmp_path / "val", axe=1, mug=2)
    loaders = build_loader(config_for(tmp_path), is_pretrain=False, train=False)
    assert loaders.train is None and loaders.classes == ["axe", "mug"] and len(loaders.val.dataset) == 3


@pytest.mark.parametrize("present", ["train", "val"])
def test_imagenet_names_the_folder_that_is_missing(tmp_path, present):
    tree(tmp_path / present, axe=2)
    missing = {"train": "val", "val": "train"}[present]
    with pytest.raises(FileNotFoundError, match=rf"/{missing} does not exist.*DATA\.DATASET folder"):
        build_loader(config_for(tmp_path), is_pretrain=False)


def test_folder_with_train_and_val_uses_them(tmp_path):
    tree(tmp_path / "train", axe=3, mug=2)
    tree(tmp_path / "val", axe=1, mug=1)
    loaders = build_loader(config_for(tmp_path, DATASET="folder"), is_pretrain=False)
    assert (len(loaders.train.dataset), len(loaders.val.dataset), loaders.classes) == (5, 2, ["axe", "mug"])


def test_folder_without_train_and_val_holds_out_a_share(tmp_path):
    tree(tmp_path, axe=4, mug=6)
    loaders = build_loader(config_for(tmp_path, DATASET="folder", VAL_FRACTION=0.5), is_pretrain=False)
    train, val = loaders.train.dataset.samples, loaders.val.dataset.samples
    assert [label for _, label in val] == [0] * 2 + [1] * 3 and [label for _, label in train] == [0] * 2 + [1] * 3
    assert not {path for path, _ in train} & {path for path, _ in val}


def test_folder_takes_a_validation_folder_from_elsewhere(tmp_path):
    tree(tmp_path / "mine", axe=2, mug=2)
    tree(tmp_path / "other", mug=3)
    loaders = build_loader(config_for(tmp_path / "mine", DATASET="folder", VAL_PATH=str(tmp_path / "other")), False)
    assert loaders.classes == ["axe", "mug"]
    assert [label for _, label in loaders.val.dataset.samples] == [1, 1, 1]


def test_folder_without_a_share_to_hold_out_names_the_keys(tmp_path):
    tree(tmp_path, axe=4)
    with pytest.raises(ValueError, match=r"DATA\.VAL_FRACTION is 0.*DATA\.VAL_PATH"):
        build_loader(config_for(tmp_path, DATASET="folder", VAL_FRACTION=0), is_pretrain=False)


def test_folder_with_one_image_in_each_class_can_not_be_split(tmp_path):
    tree(tmp_path, axe=1, mug=1)
    with pytest.raises(ValueError, match=r"one image in each class.*DATA\.VAL_PATH"):
        build_loader(config_for(tmp_path, DATASET="folder"), is_pretrain=False)


def test_validation_class_that_is_unknown_is_named(tmp_path):
    tree(tmp_path / "train", axe=2)
    tree(tmp_path / "val", axe=1, zebra=1)
    with pytest.raises(ValueError, match="zebra"):
        build_loader(config_for(tmp_path), is_pretrain=False)


def test_subset_limits_the_training_images_only(tmp_path):
    tree(tmp_path / "train", axe=5, mug=4)
    tree(tmp_path / "val", axe=3, mug=3)
    loaders = build_loader(config_for(tmp_path, IMAGES_PER_CLASS=2), is_pretrain=False)
    assert (len(loaders.train.dataset), len(loaders.val.dataset)) == (4, 6)


def test_batch_larger_than_the_data_names_the_flag_and_a_size_that_works(tmp_path):
    tree(tmp_path, a=3)
    with pytest.raises(ValueError, match=r"3 training images do not fill one batch of 4 x 1.*--batch-size \(at most 3\)"):
        build_loader(config_for(tmp_path, BATCH_SIZE=4), is_pretrain=True)
    assert len(build_loader(config_for(tmp_path, BATCH_SIZE=3), is_pretrain=True).train) == 1


@pytest.mark.parametrize("is_pretrain", [True, False])
def test_unknown_dataset_lists_the_valid_ones(tmp_path, is_pretrain):
    with pytest.raises(ValueError, match=r"DATA\.DATASET='imagnet' is unknown; valid: demo, folder, imagenet"):
        build_loader(config_for(tmp_path, DATASET="imagnet"), is_pretrain)


def test_unknown_mask_lists_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match=r"DATA\.MASK_TYPE='blocks' is unknown; valid: block, blockwise, file, random, square"):
        build_mask_generator(config_for(tmp_path, MASK_TYPE="blocks"))


@pytest.mark.parametrize(("num_workers", "epoch"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_batches_of_an_epoch_do_not_depend_on_the_workers(tmp_path, num_workers, epoch):
    tree(tmp_path, a=5, b=2)
    expected = build_loader(config_for(tmp_path), is_pretrain=True).train
    actual = build_loader(config_for(tmp_path, NUM_WORKERS=num_workers), is_pretrain=True).train
    for loader in (expected, actual):
        loader.sampler.set_epoch(epoch)
    batches = list(zip(expected, actual, strict=True))
    assert len(batches) == 3
    assert all(torch.equal(a, b) for pair in batches for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shared_masks_are_those_of_the_first_image_of_each_batch(tmp_path, num_workers):
    """Held-out batches, too; other batches and epochs have other masks."""
    tree(tmp_path, train=6, val=3)
    data = {"VAL_PATH": str(tmp_path / "val"), "NUM_WORKERS": num_workers, "BATCH_SIZE": 3}
    own, shared = (build_loader(config_for(tmp_path / "train", MASK_SHARED=value, **data), is_pretrain=True)
                   for value in (False, True))
    seen = []
    for epoch, kind in ((0, "train"), (1, "train"), (0, "val")):
        pairs = [getattr(loaders, kind) for loaders in (own, shared)]
        if kind == "train":
            [loader.sampler.set_epoch(epoch) for loader in pairs]
        for (images, masks), (same_images, one_mask) in zip(*pairs, strict=True):
            assert torch.equal(images, same_images) and torch.equal(one_mask, masks[:1].expand_as(masks))
            assert not torch.equal(one_mask, masks)
            seen.append(one_mask[0])
    assert len(seen) == 5 and not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_prepares_what_the_model_wants_of_the_masks(tmp_path, num_workers):
    """In training only; two masks take turns in a batch of four."""
    tree(tmp_path, train=8, val=3)
    overrides = {"MODEL.METHOD": "mae", "DATA.MASK_GROUPS": 2, "DATA.BATCH_SIZE": 4, "DATA.NUM_WORKERS": num_workers,
                 "DATA.DATA_PATH": str(tmp_path / "train"), "DATA.VAL_PATH": str(tmp_path / "val")}
    config = tiny_config("swin", overrides)
    loaders = build_loader(config, is_pretrain=True)
    for batch in loaders.train:
        images, masks, groups = to_device(batch, torch.device("cpu"))
        expected = mask_preparation(config)(masks)
        assert len(images) == 4 and groups.ids.shape == (2, 12) and not torch.equal(masks[0], masks[1])
        assert torch.equal(masks[:2], masks[2:]) and torch.equal(groups.ids, expected.ids)
        assert all(map(torch.equal, *([table for stage in found.tables for table in stage] for found in (groups, expected))))
    assert [len(batch) for batch in loaders.val] == [2]


@pytest.mark.parametrize("shared", [False, True])
def test_drawn_masks_are_shared_where_the_config_says_so(tmp_path, shared):
    masks = draw_masks(config_for(tmp_path, MASK_SHARED=shared), 4, np.random.RandomState(0))
    assert masks.shape == (4, 4, 8) and masks.dtype == torch.bool
    assert torch.equal(masks, masks[:1].expand_as(masks)) == shared
    three = draw_masks(config_for(tmp_path, MASK_GROUPS=3), 7, np.random.RandomState(0))
    assert len(three.flatten(1).unique(dim=0)) == 3 and torch.equal(three[3:], three[:4])


# ---- mixing -------------------------------------------------------------------------------------------------------

def mixup_of(**aug):
    overrides = {"AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0} | {f"AUG.{key}": value for key, value in aug.items()}
    return build_mixup(tiny_config("vit", overrides), num_classes=5)


@pytest.mark.parametrize("aug", [{"MIXUP": 0.8}, {"CUTMIX": 1.0}, {"CUTMIX_MINMAX": [0.2, 0.8]}])
def test_mixing_gives_soft_labels_that_sum_to_one(aug):
    """With cutmix alone, too: the official code then used the loss of hard labels (quirk 41)."""
    images, labels = mixup_of(**aug)(torch.randn(4, 3, 8, 16), torch.tensor([0, 1, 2, 4]))
    assert images.shape == (4, 3, 8, 16) and labels.shape == (4, 5)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))


def test_mixing_is_none_when_all_is_off():
    assert mixup_of() is None


def test_folder_with_train_alone_holds_out_from_its_classes(tmp_path):
    for name in ("ant", "bee"):
        for i in range(4):
            write_image(tmp_path / "train" / name / f"{i}.png")
    settings = {"DATA.DATASET": "folder", "DATA.DATA_PATH": tmp_path, "DATA.BATCH_SIZE": 2, "DATA.NUM_WORKERS": 0}
    loaders = build_loader(tiny_config("swin", settings), is_pretrain=False)
    assert loaders.classes == ["ant", "bee"]
    assert (len(loaders.train.dataset), len(loaders.val.dataset)) == (6, 2)


@pytest.mark.parametrize("build", [partial(build_loader, is_pretrain=False), build_probe_loaders])
@pytest.mark.parametrize("more", [{}, {"PROBE.KNN": True}, {"PROBE.AUGMENT": True}])
def test_one_class_alone_is_refused_for_training(build, more, tmp_path):
    for i in range(4):
        write_image(tmp_path / "ant" / f"{i}.png")
    settings = {"DATA.DATASET": "folder", "DATA.DATA_PATH": tmp_path, "DATA.BATCH_SIZE": 2, "DATA.NUM_WORKERS": 0, **more}
    with pytest.raises(ValueError, match="one class, ant"):
        build(tiny_config("swin", settings))


def test_heldout_evaluation_needs_no_training_images(tmp_path):
    write_image(tmp_path / "val" / "0.png")
    settings = {"DATA.VAL_PATH": tmp_path / "val", "DATA.BATCH_SIZE": 2, "DATA.NUM_WORKERS": 0}
    loaders = build_loader(tiny_config("swin", settings), is_pretrain=True, train=False)
    assert loaders.train is None and len(loaders.val.dataset) == 1
