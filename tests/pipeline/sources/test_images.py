import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, PILLOW_MAX_PIXELS, decode_image, read_image_file
from cal_schemas.errors import ImageError
from cal_schemas.sample import ImageRef


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, file_format, **options)
    return target.getvalue()


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (3, 2), (255, 0, 0)).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images/sub/a.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    return tmp_path / "images"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode_image(encoded(red(mode), "TIFF" if mode in ("CMYK", "YCbCr") else "PNG") if mode != "PA" else
                         encoded(red("RGBA").quantize(4)))  # fmt: skip
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.abs(np.asarray(image, int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 77, 77), ("LA", (77, 0), 77), ("1", 1, 255)])
def test_grey_images_become_rgb_and_alpha_is_left_out(mode: str, value: int, grey: int) -> None:
    image = decode_image(encoded(Image.new(mode, (1, 1), value)))
    assert image.getpixel((0, 0)) == (grey, grey, grey)


GREYS = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREYS)),
        encoded(Image.fromarray(GREYS), "TIFF"),
        b"P5\n64 64\n65535\n" + GREYS.astype(">u2").tobytes(),
        b"P2\n64 64\n65535\n" + b" ".join(b"%d" % value for value in GREYS.flat),
    ],
    ids=["PNG", "TIFF", "PGM", "plain PGM"],
)
def test_of_16_bits_the_upper_8_are_taken_in_every_format(data: bytes) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert (np.asarray(image) == (GREYS >> 8)[..., None]).all()


def test_of_16_bit_colours_the_upper_8_bits_are_taken() -> None:
    colours = np.stack([GREYS, GREYS[::-1], GREYS.T], axis=-1)
    image = decode_image(b"P6\n64 64\n65535\n" + colours.astype(">u2").tobytes())
    # Pillow rounds PPM where it cuts PNG and TIFF.
    assert np.abs(np.asarray(image, int) - (colours >> 8)).max() <= 1


def test_a_pgm_of_12_bits_is_the_image_of_16() -> None:
    data = b"P5\n64 64\n4095\n" + (GREYS >> 4).astype(">u2").tobytes()
    assert np.abs(np.asarray(decode_image(data), int) - (GREYS >> 8)[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.fromarray(GREYS.astype(np.int32)), "TIFF"), r"mode I \(TIFF\): nobody knows .* integers"),
        (encoded(Image.fromarray(GREYS.astype(np.float32)), "TIFF"), r"mode F \(TIFF\): nobody knows .* floats"),
        (b"Pf\n64 64\n-1.0\n" + GREYS.astype("<f4").tobytes(), r"mode F \(PPM\)"),
    ],
    ids=["integers", "floats", "PFM"],
)
def test_numbers_of_unknown_range_are_an_image_error_that_names_the_mode(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=f"{message}.*save it with 8 or 16 unsigned bits a channel"):
        decode_image(data)


