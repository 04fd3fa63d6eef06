"""Files of every bad kind: each is one error with a reason, and none takes the program along."""
import errno
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data import reading
from data.pixels import Rules, in_mode
from data.reading import BadImage, read_image
from utils.names import shown

from ..helpers import write_image


def broken_files(folder):
    """{kind: path} of files with the name of an image that are none."""
    whole = write_image(folder / "whole.jpg", size=(80, 60)).read_bytes()
    contents = {"zero bytes": b"", "text": b"no image at all", "cut": whole[:len(whole) * 2 // 3], "start": whole[:20],
                "zeros": bytes(5000)}
    paths = {kind: folder / f"{kind}.jpg" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    paths["gone"] = folder / "gone.jpg"
    paths["link to nothing"] = folder / "link.jpg"
    paths["link to nothing"].symlink_to(folder / "nowhere")
    paths["link to itself"] = folder / "circle.jpg"
    paths["link to itself"].symlink_to(paths["link to itself"])
    paths["folder"] = folder / "folder.jpg"
    paths["folder"].mkdir()
    paths["pipe"] = folder / "pipe.jpg"
    os.mkfifo(paths["pipe"])
    paths["socket"] = folder / "s.jpg"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths["socket"]))
    paths["device"] = folder / "null.jpg"
    paths["device"].symlink_to("/dev/zero")
    return paths


KINDS = ("zero bytes", "text", "cut", "start", "zeros", "gone", "link to nothing", "link to itself", "folder", "pipe", "socket",
         "device")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_file_is_an_error_that_names_it(tmp_path, kind):
    """A pipe that nobody writes to, too, without waiting for someone."""
    path = broken_files(tmp_path)[kind]
    with pytest.raises(BadImage) as error:
        read_image(path)
    assert str(error.value) == f"{path} can't be read as an image ({error.value.reason}). Repair or remove the file."
    assert error.value.reason and str(path) not in error.value.reason


@pytest.mark.parametrize("content, said", [
    (b"\n<html><body>403 Forbidden", "it is text, as a web page or an SVG"), (b"%PDF-1.4 ", "it is a PDF"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS.*: fetch that with git lfs pull"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC"), (b"PK\x03\x04" + bytes(60), "it is an archive"),
    (b"II*\0" + bytes(60), "it is a TIFF that is broken, or of a kind .* as .npy")])
def test_what_has_the_name_of_an_image_is_said_to_be_what_it_is(content, said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=rf"a\.jpg can't be read as an image \(cannot identify image file: .*{said}"):
        read_image(tmp_path / "a.jpg")


