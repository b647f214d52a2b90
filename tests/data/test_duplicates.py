"""Identical pixels whatever the format, near duplicates, and what a study does with them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinojax.data import near
from dinojax.data.duplicates import drop_duplicates, find_twins
from dinojax.data.facts import data_facts, render
from dinojax.data.fingerprints import fingerprint, perceptual_hashes, pixel_hash
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Fold, Records
from dinojax.data.splits import describe_folds, joined_groups, make_folds
from dinojax.errors import RunError


def picture(seed: int, side: int = 64) -> Image.Image:
    """A smooth grey picture, as scans are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def copies(tmp_path: Path) -> Records:
    """Of the class x a.png, its copies in two other formats, and small.png; of y its copy; and others without any."""
    for name in "xy":
        (tmp_path / name).mkdir()
    image = picture(0)
    image.save(tmp_path / "x" / "a.png")
    image.save(tmp_path / "x" / "b.bmp")
    image.convert("RGB").save(tmp_path / "x" / "c.png")
    image.resize((48, 48)).save(tmp_path / "x" / "small.jpg", quality=80)
    image.point([value // 2 + 40 for value in range(256)]).save(tmp_path / "y" / "pale.png")
    for number in range(1, 5):
        picture(number).save(tmp_path / "y" / f"{number}.png")
        picture(number + 10).save(tmp_path / "x" / f"{number}.png")
    for name in ("dark", "darker"):
        Image.new("L", (64, 64), len(name)).save(tmp_path / "y" / f"{name}.png")
    return read_records(str(tmp_path), labelled=True)


def names(records: Records, places: np.ndarray) -> list[str]:
    return [str(records.paths[place]) for place in places]


def test_pixels_are_compared_and_not_files(copies: Records) -> None:
    twins = find_twins(copies, threads=2)
    assert [names(copies, np.array(group)) for group in twins.groups()] == [["x/a.png", "x/b.bmp", "x/c.png"]]
    tinted = np.repeat(np.asarray(picture(0))[:, :, None], 3, axis=2)
    assert pixel_hash(tinted) == pixel_hash(tinted[:, :, :1]) == int(twins.pixels[names_index(copies, "x/a.png")])
    tinted[0, 0, 2] ^= 1
    assert pixel_hash(tinted) != pixel_hash(tinted[:, :, :1])
    assert pixel_hash(tinted) != pixel_hash(tinted.reshape(32, 128, 3))


def names_index(records: Records, name: str) -> int:
    return records.paths.tolist().index(name)


def test_scaled_recompressed_and_pale_copies_are_near_and_flat_images_are_not(copies: Records) -> None:
    found = fingerprint(copies, threads=1)
    twins = find_twins(copies, threads=1)
    pairs = [tuple(names(copies, pair)) for pair in twins.near]
    assert pairs == [("x/a.png", "x/small.jpg"), ("x/a.png", "y/pale.png"), ("x/small.jpg", "y/pale.png")]
    assert names(copies, np.flatnonzero(found.flat)) == ["y/dark.png", "y/darker.png"]
    alone = near.near_pairs(found, chosen=np.arange(len(copies)), asked=copies.labels == 1)
    listed = [tuple(names(copies, np.array(pair))) for pair in zip(alone.a, alone.b, strict=True)]
    assert listed == [(f"x/{name}", "y/pale.png") for name in ("a.png", "b.bmp", "c.png", "small.jpg")]


def test_contrast_and_brightness_change_no_bit() -> None:
    small = np.asarray(picture(3, 32), np.uint8) // 3
    a, b = perceptual_hashes(np.stack([small, 2 * small + 60]))
    assert a == b
    assert np.bitwise_count(a) == 31


@pytest.mark.parametrize("distance", [0, 3, 8])
@pytest.mark.parametrize("share", [None, 0.04, 0.5])
def test_no_pair_is_missed(monkeypatch: pytest.MonkeyPatch, distance: int, share: float | None) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 400, dtype=np.uint64)
    for place in range(200, 300):  # some that differ in 0 to 10 bits from another
        flipped = rng.choice(63, place % 11, replace=False)
        hashes[place] = hashes[place - 200] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    asked = None if share is None else rng.uniform(size=400) < share
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    i, j = np.nonzero(np.triu(bits <= distance, 1))
    wanted = [(a, b) for a, b in zip(i, j, strict=True) if asked is None or asked[a] or asked[b]]
    assert wanted
    for at_once in (30_000, 10):  # each with each, and by bands
        monkeypatch.setattr(near, "_ALL_AT_ONCE", at_once)
        blocks = [np.stack(block, axis=1) for block in near.hamming_pairs(hashes, distance, asked)]
        assert sorted(map(tuple, np.concatenate(blocks).tolist())) == wanted


def test_too_many_pairs_are_refused(copies: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST", 2)
    with pytest.raises(RunError, match=r"more than 2 pairs .* --near_distance 8"):
        find_twins(copies, threads=1)


def test_what_cannot_be_decoded_equals_nothing(copies: Records) -> None:
    for name in ("x/1.png", "x/2.png"):
        (copies.root / name).write_bytes(b"no image")
    twins = find_twins(copies, threads=1)
    assert [len(group) for group in twins.groups()] == [3]
    assert list(fingerprint(copies, threads=1).unreadable) == [names_index(copies, f"x/{n}.png") for n in (1, 2)]


def test_one_of_a_group_is_kept_and_none_where_labels_differ(copies: Records) -> None:
    twins = find_twins(copies, threads=1)
    kept, rows = drop_duplicates(copies, twins)
    assert [row["path"] for row in rows] == ["x/b.bmp", "x/c.png"]
    assert {row["why"] for row in rows} == {"same pixels as x/a.png"}
    left = twins.take(kept)
    assert not left.groups()
    assert tuple(names(copies.take(kept), left.near[0])) == ("x/a.png", "x/small.jpg")
    assert copies.labels is not None
    labels = copies.labels.copy()
    labels[names_index(copies, "x/b.bmp")] = 1
    kept, rows = drop_duplicates(dataclasses.replace(copies, labels=labels), twins)
    assert [row["path"] for row in rows] == ["x/a.png", "x/b.bmp", "x/c.png"]
    assert rows[0]["why"] == "labels differ: same pixels as x/b.bmp, x/c.png"


def test_made_folds_keep_identical_images_together(copies: Records) -> None:
    first = find_twins(copies, threads=1).first
    group = [names_index(copies, f"x/{name}") for name in ("a.png", "b.bmp", "c.png")]
    for seed in range(5):
        for fold in make_folds(copies, 3, seed, first):
            assert len(set(group) & set(fold.test.tolist())) in (0, 3)
            assert len(set(group) & set(fold.val.tolist())) in (0, 3)
    assert (
        describe_folds(copies, 3, 0, first)
        == "3, made: stratified, every image by itself, identical images together, fold_seed 0"
    )
    alone = np.arange(len(copies))
    for before, after in zip(make_folds(copies, 3, 0), make_folds(copies, 3, 0, alone), strict=True):
        assert before.test.tolist() == after.test.tolist()


def test_groups_join_where_they_share_an_image() -> None:
    patients = np.array(["a", "b", "a", "c", "d", "c"], np.dtypes.StringDType())
    first = np.array([0, 0, 2, 3, 4, 5])  # image 1, of b, is image 0, of a
    assert joined_groups(patients, first).tolist() == [0, 0, 0, 2, 3, 2]
    chained = np.array([0, 0, 2, 2, 4, 5])  # and image 3, of c, is image 2, of a
    assert joined_groups(patients, chained).tolist() == [0, 0, 0, 0, 3, 0]
    assert joined_groups(patients, np.arange(6)) is patients


def test_facts_count_identical_and_near_images_across_the_parts(copies: Records) -> None:
    copies, headers = open_images(copies)
    place = {name: place for place, name in enumerate(copies.paths.tolist())}
    parts = ["x/a.png", "y/1.png"], ["x/b.bmp", "y/2.png"], ["x/small.jpg", "y/3.png"]
    fold = Fold(*(np.array([place[name] for name in part]) for part in parts))
    shown = render(data_facts(copies, headers, [fold], "", find_twins(copies, threads=1)))
    assert "2 images equal another one pixel by pixel, such as x/a.png = x/b.bmp" in shown
    assert "fold 1: 1 across its parts, a leak: x/a.png (train) = x/b.bmp (val) = x/c.png" in shown
    assert "3 pairs of images nearly the same but not equal, such as x/a.png ~ x/small.jpg" in shown
    assert "fold 1: 1 such pair across its parts" in shown


def test_a_patient_on_two_sides_may_be_allowed(copies: Records, capsys: pytest.CaptureFixture[str]) -> None:
    patients = np.array([str(place // 2) for place in range(len(copies))], np.dtypes.StringDType())
    folds = (Fold(np.arange(0, len(copies), 2), np.arange(1, 5, 2), np.arange(5, len(copies), 2)),)
    given = dataclasses.replace(
        copies, groups={"patient_id": patients}, folds=folds, patient_source="column patient_id"
    )
    with pytest.raises(
        RunError, match=r"2 patients are in both train and val, such as 0; .*--allow_shared_patients true"
    ):
        make_folds(given, 3, 0)
    assert make_folds(given, 3, 0, allow_shared_patients=True) == folds
    assert capsys.readouterr().out.startswith("warning: ")
    shown = render(data_facts(given, open_images(given)[1], folds))
    assert "fold 1: 2 patients are in both train and val, such as 0, a leak" in shown


def test_a_hash_alone_makes_no_near_duplicate(copies: Records) -> None:
    found = fingerprint(copies, threads=1)
    alike = found._replace(perceptual=np.full(len(copies), found.perceptual[0]))
    pairs = near.near_pairs(alike)
    assert len(pairs.a) == len(near.near_pairs(found).a)
    assert (pairs.correlation >= near.CORRELATION).all()
    assert len(near.near_pairs(alike, correlation=-1).a) > len(pairs.a)
