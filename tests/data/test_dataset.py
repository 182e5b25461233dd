"""Scans of a split, and their slices under one index, computed once."""

import os
import time

import numpy as np
import pytest
import torch
from conftest import make_scan, write_nifti
from monai.transforms import Compose, LoadImaged, Orientationd
from scripts.data.dataset import SliceDataset, options_of, scans_of_split, synthetic_scans
from scripts.data.transforms import BrainMaskd, ScaleBrainIntensityd, ScanReader, SlicesOfScand, StandardizeBraind

KEYS = ["image", "brain_mask", "label"]
CALLS = []


class Counted(Compose):
    """Notes which scan it computes."""

    def __call__(self, data):
        CALLS.append(data["case"])
        return super().__call__(data)


def transform(**options):
    load = LoadImaged(KEYS, ScanReader, ensure_channel_first=True, allow_missing_keys=True)
    orient = Orientationd(KEYS, axcodes="RAS", labels=None, allow_missing_keys=True)
    return Counted([load, orient, BrainMaskd("image"), StandardizeBraind("image"), SlicesOfScand("image", **options)])


@pytest.fixture
def scans(tmp_path):
    """Scans a to e of 6 mm voxels, of which b has a lesion in two slices and no split file names any."""
    for case in "abcde":
        lesion = {4: 5, 5: 9} if case == "b" else {}
        make_scan(tmp_path / "scans", case, lesion, ("flair",), affine=np.diag([6.0, 6, 6, 1]))
    return tmp_path / "scans"


def computed(scans, cache_dir, **options):
    """The data set, and the scans that were computed for it."""
    CALLS.clear()
    found = SliceDataset(scans_of_split(str(scans), "training", ["flair"]), transform(**options), cache_dir)
    return found, [*CALLS]


def test_index_holds_the_slices_of_all_scans_in_order(scans, tmp_path):
    found, _ = computed(scans, str(tmp_path / "cache"))
    names = [(part["case"], part["slice"]) for part in found]
    assert names == sorted(names) and len(names) == len(found) > 20
    assert ("b", 4) not in names and ("b", 3) in names
    part = found[0]
    assert part["image"].shape == (1, 14, 18) and part["image"].dtype == torch.float32 and part["certain"] is False
    assert "training: " in str(found) and f"{len(found)} slices of 4 scans" in str(found)


def test_scan_is_computed_once_until_it_or_an_option_changes(scans, tmp_path):
    cache = str(tmp_path / "cache")
    first, calls = computed(scans, cache)
    assert calls == ["a", "b", "c", "d"]
    again, calls = computed(scans, cache)
    assert calls == [] and len(again) == len(first) and again.checksum == first.checksum
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(first, again, strict=True))
    os.utime(scans / "c" / "c_flair.nii.gz", (time.time() + 5, time.time() + 5))
    assert computed(scans, cache)[1] == ["c"]
    assert computed(scans, cache, slice_distance=12.0)[1] == ["a", "b", "c", "d"]
    assert computed(scans, None)[1] == ["a", "b", "c", "d"]


def test_slices_of_workers_and_of_memory_are_the_same(scans, tmp_path):
    items = scans_of_split(str(scans), "training", ["flair"])
    found = [SliceDataset(items, transform(), cache, n) for cache, n in ((None, 0), (str(tmp_path / "cache"), 2))]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(*found, strict=True))


def test_bad_scan_is_named_and_the_others_are_kept(scans, tmp_path):
    write_nifti(scans / "c" / "c_flair.nii.gz", np.zeros((14, 18, 12), np.int16), np.diag([6.0, 6, 6, 1]))
    with pytest.raises(RuntimeError, match=r"1 of 4 cases failed, c .*c has no voxel that differs"):
        computed(scans, str(tmp_path / "cache"))
    assert sorted(path.name[0] for path in (tmp_path / "cache").glob("*.pt")) == ["a", "b", "d"]


def test_file_that_was_changed_is_no_cache(scans, tmp_path):
    computed(scans, str(tmp_path / "cache"))
    next((tmp_path / "cache").glob("*.pt")).write_bytes(b"no slices")
    with pytest.raises(ValueError, match="is damaged .* delete it"):
        computed(scans, str(tmp_path / "cache"))


def test_scans_without_slices_of_the_kind_are_an_error(scans):
    with pytest.raises(ValueError, match="No slice of the wanted kind in any of the 4 training scans"):
        computed(scans, None, smallest_brain_fraction=1.0)
    with pytest.raises(ValueError, match="No scan for training"):
        SliceDataset([], transform())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ScaleBrainIntensityd("image", upper_fraction=0.9), ScaleBrainIntensityd("image", upper_fraction=0.8)),
        (SlicesOfScand("image", planes=["axial"]), SlicesOfScand("image", planes=["coronal"])),
        (BrainMaskd("image", extraction="auto"), BrainMaskd("image")),
        (Compose([StandardizeBraind("image")]), Compose([StandardizeBraind("other")])),
    ],
)
def test_every_option_of_a_transform_counts(one, other):
    assert options_of(one) != options_of(other) and options_of(one) == options_of(one)


def split(root, name, **options):
    return [scan["case"] for scan in scans_of_split(str(root), name, ["flair"], **options)]


def test_splits_are_those_of_lists_or_every_eighth_subject(scans):
    assert split(scans, "training") == ["a", "b", "c", "d"] and split(scans, "validation") == ["e"]
    assert split(scans, "testing") == []
    (scans / "split_training.txt").write_text("a\nb\n")
    (scans / "split_testing.txt").write_text("d\n")
    assert split(scans, "training") == ["a", "b"] and split(scans, "validation") == []
    assert split(scans, "testing") == ["d"] and split(scans, "validation", splits={"validation": ["e"]}) == ["e"]
    assert split(scans, "training", exclude=["a"]) == ["b"]
    with pytest.raises(ValueError, match="d is in the splits"):
        split(scans, "training", splits={"validation": ["d"]})
    assert scans_of_split(None, "training", ["flair"]) == []


def test_each_source_has_its_part_of_the_draws(scans):
    items = scans_of_split(str(scans), "training", ["flair"])
    found = SliceDataset([*items, {**items[0], "source": "more"}], transform())
    weights = found.weights([0.25, 0.75])
    number = len(found.scans[-1])
    assert sum(weights[:-number]) == pytest.approx(0.25) and sum(weights[-number:]) == pytest.approx(0.75)
    assert found.weights(None) is None
    with pytest.raises(
        ValueError, match="`source_fractions` has 1 numbers, but the training scans come from 2 folders"
    ):
        found.weights([1.0])


def test_synthetic_scans_share_no_head_and_no_seed(tmp_path):
    for number in range(9):
        (tmp_path / f"head_{number}.nii.gz").touch()
    found = {name: synthetic_scans(str(tmp_path), name, 3) for name in ("training", "validation", "testing")}
    assert [len(scans) for scans in found.values()] == [9, 6, 12]
    every = [scan for scans in found.values() for scan in scans]
    assert len({scan["seed"] for scan in every}) == len({scan["case"] for scan in every}) == len(every)
    heads = [{scan["label_map"] for scan in scans} for scans in found.values()]
    assert not (heads[0] & heads[1] or heads[1] & heads[2] or heads[0] & heads[2])
    assert all(scan["certain"] for scan in every) and synthetic_scans(None, "training") == []


def test_heads_must_leave_one_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="holds 0 label maps, of which 2 are to validate and 4 to test on"):
        synthetic_scans(str(tmp_path), "training")
    with pytest.raises(FileNotFoundError, match="set --label_maps_dir"):
        synthetic_scans(str(tmp_path / "none"), "training")
