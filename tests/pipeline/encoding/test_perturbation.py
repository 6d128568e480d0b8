"""Perturbed images: exact shares, a true gaussian, the same for the same seed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from cal_pipeline.encoding.contrast_images import save_contrast_images
from cal_pipeline.encoding.perturbation import FILL, encode_with_contrast, gaussian_blur, mask_patches, perturbed
from cal_pipeline.sources.images import decode_image
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import STATUSES, ConfigError, ContrastError
from cal_schemas.spec import MAX_BLUR_SIGMA, ContrastSpec
from conftest import Family
from examples_of import conversation
from tiny_data import write_llava_json
from tiny_models import sample_image

PATCHES = ContrastSpec(condition="patch_mask", patch_mask_ratio=0.7)
BLUR = ContrastSpec(condition="gaussian_blur", blur_sigma=3.0)


def masked_cells(image: Image.Image, source: Image.Image, columns: int = 10, rows: int = 20) -> int:
    """Cells painted over; every other cell must be as it was."""
    after, before = np.asarray(image), np.asarray(source)
    height, width = after.shape[:2]
    count = 0
    for row in range(rows):
        for column in range(columns):
            cell = (slice(row * height // rows, (row + 1) * height // rows),
                    slice(column * width // columns, (column + 1) * width // columns))  # fmt: skip
            if bool((after[cell] == FILL).all()):
                count += 1
            else:
                np.testing.assert_array_equal(after[cell], before[cell])
    return count


@pytest.mark.parametrize("size", [(200, 400), (337, 211), (10, 20), (641, 23)])
@pytest.mark.parametrize(("ratio", "cells"), [(0.5, 100), (0.7, 140), (0.9, 180), (1.0, 200), (0.123, 25), (0.005, 1)])
def test_the_share_of_masked_cells_is_exact(size: tuple[int, int], ratio: float, cells: int) -> None:
    white = Image.new("RGB", size, "white")
    assert masked_cells(mask_patches(white, ratio, "key/0"), white) == cells


def test_a_mask_belongs_to_its_sample_and_image_and_a_larger_one_contains_it() -> None:
    image = sample_image(1, (90, 70))
    one = np.asarray(perturbed(image, PATCHES, "a" * 32, 0))
    np.testing.assert_array_equal(one, np.asarray(perturbed(image, PATCHES, "a" * 32, 0)))
    assert (one != np.asarray(perturbed(image, PATCHES, "a" * 32, 1))).any()
    assert (one != np.asarray(perturbed(image, PATCHES, "b" * 32, 0))).any()
    white = Image.new("RGB", (100, 200), "white")
    half, most = (np.asarray(mask_patches(white, ratio, "k")) == FILL for ratio in (0.5, 0.9))
    assert bool((most | ~half).all())


def test_the_mask_of_a_seed_never_changes() -> None:
    # Shards of earlier runs were measured with it: a change of the ranking is a change of the measurement.
    white = Image.new("RGB", (10, 20), "white")
    cells = np.flatnonzero((np.asarray(mask_patches(white, 0.05, "0" * 32 + "/0")) == FILL).all(-1))
    assert cells.tolist() == [1, 30, 73, 99, 102, 105, 142, 158, 178, 184]


@given(width=st.integers(1, 30), height=st.integers(1, 45), ratio=st.floats(0.0026, 1.0))
@settings(max_examples=60, deadline=None)
def test_images_smaller_than_the_grid_have_cells_of_one_pixel(width: int, height: int, ratio: float) -> None:
    white = Image.new("RGB", (width, height), "white")
    columns, rows = min(10, width), min(20, height)
    masked = mask_patches(white, ratio, "k")
    assert masked_cells(masked, white, columns, rows) == max(1, round(ratio * columns * rows))


@pytest.mark.parametrize("size", [(64, 48), (7, 31), (1, 1), (3, 200)])
@pytest.mark.parametrize("sigma", [0.25, 1.0, 10.0, 40.0])
def test_the_blur_is_a_gaussian_with_mirrored_borders(size: tuple[int, int], sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = sample_image(3, size)
    expected = ndimage.gaussian_filter(np.asarray(image, np.float64), (sigma, sigma, 0), mode="reflect", truncate=4.0)
    np.testing.assert_allclose(np.asarray(gaussian_blur(image, sigma), np.float64), expected, atol=0.501)


@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_a_blurred_image_differs_from_its_source_and_keeps_its_mean(sigma: float) -> None:
    image = sample_image(2, (160, 120))
    blurred = gaussian_blur(image, sigma)
    assert blurred.size == image.size
    before, after = np.asarray(image, np.float64), np.asarray(blurred, np.float64)
    assert np.abs(after - before).mean() > 1.0
    assert after.std() < before.std()
    np.testing.assert_allclose(after.mean((0, 1)), before.mean((0, 1)), atol=0.05)
    # Pillow's is three box filters: near, and not the same.
    assert (np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))) != np.asarray(blurred)).any()


def test_a_single_colour_stays_and_the_widest_blur_leaves_one_colour() -> None:
    grey = Image.new("RGB", (33, 21), (7, 130, 255))
    np.testing.assert_array_equal(np.asarray(gaussian_blur(grey, 10.0)), np.asarray(grey))
    assert len(gaussian_blur(sample_image(1), MAX_BLUR_SIGMA).getcolors() or []) == 1


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "palette": lambda image: image.quantize(16),
    "RGBA": lambda image: image.convert("RGBA"),
    "grey": lambda image: image.convert("L"),
    "grey with alpha": lambda image: image.convert("LA"),
    "one bit": lambda image: image.convert("1"),
    "CMYK": lambda image: image.convert("CMYK"),
    "16 bit": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("contrast", [PATCHES, BLUR], ids=["patch_mask", "gaussian_blur"])
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_is_perturbed_as_the_model_would_see_it(mode: str, contrast: ContrastSpec) -> None:
    file = io.BytesIO()
    MODES[mode](sample_image(5, (40, 60))).save(file, "TIFF" if mode == "CMYK" else "PNG")
    image = decode_image(file.getvalue())
    changed = perturbed(image, contrast, "k", 0)
    assert (changed.mode, changed.size) == ("RGB", image.size)
    assert (np.asarray(changed) != np.asarray(image)).any()
    if mode == "16 bit":
        assert np.asarray(image).std() > 10  # not cut off to white


def test_ids_and_labels_are_reused_and_only_pixels_differ(llava: Family) -> None:
    sample, image = conversation("<image>\nWhat?", "A cat."), sample_image(1, (60, 40))
    plain = llava.encoder(sample, [image])
    for contrast in (PATCHES, BLUR):
        encoded = encode_with_contrast(llava.encoder, contrast, sample, [image], "k")
        assert encoded.labels.tolist() == plain.labels.tolist()
        assert encoded.contrast_inputs.keys() == plain.image_inputs.keys()
        assert bool((encoded.contrast_inputs["pixel_values"] != plain.image_inputs["pixel_values"]).any())
        assert encoded.image_inputs["pixel_values"].equal(plain.image_inputs["pixel_values"])
    text = encode_with_contrast(llava.encoder, BLUR, conversation("Hello?", "Hi."), [], "k")
    assert text.contrast_inputs == {}
    assert encode_with_contrast(llava.encoder, ContrastSpec(), sample, [image], "k").contrast_inputs == {}


def test_a_processor_that_makes_other_tokens_of_the_perturbed_image_makes_an_encode_error(
    family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one would that crops to content: the perturbed image comes out narrower, and tiles otherwise.
    monkeypatch.setattr(
        "cal_pipeline.encoding.perturbation.perturbed", lambda image, *_: image.crop((0, 0, 20, image.height))
    )
    reference = family("llava_next")
    with pytest.raises(ContrastError, match=r"makes other tokens of the perturbed image \(\d+ instead of \d+") as error:
        encode_with_contrast(
            reference.encoder, BLUR, conversation("<image>\nWhat?", "A."), [sample_image(1, (90, 60))], "k"
        )
    assert error.value.status == "encode_error"
    assert STATUSES.count("encode_error") == 1


REFUSED = [
    ({"condition": "blur"}, "must be one of drop, mask, patch_mask, gaussian_blur, got 'blur'"),
    ({"condition": "patch_mask"}, "needs --patch_mask_ratio"),
    ({"condition": "gaussian_blur"}, "needs --blur_sigma"),
    ({"condition": "patch_mask", "patch_mask_ratio": 0.0}, "above 0 and at most 1, got 0.0"),
    ({"condition": "patch_mask", "patch_mask_ratio": 1.5}, "above 0 and at most 1, got 1.5"),
    ({"condition": "patch_mask", "patch_mask_ratio": float("nan")}, "above 0 and at most 1, got nan"),
    ({"condition": "patch_mask", "patch_mask_ratio": 0.001}, "masks none of the 200 cells"),
    ({"condition": "gaussian_blur", "blur_sigma": 0.0}, "between 0.25 and 1000 pixels, got 0.0"),
    ({"condition": "gaussian_blur", "blur_sigma": float("inf")}, "got inf"),
    ({"condition": "gaussian_blur", "blur_sigma": float("nan")}, "got nan"),
    ({"patch_mask_ratio": 0.5}, "has no effect on --contrast drop"),
    ({"condition": "patch_mask", "patch_mask_ratio": 0.5, "blur_sigma": 1.0}, "has no effect on --contrast patch_mask"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_contrast_that_means_nothing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ContrastSpec(**values)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_the_images_that_are_written_out_are_those_that_are_measured(tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path, 20)
    shards = plan_shards([str(data)], [str(images)], rows_per_shard=4)
    folder = tmp_path / "look"
    for _ in range(2):  # the second run replaces the first's
        assert save_contrast_images(shards, PATCHES, folder, count=7, max_image_pixels=90 * 90) == 7
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 14
    source, shown = names[1], names[0]
    assert shown.replace("-patch_mask-0.7", "") == source
    key = source.split("-")[1]
    with Image.open(folder / source) as image, Image.open(folder / shown) as changed:
        np.testing.assert_array_equal(np.asarray(changed), np.asarray(perturbed(image, PATCHES, key, 0)))
    assert save_contrast_images(shards, BLUR, folder, count=1000, max_image_pixels=90 * 90) < 20


def test_a_damaged_file_gives_no_image_for_a_look_and_stops_nothing(tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path / "data", 4)
    (tmp_path / "data" / "a.parquet").write_bytes(b"PAR1 nothing")
    shards = plan_shards([str(tmp_path / "data")], [str(images)], list_broken=True)
    assert [shard.problem is None for shard in shards] == [False, True]
    data.write_text(data.read_text() + " ")
    (tmp_path / "data" / "c.jsonl").write_text(json.dumps(json.loads(data.read_text())[0]) + "\n")
    whole = plan_shards([str(tmp_path / "data" / "c.jsonl")], [str(images)])
    # The first cannot be read, the second has changed since planning.
    assert save_contrast_images([*shards, *whole], BLUR, tmp_path / "look", count=5, max_image_pixels=90 * 90) == 1
    assert len(list((tmp_path / "look").iterdir())) == 2
