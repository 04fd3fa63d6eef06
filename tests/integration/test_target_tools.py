"""What tools/palette.py and tools/tokenizer.py write, and a checkpoint as a teacher, are targets that train."""
import math

import numpy as np
import pytest
import torch

from inference import reconstruct
from tools import palette, tokenizer
from utils.checkpoint import load_checkpoint

SIMMIM = "MODEL.SIMMIM."


def run(tool, *words):
    tool.main(tool.parse_arguments([str(word) for word in words]))


@pytest.fixture(scope="module")
def made(tmp_path_factory, cfg, images):
    """Folder with palette.npy and tokenizer.pth."""
    folder, data = tmp_path_factory.mktemp("made"), ["--cfg", cfg.pretrain, "--data-path", images / "train"]
    run(palette, *data, folder / "palette.npy", "--colours", 5, "--images", 10, "--pixels", 20)
    run(tokenizer, *data, folder / "tokenizer.pth", "--tokens", 6, "--cell", 8, "--steps", 60)
    return folder


def test_palette_has_colours_of_the_images(made):
    colours = np.load(made / "palette.npy")
    assert colours.shape == (5, 3) and colours.dtype == np.float32 and 0 <= colours.min() < colours.max() <= 1


def test_tokenizer_uses_several_tokens(made):
    content = load_checkpoint(made / "tokenizer.pth")
    made_of = tokenizer.Tokenizer(**content["tokenizer"])
    made_of.load_state_dict(content["model"])
    assert len(made_of(torch.randn(8, 3, 32, 32)).unique()) > 1 and content["tokenizer"]["num_tokens"] == 6


@pytest.mark.parametrize("target", ["clusters", "tokens", "features"])
def test_targets_of_files_train_and_are_seen(target, made, train, pretrained_run, images, tmp_path):
    settings = {SIMMIM + "TARGET": target, **{
        "clusters": {SIMMIM + "PALETTE": made / "palette.npy", SIMMIM + "TARGET_SIZE": 16},
        "tokens": {SIMMIM + "TOKENIZER": made / "tokenizer.pth"},
        "features": {SIMMIM + "TEACHER": pretrained_run / "ckpt_epoch_0.pth"}}[target], "TRAIN.EPOCHS": 1}
    folder, text = train("pretrain", tmp_path, settings=settings)
    first = float(text.split("loss ")[1].split()[0])
    assert first == pytest.approx({"clusters": math.log(5), "tokens": math.log(6), "features": 0.9}[target], rel=0.4)
    picture = reconstruct(folder / "ckpt_epoch_0.pth", images / "val" / "ant" / "0.png")
    assert picture.width > 4 * 32
    assert (folder / "reconstructions" / "epoch_0000.png").is_file()


@pytest.mark.parametrize(("tool", "words", "message"), [
    (palette, ["palette.txt"], "must end in .npy"), (tokenizer, ["tokenizer.npy"], "must end in .pth"),
    (palette, ["palette.npy"], "exists and is not written over"), (tokenizer, ["tokenizer.pth"], "exists and is not written"),
    (tokenizer, ["other.pth", "--cell", 5], "--cell 5 does not divide DATA.IMG_SIZE=32"),
    (palette, ["other.npy", "--images", 1, "--pixels", 2], "fewer than 512 different colours")])
def test_what_can_not_be_made_is_refused(tool, words, message, made, cfg, images):
    with pytest.raises(ValueError, match=message):
        run(tool, "--cfg", cfg.pretrain, "--data-path", images / "train", made / words[0], *words[1:])


def test_a_tokenizer_of_other_cells_and_a_teacher_without_settings_are_refused(made, cfg, forks, images, tmp_path):
    torch.save({"model": load_checkpoint(made / "tokenizer.pth")["model"]}, tmp_path / "plain.pth")
    for settings, message in (({"TARGET": "features", "TEACHER": tmp_path / "plain.pth"}, "does not keep its settings"),
                              ({"TARGET": "tokens", "TOKENIZER": tmp_path / "plain.pth"}, "holds no tokenizer")):
        words = [word for key, value in settings.items() for word in (SIMMIM + key, value)]
        result = forks.run("main_simmim.py", "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path,
                           "--opts", *words)
        assert result.code == 2 and message in result.err
