"""tools/playground.py: what the page is answered, and what is refused before it opens."""
import base64
import json
import re
import threading
from io import BytesIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from config import dump, with_values
from data.mask_generators import read_mask
from inference import get_model, reconstruct
from tests.contracts.tiny import HEIGHT, WIDTH, build, make_config
from tools import playground
from utils.cli import run
from utils.loopback import LoopbackServer

from .test_inference import photographs

CASES = {"swin": ("swin", "plain", "simmim", "pixels"), "mae": ("vit", "mae", "mae", "pixels"),
         "mixmim": ("mixmim", "plain", "mixmim", "pixels")}
SWIN, MAE, MIXMIM = range(3)
GRID = (HEIGHT // 4, WIDTH // 4)  # of swin; mae's patches have 8 pixels
FIVE = ["original", "masked", "prediction", "pasted", "full"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos/ and a checkpoint of each case, of an encoder alone, and of a classifier."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    photographs(folder / "photos")
    for name, case in CASES.items():
        config = make_config(*case)
        torch.save({"model": build(config, is_pretrain=True).state_dict(), "config": dump(config, "pretrain")},
                   folder / f"{name}.pth")
    config = make_config(*CASES["swin"])
    torch.save({"model": build(config, is_pretrain=True).encoder.state_dict(), "config": dump(config, "pretrain")},
               folder / "encoder.pth")
    torch.save({"model": build(config, is_pretrain=False).state_dict(), "config": dump(config, "finetune")},
               folder / "classifier.pth")
    return folder


@pytest.fixture(scope="module")
def models(place):
    return [(name, get_model(place / f"{name}.pth")) for name in CASES]


@pytest.fixture
def page(models, place):
    """A Playground of the three models and three photographs."""
    return playground.Playground(models, playground.images_of([place / "photos"], models[0][1].recipe.config))


def drawn(page, model=SWIN, **request):
    asked = {"model": model, "kind": "random", "unit": 8, "ratio": 0.5, "seed": 0} | request
    return np.array(page.draw(asked)["mask"])


def pictures_of(answer):
    return {name: Image.open(BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
            for name, source in answer["columns"]}


# ---- answers ------------------------------------------------------------------------------------------------------

def test_page_begins_with_models_and_images(page):
    state = page.state()
    swin, mae, mixmim = json.loads(json.dumps(state["models"]))
    assert swin == {"name": "swin", "about": "simmim, swin, 32x64 pixels", "size": [HEIGHT, WIDTH], "grid": list(GRID),
                    "units": [4, 8, 16, 32], "unit": 8, "kinds": ["block", "blockwise", "random", "square"],
                    "kind": "random", "ratio": 0.6}
    assert mae["units"] == [8, 16, 32] and mixmim["units"] == [8, 16, 32]
    assert "blockwise" not in mixmim["kinds"]  # which hides whole cells of the last map
    assert [(image["id"], image["name"]) for image in state["images"]] == [(0, "0.png"), (1, "1.png"), (2, "2.png")]


@pytest.mark.parametrize("kind", ["block", "blockwise", "random", "square"])
@pytest.mark.parametrize("unit", [4, 16])
def test_mask_is_drawn_by_strategy_unit_and_ratio(page, kind, unit):
    mask = drawn(page, kind=kind, unit=unit, ratio=0.25)
    assert mask.shape == GRID and mask.mean() == 0.25
    cells = unit // 4
    units = mask.reshape(GRID[0] // cells, cells, GRID[1] // cells, cells).mean(axis=(1, 3))
    assert set(np.unique(units)) == {0, 1}


def test_seed_draws_another_mask_and_the_same_again(page):
    assert (drawn(page, seed=3) == drawn(page, seed=3)).all() and (drawn(page, seed=3) != drawn(page, seed=4)).any()


def test_mask_of_a_file_is_offered_where_one_is_given(models, place, tmp_path):
    hidden = np.zeros(GRID, dtype=np.uint8)
    hidden[2:4, 6:10] = 255  # as the page saves it
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    page = playground.Playground(models, [], tmp_path / "mask.png")
    assert "file" in page.state()["models"][SWIN]["kinds"]
    assert (drawn(page, kind="file", unit=4) == read_mask(tmp_path / "mask.png")).all()


def test_reconstruction_is_that_of_inference_under_this_very_mask(page, models, place):
    mask = np.zeros(GRID, dtype=int)
    mask[2:5, 3:7] = 1  # no whole units
    answer = page.reconstruct({"model": SWIN, "image": 1, "mask": mask.tolist()})
    seen = {name: np.asarray(picture) for name, picture in pictures_of(answer).items()}
    assert list(seen) == FIVE and all(pixels.shape == (HEIGHT, WIDTH, 3) for pixels in seen.values())
    wanted = np.asarray(reconstruct(models[SWIN][1], place / "photos/1.png", mask=mask))
    assert (seen["original"] == wanted[16:16 + 2 * HEIGHT:2, :2 * WIDTH:2]).all()  # twice as large, below its name
    hidden = mask.repeat(4, axis=0).repeat(4, axis=1).astype(bool)
    assert (seen["masked"][hidden] == 128).all() and (seen["pasted"][~hidden] == seen["original"][~hidden]).all()
    off = np.abs(seen["full"].astype(float) - seen["original"])[hidden].mean()
    assert re.fullmatch(rf"9% hidden, AvgDist \d\.\d px; the prediction is off by {off:.1f} of 255; \d+ ms", answer["numbers"])


def test_mask_is_fitted_to_the_grid_of_another_model(page):
    mask = drawn(page, unit=8)
    answer = page.reconstruct({"model": MAE, "image": 0, "mask": mask.tolist()})
    hidden = np.asarray(pictures_of(answer)["masked"])[::8, ::8, 0] == 128
    assert (hidden == mask[::2, ::2]).all()


def test_mask_that_cuts_patches_of_another_model_is_refused(page):
    mask = np.zeros(GRID, dtype=int)
    mask[0, 0] = mask[5, 5] = 1
    with pytest.raises(ValueError, match="hides 2 of the 4x8 patches of this model in part: .*1/4 of the height and 1/8"):
        page.reconstruct({"model": MAE, "image": 0, "mask": mask.tolist()})


@pytest.mark.parametrize(("rows", "grid"), [((6, 6), (8, 8)), ((2, 3), (4, 9)), ((4, 8), (8, 16)), ((12, 6), (4, 3))])
def test_fitted_mask_hides_the_same_places(rows, grid):
    halves = np.zeros(rows, dtype=bool)
    halves[:rows[0] // 2] = True
    assert (playground.fitted(halves, grid) == (np.arange(grid[0]) < grid[0] // 2)[:, None]).all()


def test_mixture_is_of_the_image_and_the_next_one(page):
    mask = drawn(page, MIXMIM).tolist()
    first, last = (pictures_of(page.reconstruct({"model": MIXMIM, "image": image, "mask": mask})) for image in (0, 2))
    assert list(first) == ["original", "partner", "mixed", "reconstruction", "of the partner"]
    assert (np.asarray(last["partner"]) == np.asarray(first["original"])).all()


def test_prepared_image_is_as_the_model_gets_it(page):
    picture = Image.open(BytesIO(page.prepared({"model": "0", "image": "1"})))
    seen = pictures_of(page.reconstruct({"model": SWIN, "image": 1, "mask": drawn(page).tolist()}))["original"]
    assert (np.asarray(picture) == np.asarray(seen)).all()


def test_upload_is_held_in_memory_and_the_oldest_forgotten(page, place, monkeypatch):
    monkeypatch.setattr(playground, "MOST_UPLOADED", 2)
    content = (place / "photos/1.png").read_bytes()
    assert [page.add(name, content) for name in ("a\n", "b", "c")] == [
        {"id": 3, "name": "a\\n"}, {"id": 4, "name": "b"}, {"id": 5, "name": "c"}]
    assert list(page.images) == [0, 1, 2, 4, 5]
    assert page.prepared({"model": "0", "image": "5"}) == page.prepared({"model": "0", "image": "1"})
    with pytest.raises(ValueError, match="image 3 is not held"):
        page.prepared({"model": "0", "image": "3"})


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_upload_that_is_no_image_is_refused_in_a_line(page, content):
    with pytest.raises(ValueError, match=r"^cat\.jpg \(\d+ bytes\) can't be read as an image"):
        page.add("cat.jpg", content)
    assert list(page.images) == [0, 1, 2]


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "randm"}, "strategy='randm' is unknown; valid: block, blockwise, random, square. Did you mean 'random'"),
    ({"kind": "file"}, "strategy='file' is unknown"), ({"kind": ["random"]}, "is unknown"), ({"kind": None}, "is unknown"),
    ({"unit": 5}, "unit='5' is unknown; valid: 16, 32, 4, 8"), ({"unit": 0}, "unit='0' is unknown"),
    ({"ratio": 1}, "must lie between 0"), ({"ratio": "half"}, "must lie between 0"), ({"ratio": float("nan")}, "lie between"),
    ({"ratio": 0.99}, "hides all of the 32 units"), ({"seed": -1}, "seed=-1 is no whole number"),
    ({"model": 3}, "model=3: there are 3, counted from 0"), ({"model": True}, "model=True is no whole number")])
def test_mask_that_can_not_be_drawn_is_refused(page, change, message):
    with pytest.raises(ValueError, match=message):
        drawn(page, **change)


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros(GRID, int).tolist(), "mask hides 0 of 128 patches"), (np.ones(GRID, int).tolist(), "mask hides 128 of 128"),
    (np.zeros((3, 3), int).tolist(), r"shape \(3, 3\) does not fit: expected rows of 0 and 1, 4x8, 8x16"),
    ([[0, 1], [1]], "different lengths"), (None, "does not fit"), ("01", "does not fit"),
    (np.full(GRID, 0.5).tolist(), "does not fit"), (np.full(GRID, "1").tolist(), "does not fit")])
