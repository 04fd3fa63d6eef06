"""Visible tokens alone in Swin and SwinV2: groups that waste little, and the numbers of dense windows of what is visible."""
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.masks import MaskGenerator, build_mask_generator
from models.encoders.packing import ORDER, SEGMENT, Packer, fill, fullest, num_masks, pack
from models.encoders.swin import SwinTransformer, keep_apart, stage_windows
from models.encoders.swinv2 import SwinTransformerV2
from models.inputs import mask_preparation
from models.layers import lift_mask
from tests.unit.helpers import perturb, random_images, tiny_config, tiny_model

SIZES = [[36, 24, 12, 12, 6], [5], [1] * 9, [7, 6, 5, 4, 3, 2, 1], [49, 49, 28, 21, 21, 7, 7, 3]]
MAE = {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 8, "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2}


# ---- groups -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_room_is_filled_as_well_as_any_choice_of_items_can(sizes):
    counts = {size: sizes.count(size) for size in sorted(set(sizes), reverse=True)}
    for room in range(sum(sizes) + 2):
        chosen = fullest(counts, room)
        assert all(0 < number <= counts[size] for size, number in chosen.items())
        best = max(sum(some) for n in range(len(sizes) + 1) for some in combinations(sizes, n) if sum(some) <= room)
        assert sum(size * number for size, number in chosen.items()) == best


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_item_has_slots_of_its_own_in_one_group(sizes):
    size, start = pack(np.array(sizes))
    taken = [slot for first, length in zip(start, sizes, strict=True) for slot in range(first, first + length)]
    assert len(set(taken)) == len(taken)
    assert all(first // size == (first + length - 1) // size for first, length in zip(start, sizes, strict=True))


def test_groups_hold_all_items_and_no_more():
    counts = {9: 4, 5: 3, 2: 11}
    held = dict.fromkeys(counts, 0)
    for pattern, times in fill(counts, 12):
        assert sum(length * number for length, number in pattern.items()) <= 12
        for length, number in pattern.items():
            held[length] += number * times
    assert held == counts


@pytest.mark.parametrize(("size", "window"), [(192, 6), (224, 7)])
@pytest.mark.parametrize("ratio", [0.6, 0.75])
def test_hardly_any_slot_is_empty(size, window, ratio):
    """Of Swin-B's recipes, with a mask for each of 8 images, and with one for all."""
    generator, rng = MaskGenerator(size, 32, 4, ratio), np.random.RandomState(0)
    packer = Packer(stage_windows((size // 4, size // 4), [window] * 4), [True] * 4)
    masks = np.stack([generator(rng) for _ in range(8)])
    for batch, least in ((masks, 0.95), (masks[:1].repeat(8, axis=0), 0.9)):
        tables = [table for stage in packer(batch).tables for table in stage]
        used = sum((table[SEGMENT] >= 0).sum().item() for table in tables)
        assert used / sum(table[SEGMENT].numel() for table in tables) > least


def test_shared_masks_are_packed_once():
    masks = torch.rand(6, 5) < 0.5
    assert [num_masks(masks[list(order)].numpy()) for order in ("000000", "010101", "012012", "001122", "010100")
            for order in [map(int, order)]] == [1, 2, 3, 6, 6]
    packer = Packer([(4, 4), (4, 4)], [True, True])
    mask = MaskGenerator((32, 64), 8, 4, 0.5)(np.random.RandomState(0))
    one, many = packer(mask[None]), packer(np.stack([mask] * 6))
    assert torch.equal(one.ids, many.ids) and one.ids.shape == (1, 16)
    assert all(map(torch.equal, *([table for stage in groups.tables for table in stage] for groups in (one, many))))
    order = one.tables[0][1][ORDER].flatten()
    assert sorted(order[order < 64].tolist()) == list(range(64))


# ---- the same numbers as dense windows ----------------------------------------------------------------------------

def limited(block, hidden, grid):
    """The mask of a dense block under which visible and hidden tokens do not see each other."""
    (height, width), shift = block.window, block._shift_for(grid)
    regions = F.pad(lift_mask(hidden[None], grid)[0].double(), (0, -grid[1] % width, 0, -grid[0] % height), value=2)
    apart = keep_apart(regions.roll((-shift[0], -shift[1]), (0, 1)), block.window, -1e9)
    own = block._mask_for(grid)
    return apart if own is None else torch.minimum(apart, own.double() * 1e7)


def dense(encoder, image, hidden):
    """Features of the visible cells of an image, from all tokens."""
    x = encoder._embed(image[None])
    if hasattr(encoder, "absolute_pos_embed"):
        x = x + encoder.absolute_pos_embed.view(1, *encoder.grid, -1)
    for stage in encoder.layers:
        for block in stage.blocks:
            x = block(x, limited(block, hidden, tuple(x.shape[1:3])))
        x = stage.downsample(x) if hasattr(stage, "downsample") else x
    return encoder.norm(x)[0][~hidden]


@pytest.mark.parametrize(("kind", "window", "size", "groups", "ape"), [
    (SwinTransformer, 4, (64, 96), 4, False), (SwinTransformer, 6, (96, 48), 2, True),
    (SwinTransformer, 7, (112, 224), 4, False), (SwinTransformer, 8, (128, 64), 1, False),
    (SwinTransformer, 12, (96, 144), 4, False), (SwinTransformerV2, 4, (64, 96), 1, False),
    (SwinTransformerV2, 6, (96, 48), 4, True), (SwinTransformerV2, 7, (112, 224), 2, False),
    (SwinTransformerV2, 8, (128, 64), 4, False), (SwinTransformerV2, 12, (96, 144), 1, False)])
def test_visible_tokens_equal_dense_ones_that_see_visible_ones_only(kind, window, size, groups, ape):
    """Outputs and gradients, in blocks of windows that are shifted and not, smaller than the map and as large as it."""
    torch.manual_seed(0)
    encoder = perturb(kind(img_size=size, embed_dim=8, depths=(2, 2, 3), num_heads=(1, 2, 2), window_size=window, ape=ape,
                           drop_path_rate=0.0)).double()
    cells = tuple(side // 16 for side in size)
    count = cells[0] * cells[1]
    order = torch.rand(groups, count).argsort(dim=1).argsort(dim=1).repeat(4 // groups, 1)
    hidden = (order >= count * 2 // 5).view(4, *cells)
    images, mask = torch.randn(4, 3, *size).double(), lift_mask(hidden, encoder.grid)
    ids = torch.stack([row.nonzero().squeeze(1) for row in ~hidden.flatten(1)])
    ours = encoder.forward_visible(images, mask, ids)
    theirs = torch.stack([dense(encoder, *pair) for pair in zip(images, hidden, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    weights, names = torch.randn_like(ours), dict(encoder.named_parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), list(names.values())) for out in (ours, theirs)]
    for name, *both in zip(names, *gradients, strict=True):
        torch.testing.assert_close(*both, rtol=0, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_half_of_the_memory_of_the_dense_encoder_is_enough():
    """Bytes kept for the backward pass, where 14 of 36 cells are visible."""
    encoder = SwinTransformer(img_size=(192, 192), embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=6,
                              use_mask_token=True)
    mask = torch.from_numpy(MaskGenerator(192, 32, 4, 0.6)(np.random.RandomState(0))).bool().expand(2, -1, -1)
    ids, own = (~mask[:1, ::8, ::8]).flatten().nonzero().T.expand(2, -1), {p.data_ptr() for p in encoder.parameters()}

    def kept(compute):
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.update({t.data_ptr(): t.untyped_storage()}) or t,
                                                      lambda t: t):
            out = compute(torch.zeros(2, 3, 192, 192), mask)
        storages = {storage.data_ptr(): storage.nbytes() for storage in found.values()}
        return out.requires_grad and sum(size for place, size in storages.items() if place not in own)

    assert kept(lambda images, mask: encoder.forward_visible(images, mask, ids)) < 0.5 * kept(encoder)


# ---- as a method has it -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder", ["swin", "swinv2"])
def test_what_the_loader_prepares_changes_nothing(encoder):
    config = tiny_config(encoder, MAE)
    model = perturb(tiny_model(encoder, MAE)).train()
    rng, images = np.random.RandomState(0), random_images()
    mask = torch.from_numpy(np.stack([build_mask_generator(config)(rng) for _ in range(3)])).bool()
    assert torch.equal(model(images, mask), model(images, mask, mask_preparation(config)(mask)))
    assert mask_preparation(tiny_config(encoder)) is None


def test_recomputed_activations_have_the_same_gradients():
    losses = []
    for overrides in (MAE, MAE | {"TRAIN.USE_CHECKPOINT": True}):
        model = perturb(tiny_model("swin", overrides)).train()
        mask = lift_mask(torch.arange(32).view(1, 4, 8).expand(3, -1, -1) % 3 > 0, (8, 16))
        model(random_images(), mask).backward()
        losses.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *losses))


@pytest.mark.parametrize("training", [True, False])
def test_masks_of_broken_cells_are_refused(training):
    model = tiny_model("swin", MAE).train(training)
    mask = torch.zeros(3, 8, 16, dtype=torch.bool)
    mask[:, :2, :2] = True
    assert model(random_images(), mask).isfinite()
    mask[2, 4, 4] = True
    with pytest.raises(ValueError, match="whole cells of the encoder's feature map, 8 pixels wide: set a DATA.MASK_PATCH_SIZE"):
        model(random_images(), mask)
    with pytest.raises(ValueError, match="masks of whole cells, 2x2 patches"):
        model.encoder.packer(mask)


def test_masks_of_different_numbers_are_refused():
    mask = torch.zeros(2, 8, 16, dtype=torch.bool)
    mask[0, :2, :2] = True
    with pytest.raises(ValueError, match="hide as many cells each, but between 31 and 32 are visible"):
        Packer([(4, 4), (4, 4)], [True, True])(mask)


@pytest.mark.parametrize(("overrides", "message"), [
    ({"DATA.MASK_PATCH_SIZE": 4}, "drops whole cells of the last map of MODEL.TYPE swin, 8 pixels wide. Use DATA.MASK_TYPE "
                                  "random and DATA.MASK_PATCH_SIZE 8"),
    ({"DATA.MASK_TYPE": "blockwise"}, "DATA.MASK_TYPE=blockwise with DATA.MASK_PATCH_SIZE=8"),
    ({"DATA.MASK_SHARED": True, "DATA.MASK_GROUPS": 2}, "MASK_SHARED True asks for one mask, DATA.MASK_GROUPS=2 for several")])
def test_masks_that_can_not_be_meant_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_mask_generator(tiny_config("swin", MAE | overrides))


def test_bfloat16_gives_nearly_the_loss():
    model = perturb(tiny_model("swinv2", MAE)).train()
    mask = lift_mask(torch.arange(32).view(1, 4, 8).expand(3, -1, -1) % 3 > 0, (8, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(random_images(), mask)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert loss.item() == pytest.approx(model(random_images(), mask).item(), rel=0.05)


def test_windows_shrink_to_smaller_maps_as_the_encoder_builds_them():
    for size, window in product([(64, 96), (96, 48)], [4, 7, 12]):
        encoder = SwinTransformer(img_size=size, embed_dim=8, depths=(2, 2, 2), num_heads=(1, 1, 1), window_size=window)
        assert encoder.packer.windows == [stage.blocks[0].window for stage in encoder.layers]
