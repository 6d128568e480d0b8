"""The study's world of emoji: whose words are true, which emoji are chosen, and that the exam is another artist's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import emoji_packages
import emojis
import results
import run
import worlds
from condition import Run


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = emoji_packages.write_emoji_packages(tmp_path / "node_modules")
    emoji_packages.use_packages(monkeypatch, folder)
    return folder


def test_chosen_are_emoji_that_all_artists_drew_with_keywords_that_others_have(packages: Path) -> None:
    # "food" is of lime, red apple, tomato and carrot (pear has no drawing by one artist, hammer is of no such kind);
    # "heart" is in the label, so hearts are told by "love", which four have.
    keywords = {label: one.scene.keyword for label, one in emojis.emoji().items()}
    hearts = ("red heart", "blue heart", "pink heart", "green heart")
    assert keywords == {"lime": "food", "red apple": "food", "tomato": "food", "carrot": "food"} | dict.fromkeys(
        hearts, "love"
    )
    assert emojis.emoji()["red heart"].true == {"red", "heart", "hearts", "love"}


def test_no_kind_has_more_than_its_share(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emojis, "PER_KIND", 2)
    assert list(emojis.emoji()) == ["lime", "red apple", "carrot", "red heart", "blue heart"]


def test_a_word_is_true_where_people_gave_it_to_the_emoji(packages: Path) -> None:
    lime, apple, heart = (emojis.emoji()[label].scene for label in ("lime", "red apple", "red heart"))
    sentence = ["Under", "{kind}", "you", "find", "{label}", "with", "the", "keyword", "{keyword}"]
    told = emojis.fill_slots(sentence, described=apple, shown=lime)
    yes, no, other = "correlated", "contradictory", "irrelevant"
    assert told == (
        "Under fruit you find red apple with the keyword food.",
        (other, yes, other, other, no, no, other, other, other, yes),
    )
    _, kinds = emojis.fill_slots(sentence, described=apple, shown=heart)
    assert kinds == (other, no, other, other, yes, no, other, other, other, no)
    _, kinds = emojis.fill_slots(sentence, described=heart, shown=heart)
    assert kinds == (other, yes, other, other, yes, yes, other, other, other, yes)


def test_noise_exchanges_images_and_leaves_what_is_said(packages: Path) -> None:
    clean, noisy = (worlds.draw("emoji", 100, seed=3, noise=noise) for noise in (0.0, 0.3))
    assert all("contradictory" not in sample.word_kinds for sample in clean)
    assert [sample.caption for sample in clean] == [sample.caption for sample in noisy]
    moved = [one for one, other in zip(clean, noisy, strict=True) if one.image_png != other.image_png]
    assert len(moved) == 30
    assert sorted(sample.image_png for sample in clean) == sorted(sample.image_png for sample in noisy)
    assert any("contradictory" in sample.word_kinds for sample in noisy)
    assert worlds.draw("emoji", 100, seed=3, noise=0.3) == noisy


def test_the_exam_is_another_artist_s(packages: Path) -> None:
    fills = {artist: tuple(bytes.fromhex(fill[1:])) for artist, fill in emoji_packages.FILLS.items()}
    trained, examined = (worlds.draw("emoji", 60, seed=1, held_out=held_out) for held_out in (False, True))
    assert [sample.caption for sample in trained] != []
    for samples, artists in ((trained, emojis.ARTISTS), (examined, (emojis.HELD_OUT,))):
        seen = {_nearest(sample.image_png, fills) for sample in samples}
        assert seen == set(artists)


def _nearest(png: bytes, fills: dict[str, tuple[int, ...]]) -> str:
    """The artist whose colour is in the middle; noise moves it by a few steps of 255."""
    middle = np.asarray(Image.open(io.BytesIO(png)))[24:32, 24:32].reshape(-1, 3).mean(0)
    return min(fills, key=lambda artist: float(np.abs(middle - fills[artist]).sum()))


def test_drawings_lose_the_margin_that_artists_leave(packages: Path) -> None:
    image = np.asarray(emojis.render(emojis.emoji()["lime"].scene, np.random.default_rng(0), ("twemoji",)))
    white = (image > 200).all(-1)
    assert emojis.SMALL - 2 <= white.any(0).sum() <= emojis.LARGE
    assert emojis.SMALL - 2 <= white.any(1).sum() <= emojis.LARGE


def test_a_study_without_the_packages_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emoji_packages.use_packages(monkeypatch, tmp_path / "node_modules")
    folders = ["--results_dir", str(tmp_path / "results"), "--scratch_dir", str(tmp_path / "scratch")]
    monkeypatch.setattr(sys, "argv", ["run.py", "quick", "--world", "emoji", "--seeds", "1", *folders])
    assert run.main() == 2
    said = capsys.readouterr().err
    assert "run make emoji" in said
    assert str(tmp_path / "node_modules") in said
    assert not results.runs(tmp_path / "results").path.exists()


@pytest.mark.full
def test_the_published_packages_hold_what_the_page_says() -> None:
    chosen = emojis.emoji()
    page = " ".join((Path(run.__file__).parents[1] / "docs" / "study.md").read_text(encoding="utf-8").split())
    assert f"{len(chosen)} emoji of {len(emojis.KINDS)} groups" in page
    for artist in (*emojis.ARTISTS, emojis.HELD_OUT):
        info = json.loads((emojis.PACKAGES / "@iconify-json" / artist / "info.json").read_text(encoding="utf-8"))
        assert f"{info['name']} ({info['license']['title']}" in page
        drawings = [emojis._drawing(artist, one.hexcode) for one in chosen.values()]
        assert len({drawing.tobytes() for drawing in drawings}) == len(chosen)
        assert min(max(drawing.size) for drawing in drawings) >= emojis.LARGE  # shown smaller than they are


@pytest.mark.full
def test_students_learn_from_images_what_an_unseen_artist_drew(tmp_path: Path) -> None:
    folders = ["--results_dir", str(tmp_path), "--scratch_dir", str(tmp_path)]
    flags = ["--only", "uniform", "--world", "emoji", "--seeds", "1", *folders]
    subprocess.run([sys.executable, str(run.__file__), "scores", *flags], check=True, timeout=900)
    rows = {row["noise"]: row for row in results.runs(tmp_path).read().to_dict("records")}
    assert results.runs(tmp_path).item(rows[0.0]) == Run(world="emoji", seed=0, noise=0.0, weights="uniform")
    assert rows[0.0]["accuracy"] > 0.4
    # Exchanged images cost nothing whom captions alone tell the words: 0.40 nats were measured.
    assert rows[0.3]["nll"] - rows[0.0]["nll"] > 0.2
