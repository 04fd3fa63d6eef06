"""tools/visualize.py: which rows and columns a picture has, what is hidden of an object, and what is refused."""
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from config import dump
from inference import extract_feat, get_model
from tests.contracts.tiny import HEIGHT, WIDTH, build, make_config
from tools import visualize
from utils import sheets
from utils.cli import run

from .test_inference import photographs

CASES = {"swin": ("swin", "plain", "simmim", "pixels"), "vit": ("vit", "plain", "simmim", "pixels"),
         "mae": ("vit", "mae", "mae", "pixels"), "mixmim": ("mixmim", "plain", "mixmim", "pixels")}
FIVE = ["original", "masked", "prediction", "pasted", "full"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos/, a checkpoint <case>.pth of each case and an encoder alone."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    photographs(folder / "photos")
    for name, case in CASES.items():
        config = make_config(*case)
        model = build(config, is_pretrain=True)
        torch.save({"model": model.state_dict(), "config": dump(config, "pretrain")}, folder / f"{name}.pth")
    torch.save({"model": model.encoder.state_dict(), "config": dump(config, "pretrain")}, folder / "encoder.pth")
    return folder


@pytest.fixture
def rows(place, monkeypatch, capsys):
    """rows(*arguments) -> what is drawn of photos/, or of the images that are given."""
    monkeypatch.chdir(place)

    def of(*arguments):
        drawn = []
        draw = sheets.draw_sheet
        monkeypatch.setattr(sheets, "draw_sheet", lambda rows, cell: drawn.extend(rows) or draw(rows, cell))
        words = [str(word) for word in arguments]
        words = words if not words[0].startswith("-") else ["photos", *words]
        with pytest.raises(SystemExit) as end:
            run(visualize.main, visualize.parse_arguments([*words, "--out", "seen.png", "--device", "cpu"]))
        assert end.value.code == 0, capsys.readouterr().err
        assert Image.open("seen.png").width > 100
        return drawn
    return of


def labels(rows):
    return [name.splitlines() for name, _ in rows]


def test_masks_stand_below_each_other_and_models_side_by_side(rows):
    drawn = rows("--models", "swin.pth", "vit.pth", "--number", 1, "--ratios", 0.25, 0.5, "--units", 8, 16)
    assert labels(drawn) == [[model, f"random, {unit} px, {share}"] for unit in (8, 16) for share in ("25%", "50%")
                             for model in ("swin", "vit")]
    assert all(list(pictures) == FIVE for _, pictures in drawn)
    hidden = np.asarray(drawn[0][1]["masked"]) == 128
    assert hidden.all(axis=2).mean() == 0.25 and drawn[0][1]["original"].size == (WIDTH, HEIGHT)


def test_prediction_is_of_hidden_places_and_pasted_of_both(rows):
    (_, seen), = rows("--models", "swin.pth", "--number", 1)
    original, masked, prediction, pasted, full = (np.asarray(seen[name]).astype(int) for name in FIVE)
    hidden = (masked == 128).all(axis=2)
    assert (prediction[hidden] == full[hidden]).all() and (prediction[~hidden] == 128).all()
    assert (pasted[hidden] == full[hidden]).all() and (pasted[~hidden] == original[~hidden]).all()


@pytest.mark.parametrize(("case", "columns"), [
    ("mae", FIVE), ("mixmim", ["original", "partner", "mixed", "reconstruction", "of the partner"])])
def test_method_shows_what_it_has(rows, case, columns):
    drawn = rows("--models", f"{case}.pth", "--kinds", "random", "--units", 8)
    assert [list(pictures) for _, pictures in drawn] == [columns] * 3


def test_images_come_from_all_over_the_folders(rows):
    assert [lines[0] for lines in labels(rows("--models", "vit.pth", "--number", 2))] == ["0.png", "1.png"]
    assert [lines[0] for lines in labels(rows("--models", "vit.pth"))] == ["0.png", "1.png", "2.png"]


def test_object_is_hidden_in_most_and_as_a_whole(rows):
    """Of the image, 64 x 64 pixels, the model sees the rows from 16 to 48."""
    drawn = rows("photos/2.png", "--models", "swin.pth", "--units", 8, "--object", "16,20,48,44")
    assert [line[-1].partition(",")[0] for line in labels(drawn)] == ["random", "most of the object", "whole of the object"]
    most, whole = ((np.asarray(pictures["masked"]) == 128).all(axis=2) for _, pictures in drawn[1:])
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[0:32, 16:48] = True  # rows 4 to 28 of these, in units of 8
    assert (whole == expected).all() and not (most & ~expected).any() and most.sum() == 12 * 64


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_object_of_a_file_is_what_its_box_is(rows, place, ending):
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[20:44, 16:48] = 255
    (Image.fromarray(pixels).save if ending == ".png" else lambda path: np.save(path, pixels > 0))(place / f"object{ending}")
    by_box, by_file = (rows("photos/2.png", "--models", "swin.pth", "--units", 8, "--hide", "whole", "--object", given)
                       for given in ("16,20,48,44", f"object{ending}"))
    assert (np.asarray(by_box[0][1]["masked"]) == np.asarray(by_file[0][1]["masked"])).all()


def test_attention_has_a_row_for_each_block_and_a_column_for_each_head(rows):
    drawn = rows("--models", "swin.pth", "--number", 1, "--attention", "--blocks", 1, -1, "--token", "0,1")
    assert labels(drawn) == [["block 1", "8 x 16 tokens"], ["block -1", "4 x 8 tokens"]]
    assert [list(pictures) for _, pictures in drawn] == [["token", "mean", "head 1"], ["token", "mean", "head 1", "head 2"]]
    red = (np.asarray(drawn[0][1]["token"]) == (255, 0, 0)).all(axis=2)
    assert red[0, WIDTH - 4:].all() and not red[4:].any() and not red[:, :WIDTH - 4].any()
    heat = np.asarray(drawn[0][1]["head 1"]).astype(int)
    assert ((heat[..., 0] - heat[..., 2]) > 20)[:16, -16:].any() and not ((heat[..., 0] - heat[..., 2]) > 20)[16:].any()
    assert len(rows("--models", "vit.pth", "--attention", "--token", "cls")) == 3


def test_features_as_colours_are_the_main_components(rows, place):
    drawn = rows("--models", "vit.pth", "--pca", "--blocks", 1, -1)
    assert [list(pictures) for _, pictures in drawn] == [["original", "block 1", "block -1"]] * 3
    assert [list(pictures) for _, pictures in rows("--models", "swin.pth", "vit.pth", "--pca")] == [["original", "output"]] * 6
    (features,) = extract_feat(get_model("vit.pth"), ["photos/0.png", "photos/1.png"], output="map", layer=2)
    assert features.shape == (2, 16, 4, 8)
    colours = visualize.as_colours(features)
    assert colours.shape == (2, 3, 4, 8) and colours.min() == 0 and colours.max() == 1
    torch.testing.assert_close(visualize.as_colours(-3 * features + 5), 1 - colours, atol=1e-5, rtol=0)


def test_colours_of_few_features_are_grey_where_there_are_none():
    colours = visualize.as_colours(torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 2, 2))
    assert colours[0, 0].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.03) and (colours[0, 1:] == 0.5).all()
    assert (visualize.as_colours(torch.ones(1, 4, 2, 2)) == 0.5).all()