def test_mask_that_does_not_fit_is_refused(page, mask, message):
    with pytest.raises(ValueError, match=message):
        page.reconstruct({"model": SWIN, "image": 0, "mask": mask})


@pytest.mark.parametrize("body", [b"", b"no", b"[1]", b"\xff", b"[" * 100_000])
def test_request_that_is_no_json_of_names_is_refused(body):
    with pytest.raises(ValueError, match="the request is"):
        playground.asked(body)


def test_images_are_drawn_where_none_are_given(models):
    config = models[0][1].recipe.config
    images = playground.images_of([], config)
    assert len(images) == 10 and all(isinstance(image, Image.Image) for _, image in images)
    assert playground.images_of([], with_values(config, MODEL__SWIN__IN_CHANS=6)) == []


def test_many_images_are_chosen_from_all_over_a_folder(models, place, monkeypatch, capsys):
    monkeypatch.setattr(playground, "MOST_NAMED", 2)
    images = playground.images_of([place / "photos"], models[0][1].recipe.config)
    assert [name for name, _ in images] == ["0.png", "1.png"]
    assert capsys.readouterr().out == "2 of 3 images are on the page\n"


# ---- the server ---------------------------------------------------------------------------------------------------

@pytest.fixture
def url(page):
    with LoopbackServer(0) as server:
        server.routes = playground.routes_of(page)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def fetch(url, body=None):
    with urlopen(Request(url, body), timeout=60) as response:
        return response.headers["Content-Type"], response.read()