def test_pipe_that_is_written_to_is_bad_as_well(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    descriptor = os.open(tmp_path / "a.png", os.O_RDWR)
    os.write(descriptor, b"x" * 100)
    with pytest.raises(BadImage, match="it is a named pipe"):
        read_image(tmp_path / "a.png")
    os.close(descriptor)


def test_file_without_permission_is_bad(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.png")

    monkeypatch.setattr(reading.os, "open", refuse)  # root may read everything
    with pytest.raises(BadImage) as error:
        read_image(tmp_path / "a.png")
    assert error.value.reason == "Permission denied"


def test_larger_picture_than_allowed_is_not_decoded(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png", size=(40, 30))
    assert read_image(path, rules=Rules(max_pixels=1200)).size == (40, 30)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImage, match=r"40 x 30 pixels, more than DATA\.MAX_PIXELS=1199"):
        read_image(path, rules=Rules(max_pixels=1199))


@pytest.mark.filterwarnings("error")
def test_limit_of_ours_takes_the_place_of_pils_and_leaves_it_as_it_was(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png", size=(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).size == (40, 30) and Image.MAX_IMAGE_PIXELS == 100


def failing(numbers):
    """os.open that fails with these numbers first."""
    left, opened = list(numbers), os.open

    def fails(path, *arguments):
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number), path)
        return opened(path, *arguments)
    return fails


@pytest.fixture
def pauses(monkeypatch):
    taken = []
    monkeypatch.setattr(reading.time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize("number", sorted(reading.PASSING | reading.EXHAUSTED))
def test_passing_error_is_tried_again_after_growing_pauses(tmp_path, monkeypatch, pauses, number):
    path = write_image(tmp_path / "a.png")
    monkeypatch.setattr(reading.os, "open", failing([number, number]))
    assert read_image(path).size == (40, 32)
    assert len(pauses) == 2 and pauses[0] < pauses[1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_error_of_the_disk_that_stays_is_the_files(tmp_path, monkeypatch, pauses, number):
    monkeypatch.setattr(reading.os, "open", failing([number] * 9))
    with pytest.raises(BadImage) as error:
        read_image(tmp_path / "a.png")
    assert error.value.reason == os.strerror(number) and len(pauses) == len(reading.PAUSES)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_error_of_the_machine_that_stays_is_not_the_files(tmp_path, monkeypatch, pauses, number):
    monkeypatch.setattr(reading.os, "open", failing([number] * 9))
    with pytest.raises(OSError, match=r"a\.png was read: not the fault of the file") as error:
        read_image(tmp_path / "a.png")
    assert error.value.errno == number


def test_memory_that_runs_out_in_decoding_is_not_the_files_fault(tmp_path, monkeypatch, pauses):
    def runs_out(*_):
        raise MemoryError

    monkeypatch.setattr(reading, "picture_image", runs_out)
    with pytest.raises(OSError, match="not the fault of the file"):
        read_image(write_image(tmp_path / "a.png"))


def test_missing_file_is_not_tried_again(tmp_path, pauses):
    with pytest.raises(BadImage, match="No such file or directory"):
        read_image(tmp_path / "a.png")
    assert pauses == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_spoiled_bytes_give_pixels_or_the_one_kind_of_error(tmp_path, suffix):
    """200 files with bytes that were written over: whatever a decoder makes of them, no other error comes out."""
    rng, path = np.random.RandomState(3), tmp_path / f"a.{suffix}"
    Image.fromarray(rng.randint(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    whole, refused = np.frombuffer(path.read_bytes(), dtype=np.uint8), 0
    for _ in range(200):
        spoiled = whole.copy()
        places = rng.randint(0, len(whole) if rng.rand() < 0.5 else 60, size=rng.randint(1, 8))
        spoiled[places] = rng.randint(0, 256, len(places))
        path.write_bytes(spoiled.tobytes())
        try:
            read_image(path, rules=Rules(max_pixels=10 ** 6))
        except BadImage:
            refused += 1
    assert refused > 0


# ---- pixels -------------------------------------------------------------------------------------------------------

FLOATS = {"shares": ([[0, 0.25, 1], [0.5, -1, np.nan]], 0, [[0, 64, 255], [128, 0, 0]]),
          "8 bits": ([[0, 100, 255], [30.4, -5, 7]], 255, [[0, 100, 255], [30, 0, 7]]),
          "16 bits": ([[0, 32768, 65535], [257, 514, np.inf]], 65535, [[0, 128, 255], [1, 2, 0]])}


@pytest.mark.parametrize(("values", "white", "expected"), FLOATS.values(), ids=FLOATS)
def test_floats_are_shares_of_white(tmp_path, values, white, expected):
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "a.tiff")
    assert Image.open(tmp_path / "a.tiff").mode == "F"
    pixels = np.asarray(read_image(tmp_path / "a.tiff", rules=Rules(white=white)))
    assert pixels.shape == (2, 3, 3) and np.allclose(pixels[..., 0], expected, atol=1)


@pytest.mark.parametrize("values, said", [(np.float32([[0, 214]]), "floats up to 214"), (np.int32([[0, 200]]), "32 bits"),
                                          (np.int32([[0, 60000]]), "32 bits")])
def test_white_that_is_not_known_is_asked_for(tmp_path, values, said):
    """A picture that chose it by its own maximum would be on another scale than its neighbours."""
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(BadImage, match=rf"a\.tiff .*{said}.*set DATA\.WHITE"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_12_bits_in_16_have_the_white_that_is_set(tmp_path, name):
    Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)).save(tmp_path / name)
    for white, expected in ((4095, [0, 128, 255]), (0, [0, 8, 16])):
        pixels = np.asarray(read_image(tmp_path / name, rules=Rules(white=white)))
        assert np.allclose(pixels[0, :, 0], expected, atol=1)


def transparent(mode):
    """Left half red, or light grey, right half transparent over green, or dark grey."""
    picture = Image.new("RGBA", (4, 2), (200, 0, 0, 255))
    picture.paste((0, 250, 0, 0), (2, 0, 4, 2))
    if mode == "LA":
        return Image.merge("LA", (Image.new("L", (4, 2), 200), picture.getchannel("A")))
    if mode in ("RGBA", "PA", "La", "RGBa"):
        return picture.convert(mode) if mode != "La" else transparent("LA").convert("La")
    if mode == "P":
        out = Image.new("P", (4, 2), 0)
        out.putpalette([200, 0, 0, 0, 250, 0])
        out.paste(1, (2, 0, 4, 2))
        out.info["transparency"] = 1
    elif mode == "RGB":
        out = picture.convert("RGB")
        out.info["transparency"] = (0, 250, 0)
    else:
        values = np.full((2, 4), 200 if mode == "L" else 200 * 257, np.uint8 if mode == "L" else np.uint16)
        values[:, 2:] = 7
        out = Image.fromarray(values)
        out.info["transparency"] = 7
    return out


@pytest.mark.parametrize("background, shown_as", [((255, 255, 255), 255), ((0, 0, 0), 0), ((90, 90, 90), 90)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16", "La", "RGBa", "PA"])
def test_what_lies_under_transparency_is_not_seen(mode, background, shown_as, tmp_path):
    picture, rules = transparent(mode), Rules(background=background)
    if mode in ("RGBA", "LA", "P", "RGB", "L", "I;16"):  # what a file can hold
        picture.save(tmp_path / "a.png", **{key: value for key, value in picture.info.items() if key == "transparency"})
        picture = read_image(tmp_path / "a.png", None)
    seen = np.asarray(in_mode(picture, "RGB", rules))
    assert (seen[:, 2:] == shown_as).all() and (abs(seen[:, :2, 0].astype(int) - 200) <= 1).all()
    assert np.asarray(in_mode(picture, "L", rules))[0, 3] == shown_as


def test_encoder_of_four_channels_gets_the_transparency_itself():
    assert np.asarray(in_mode(transparent("RGBA"), "RGBA"))[0, 3].tolist() == [0, 250, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_upright_where_that_is_wanted(tmp_path, orientation):
    picture = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    as_stored, upright = (np.asarray(read_image(tmp_path / "a.png", rules=Rules(upright=up))) for up in (False, True))
    stored = np.asarray(picture)
    turned = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.transpose(1, 0, 2),
              np.rot90(stored, -1), np.rot90(stored, 2).transpose(1, 0, 2), np.rot90(stored)][orientation - 1]
    assert np.array_equal(as_stored, stored) and np.array_equal(upright, turned)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBA", "LA", "PA", "La", "RGBa",
                                  "I;16", "I;16B"])
@pytest.mark.parametrize("wanted", ["L", "RGB", "RGBA"])
def test_every_mode_of_pillow_becomes_the_wanted_one(mode, wanted):
    """Light stays light: no mode comes out black, white or dark."""
    light = Image.new("RGB", (8, 4), (180, 180, 180))
    if mode.startswith("I;16"):
        values = np.full((4, 8), 180 * 257, dtype=">u2" if mode.endswith("B") else "<u2")
        picture = Image.frombytes(mode, (8, 4), values.tobytes())
    elif mode == "LAB":
        picture = Image.merge("LAB", (Image.new("L", (8, 4), 187), Image.new("L", (8, 4), 128), Image.new("L", (8, 4), 128)))
    else:
        picture = light.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode))
        picture = picture.convert(mode) if picture.mode != mode else picture
    values = np.asarray(in_mode(picture, wanted).convert("RGB")).astype(float)
    expected = np.asarray(light.convert("1").convert("L")).mean() if mode == "1" else 180
    assert in_mode(picture, wanted).mode == wanted and abs(values.mean() - expected) < 4


def test_first_frame_is_taken_and_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("data.pixels._said", set())
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level("INFO"):
        for _ in range(3):
            assert read_image(tmp_path / "a.gif").getpixel((1, 1)) == (255, 0, 0)
    assert caplog.text.count("the first is taken") == 1 and "a.gif" in caplog.text


@pytest.mark.parametrize("more", ["text", "profile"])
def test_png_with_a_long_text_or_profile_is_read(tmp_path, more):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    extra = {"pnginfo": info} if more == "text" else {"icc_profile": bytes(1_200_000)}
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png", **extra)
    assert read_image(tmp_path / "a.png").getpixel((1, 1)) == (255, 0, 0)


# ---- names --------------------------------------------------------------------------------------------------------

ODD = {b"caf\xe9.png": r"caf\udce9.png", b"two\nlines.png": r"two\nlines.png", b"tab\t.png": r"tab\t.png",
       "größe 图.png".encode(): "größe 图.png", b"%s{0}.png": "%s{0}.png", b"\x1b[31m.png": r"\x1b[31m.png"}


@pytest.mark.parametrize(("name", "expected"), ODD.items(), ids=ODD.values())
def test_odd_names_are_read_and_shown_in_one_line_that_can_be_printed(tmp_path, name, expected):
    path = os.path.join(os.fsencode(tmp_path), name)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", path)
    assert read_image(os.fsdecode(path)).size == (4, 3)
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(BadImage) as error:
        read_image(os.fsdecode(path))
    assert f"/{expected} can't be read" in str(error.value)
    str(error.value).encode("utf-8")
    assert shown(os.fsdecode(name)) == expected


def test_images_are_read_by_several_threads(tmp_path):
    path, limit, sizes = write_image(tmp_path / "a.png"), Image.MAX_IMAGE_PIXELS, []
    threads = [threading.Thread(target=lambda: sizes.extend(read_image(path).size for _ in range(50))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sizes == [(40, 32)] * 200 and Image.MAX_IMAGE_PIXELS == limit