def test_page_has_all_pictures_in_it(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        run(visualize.main, visualize.parse_arguments("photos --models swin.pth vit.pth --out seen.html --device cpu".split()))
    page = (place / "seen.html").read_text(encoding="utf-8")
    assert end.value.code == 0 and page.count('src="data:image/png;base64,') == page.count("<img") == 2 * 3 * 5
    assert "http" not in page and all(f"<th>{name}</th>" in page for name in FIVE)


def test_file_with_the_settings_of_the_official_code_is_its_own_recipe(rows, place):
    """Theirs keep the tree of the whole run as nested dicts."""
    config = make_config(*CASES["swin"])
    tree = json.loads(json.dumps({"MODEL": config.MODEL, "DATA": config.DATA}))
    torch.save({"model": build(config, is_pretrain=True).state_dict(), "config": tree, "epoch": 3}, place / "official.pth")
    drawn = rows("--models", "official.pth", "swin.pth", "--number", 1)
    assert (np.asarray(drawn[0][1]["full"]) == np.asarray(drawn[1][1]["full"])).all()


def test_recipe_and_weights_that_keep_none_are_given_together(rows, place):
    config = make_config(*CASES["mae"])
    (place / "recipe.yaml").write_text(dump(config, "pretrain"), encoding="utf-8")
    torch.save({"model": torch.load(place / "mae.pth", weights_only=True)["model"]}, place / "bare.pth")
    drawn = rows("--models", "recipe.yaml=bare.pth", "mae.pth", "--number", 1)
    assert labels(drawn)[0][0] == "bare"
    assert (np.asarray(drawn[0][1]["full"]) == np.asarray(drawn[1][1]["full"])).all()


def test_image_that_can_not_be_read_is_said_and_the_others_are_drawn(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "some").mkdir()
    photographs(place / "some")
    (place / "some" / "1.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as end:
        run(visualize.main, visualize.parse_arguments("some --models swin.pth --out seen.png --device cpu".split()))
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "3 rows" not in out and "2 rows of 2 images" in out and "1.png" in err


@pytest.mark.parametrize(("arguments", "message"), [
    ("photos --models encoder.pth", "encoder.pth has no decoder that fits"),
    ("photos", "pass images, --models"), ("--models swin.pth", "pass images, --models"),
    ("none --models swin.pth", "image none does not exist"), ("empty --models swin.pth", "no images"),
    ("photos --models mae_pretrain__vit_nano__img64", "mae_pretrain__vit_nano__img64=<checkpoint>"),
    ("photos --models nothing.pth", "nothing.pth"), ("photos --models simmim_swin_bas", "Did you mean"),
    ("photos --models swin.pth --object 0,0,9,9", "is of one image, and 3 were given"),
    ("photos/0.png --models swin.pth --object 0,0,9", "0,0,9"),
    ("photos/0.png --models swin.pth --object 0,0,99,9", "no box within the image of 90 x 50 pixels"),
    ("photos/0.png --models swin.pth --object a,b,c,d", "four whole numbers"),
    ("photos/0.png --models swin.pth --object small.png", "is of 8 x 4 pixels, the image of 90 x 50"),
    ("photos/0.png --models swin.pth --object 0,0,90,50", "lies on all of the 32 units"),
    ("photos/1.png --models swin.pth --object 0,0,9,9", "lies on none of the 32 units"),
    ("photos/0.png --models mixmim.pth --object 0,0,9,9 --hide whole", "MixMIM mixes two"),
    ("photos/0.png --models swin.pth --object 0,0,9,9 --hide whole --ratios 0.5", "add random to --hide"),
    ("photos --models swin.pth --hide most", "needs --object"), ("photos --models swin.pth --kinds file", "--hide whole"),
    ("photos --models swin.pth --kinds rand", "Did you mean 'random'"),
    ("photos --models swin.pth --units 7", "MASK_PATCH_SIZE=7"), ("photos --models swin.pth --ratios 1.0", "hides all"),
    ("photos --models swin.pth --attention --pca", "two pictures"),
    ("photos --models swin.pth --pca --units 8", "says nothing with --pca"),
    ("photos --models swin.pth --blocks 1", "add one of"),
    ("photos --models swin.pth --token cls", "is for --attention"),
    ("photos --models swin.pth --attention --token cls", "no class token"),
    ("photos --models swin.pth --attention --token 0.5", "no place"),
    ("photos --models swin.pth --attention --token 2,0", "outside of the image"),
    ("photos --models swin.pth --attention --blocks 9", "block=9 (--block) does not exist"),
    ("photos --models swin.pth --pca --blocks 9", "(--layer) does not exist")])
def test_what_can_not_be_seen_is_refused_in_a_line(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    (place / "empty").mkdir(exist_ok=True)
    Image.new("L", (8, 4), 255).save("small.png")
    with pytest.raises(SystemExit) as end:
        run(visualize.main, visualize.parse_arguments([*arguments.split(), "--out", "seen.png", "--device", "cpu"]))
    error = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len([line for line in error if line.startswith("error:")]) == 1
    assert re.search(re.escape(message), error[-1]), error


@pytest.mark.parametrize(("out", "message"), [("seen.txt", "must end in .png"), ("no/seen.png", "there is no folder no")])
def test_target_that_can_not_be_written_is_refused(place, monkeypatch, out, message):
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match=message):
        visualize.main(visualize.parse_arguments(["photos", "--models", "swin.pth", "--out", out]))


def test_rows_and_columns_have_their_names_and_lacking_pictures_stay_empty():
    red, blue = (Image.new("RGB", (4, 2), colour) for colour in ("red", "blue"))
    sheet = sheets.draw_sheet([("first", {"a": red, "b": blue}), ("second\nrow", {"b": red})], cell=64)
    assert np.asarray(sheet).reshape(-1, 3).tolist().count([0, 0, 255]) == 64 * 32
    assert np.asarray(sheet).reshape(-1, 3).tolist().count([255, 0, 0]) == 2 * 64 * 32
    page = sheets.sheet_page([("<b>", {"a": red}), ("x", {"b": blue})], "<title>")
    assert page.count("<td></td>") == 2 and "&lt;b&gt;" in page and "<b>" not in page


def test_long_name_loses_its_middle():
    font = sheets.ImageFont.load_default(sheets.TEXT)
    cut = sheets.shortened("a_name_that_is_much_too_long_for_a_row.png", font, 100)
    assert cut.startswith("a_n") and cut.endswith("png") and "..." in cut and font.getlength(cut) <= 100
    assert sheets.shortened("short", font, 100) == "short"