def test_page_and_its_parts_come_from_the_server_alone(url):
    kind, index = fetch(url)
    parts = re.findall(rb'(?:src|href)="(.+?)"', index)
    assert kind.startswith("text/html") and parts == [b"data:,", b"page.css", b"page.js"]
    for name in ("page.css", "page.js"):
        assert b"//" not in fetch(url + name)[1].replace(b"// ", b"")  # no address of another


def test_way_of_an_image_from_upload_to_reconstruction(url, place):
    added = json.loads(fetch(url + "upload?name=mine.png", (place / "photos/0.png").read_bytes())[1])
    assert added == {"id": 3, "name": "mine.png"}
    mask = json.loads(fetch(url + "draw", json.dumps({"model": 0, "kind": "square", "unit": 8, "ratio": 0.25,
                                                      "seed": 1}).encode())[1])["mask"]
    answer = json.loads(fetch(url + "reconstruct", json.dumps({"model": 0, "image": 3, "mask": mask}).encode())[1])
    assert list(pictures_of(answer)) == FIVE
    kind, content = fetch(url + "image?image=3&model=1")
    assert kind == "image/png" and Image.open(BytesIO(content)).size == (WIDTH, HEIGHT)


def test_what_is_refused_comes_as_a_line(url):
    with pytest.raises(HTTPError) as refusal:
        fetch(url + "upload?name=a.png", b"no image")
    assert refusal.value.code == 400 and "can't be read as an image" in json.loads(refusal.value.read())["error"]


# ---- before it opens ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    (["--models", "none.pth"], "none.pth does not exist"),
    (["--models", "classifier.pth"], "use a pre-training model"),
    (["--models", "swin.pth", "encoder.pth"], "encoder.pth has no decoder that fits"),
    (["none.jpg", "--models", "swin.pth"], "image none.jpg does not exist"),
    (["--models", "swin.pth", "--mask", "none.png"], "none.png"),
    (["--models", "swin.pth", "--mask", "swin.pth"], "swin.pth is no picture"),
    (["--models", "swin.pth", "--port", "70000"], r"port 70000 \(--port\) can not be had")])
def test_start_that_can_not_be_is_refused_in_a_line(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr(LoopbackServer, "serve_forever", lambda server: pytest.fail("it has opened"))
    with pytest.raises(SystemExit) as end:
        run(playground.main, playground.parse_arguments(["--port", "0", "--device", "cpu", *arguments]))
    out, error = capsys.readouterr()
    assert end.value.code == 2 and error.count("\n") == 1 and re.search(message, error) and "open" not in out


def test_port_in_use_is_said_before_models_are_loaded(place, monkeypatch, capsys):
    monkeypatch.setattr(playground, "open_models", lambda *arguments: pytest.fail("models were loaded"))
    with LoopbackServer(0) as other, pytest.raises(SystemExit) as end:
        run(playground.main, playground.parse_arguments(["--models", "swin.pth", "--port", str(other.server_port)]))
    assert end.value.code == 2 and "is in use on this machine: choose another" in capsys.readouterr().err


def test_address_is_printed_when_all_is_ready(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    served = []
    monkeypatch.setattr(LoopbackServer, "serve_forever", lambda server: served.append(server))
    with pytest.raises(SystemExit) as end:
        run(playground.main, playground.parse_arguments(["photos", "--models", "swin.pth", "--port", "0", "--device", "cpu"]))
    assert end.value.code == 0 and len(served) == 1
    assert capsys.readouterr().out == f"open {served[0].url} in a browser; Ctrl-C ends\n"