def test_jpeg_is_read_and_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # "rotate by 90 degrees"
    assert decode_image(encoded(red(), "JPEG", exif=exif)).size == (3, 2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_only_the_size_takes_less_of_a_jpeg_and_finds_a_truncated_file_all_the_same(file_format: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((250, 131), 80).convert("RGB").save(file, file_format)
    data = file.getvalue()
    image = decode_image(data, only_size=True)
    assert (image.size, image.mode) == ((250, 131), "RGB")
    assert (image.getbbox() is None) == (file_format == "JPEG")
    for size in (len(data) * 9 // 10, len(data) // 2):
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode_image(data[:size], only_size=True)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    image = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_truncated_image_is_an_image_error(file_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encoded(noise, file_format)
    for keep in (len(data) // 2, 10):
        with pytest.raises(ImageError, match=rf"image of {keep} bytes cannot be decoded: "):
            decode_image(data[:keep])


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data)


@given(st.binary(max_size=60), st.integers(0, 70), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
@settings(deadline=None)
def test_whatever_the_bytes_the_answer_is_rgb_or_an_image_error(junk: bytes, at: int, file_format: str) -> None:
    data = encoded(red(), file_format)
    try:
        assert decode_image(data[:at] + junk + data[at + len(junk) :]).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_an_image_of_just_the_limit_is_read_and_one_over_it_is_refused_with_both_sizes() -> None:
    assert decode_image(encoded(red()), max_image_pixels=6).size == (3, 2)
    with pytest.raises(ImageError, match="image of 3 x 2 pixels exceeds --max_image_pixels 5"):
        decode_image(encoded(red()), max_image_pixels=5)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageError, match="3600000000 pixels"):
        decode_image(png_header(60_000, 60_000))
    with pytest.raises(ImageError, match="image of 12000 x 12000 pixels exceeds --max_image_pixels 100000000"):
        decode_image(png_header(12_000, 12_000))


def test_pillows_own_limit_is_the_one_the_config_knows() -> None:
    side = int(PILLOW_MAX_PIXELS**0.5)
    assert DEFAULT_MAX_IMAGE_PIXELS < PILLOW_MAX_PIXELS
    with pytest.raises(ImageError, match="exceeds --max_image_pixels 1"):
        decode_image(png_header(side, side), max_image_pixels=1)
    with pytest.raises(ImageError, match="DecompressionBombError"):
        decode_image(png_header(side + 1, side + 1), max_image_pixels=1)


def test_embedded_bytes_are_taken_as_they_are_even_beside_a_path(folder: Path) -> None:
    assert read_image_file(ImageRef(data=b"x", path="../secret.png"), folder) == b"x"
    assert read_image_file(ImageRef(data=b"x"), None) == b"x"


@pytest.mark.parametrize("path", ["sub/a.png", "./sub//a.png", "sub/../sub/a.png"])
def test_a_path_inside_the_folder_is_read(folder: Path, path: str) -> None:
    assert read_image_file(ImageRef(path=path), folder) == b"inside"


def test_an_absolute_path_inside_the_folder_is_read(folder: Path) -> None:
    assert read_image_file(ImageRef(path=str(folder / "sub/a.png")), folder) == b"inside"


def test_a_relative_folder_and_one_behind_a_symlink_are_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "link").symlink_to(folder)
    assert read_image_file(ImageRef(path="sub/a.png"), folder.parent / "link") == b"inside"
    monkeypatch.chdir(folder.parent)
    assert read_image_file(ImageRef(path="sub/a.png"), Path("images")) == b"inside"


def test_a_symlink_inside_the_folder_is_followed_and_one_that_leaves_it_is_refused(folder: Path) -> None:
    (folder / "inner.png").symlink_to("sub/a.png")
    (folder / "outer.png").symlink_to("../secret.png")
    (folder / "outer").symlink_to(folder.parent)
    assert read_image_file(ImageRef(path="inner.png"), folder) == b"inside"
    for path, link, target in (("outer.png", "outer.png", "/secret.png"), ("outer/secret.png", "outer", "")):
        with pytest.raises(ImageError) as refused:
            read_image_file(ImageRef(path=path), folder)
        assert f"image path '{path}' leaves the image folder {folder}: " in str(refused.value)
        assert (
            f"{folder / link} is a link to {folder.parent}{target}; give --image_folder {folder.parent} and paths that"
            in str(refused.value)
        )
        assert "or a copy of the folder with its links followed (cp -rL)" in str(refused.value)


def test_a_store_that_links_into_a_cache_is_refused_with_the_folder_that_holds_both(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/datasets--x/snapshots/1f"
    (snapshot / "imgs").mkdir(parents=True)
    blob = tmp_path / "hub/datasets--x/blobs/aa"
    blob.parent.mkdir()
    blob.write_bytes(b"inside")
    (snapshot / "imgs/a.png").symlink_to("../../../blobs/aa")
    both = tmp_path / "hub/datasets--x"
    with pytest.raises(
        ImageError, match=rf"is a link to {blob}; give --image_folder {both} and paths that start there"
    ):
        read_image_file(ImageRef(path="imgs/a.png"), snapshot)
    assert read_image_file(ImageRef(path="snapshots/1f/imgs/a.png"), both) == b"inside"


def test_a_linked_part_of_the_folder_is_refused_with_the_folder_it_was_taken_from(tmp_path: Path) -> None:
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/1.jpg").write_bytes(b"inside")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train2017").symlink_to(tmp_path / "coco/train2017")
    with pytest.raises(ImageError, match=rf"is a link to \S+; give --image_folder {tmp_path}/coco, or a copy"):
        read_image_file(ImageRef(path="train2017/1.jpg"), tmp_path / "images")
    assert read_image_file(ImageRef(path="train2017/1.jpg"), tmp_path / "coco") == b"inside"


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "/etc/passwd", "..", "../images2/a.png"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, path: str) -> None:
    (folder.parent / "images2").mkdir()
    (folder.parent / "images2/a.png").write_bytes(b"sibling")
    with pytest.raises(ImageError, match="leaves the image folder"):
        read_image_file(ImageRef(path=path), folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent.png", "'absent.png' is not a file in"),
        ("sub", "'sub' is not a file in"),
        ("sub/a.png/b", "'sub/a.png/b' is not a file in"),
        ("~/a.png", "'~/a.png' is not a file in"),
        ("a\0b.png", r"'a\\x00b.png' cannot be read: .*null byte"),
        ("x" * 5000, "cannot be read: .*too long"),
        ("http://127.0.0.1/a.png", "'http://127.0.0.1/a.png' is a URL; nothing is fetched"),
        ("file:///etc/passwd", "is a URL; nothing is fetched"),
        ("", "has neither bytes nor a path"),
        (None, "has neither bytes nor a path"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_image_error_naming_it(folder: Path, path: str | None, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image_file(ImageRef(path=path), folder)


@pytest.mark.parametrize(("size", "status"), [((2, 400), "ok"), ((2, 402), "refused"), ((402, 2), "refused")])
def test_a_strip_that_resizing_would_blow_up_is_an_image_error(size: tuple[int, int], status: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    if status == "ok":
        assert decode_image(file.getvalue()).size == size
        return
    with pytest.raises(ImageError, match="longer than 200 times"):
        decode_image(file.getvalue())


def test_the_message_about_a_bad_image_is_the_same_every_time() -> None:
    messages = set()
    for _ in range(2):
        with pytest.raises(ImageError) as error:
            decode_image(b"junk")
        messages.add(str(error.value))
    assert len(messages) == 1
    assert "0x" not in messages.pop()


def test_a_path_without_an_image_folder_is_an_image_error() -> None:
    with pytest.raises(ImageError, match=r"'a\.png' is a path and no --image_folder is given"):
        read_image_file(ImageRef(path="a.png"), None)


def test_a_symlink_loop_is_an_image_error(folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"loop\.png"):
        read_image_file(ImageRef(path="loop.png"), folder)


def test_a_named_pipe_is_refused_and_nobody_waits_for_it(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            read_image_file(ImageRef(path="pipe.png"), folder)
        except ImageError as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert "'pipe.png' is not a file" in str(caught[0])
