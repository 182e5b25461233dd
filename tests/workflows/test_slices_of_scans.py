"""Training from whole labeled scans, which MONAI Label gives to train.json in place of slices."""

import json
import re
import signal

import numpy as np
import pytest
import torch
from conftest import CONFIGS, SMALL_NETWORK, make_scan, run_bundle, write_nifti
from scripts.common.errors import innermost_message
from scripts.data.preprocessing import slice_dataset, slices_of_scans
from scripts.data.slices import read_slices

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def scan_of(root, case, lesion):
    """A scan as MONAI Label lists it; ``lesion`` as in `make_scan`."""
    folder = make_scan(root, case, lesion, modalities=("flair",))
    return {"image": str(folder / f"{case}_flair.nii.gz"), "label": str(folder / f"{case}_seg.nii.gz")}


@pytest.fixture
def scans(tmp_path):
    """Scans a, with lesions in slices 4 and 5 of those with brain (1 to 10), b and c without."""
    return [scan_of(tmp_path / "scans", case, {4: 5, 5: 9} if case == "a" else {}) for case in "abc"]


def slices(scans, folder, least=1, **options):
    return slices_of_scans(scans, "training", str(folder), ["flair"], least, **options)


def train(folder, data, validation, **options):
    """Run train.json with what MONAI Label puts in place, and as it does: a second training replaces the first."""
    return run_bundle(
        "train",
        output_dir=str(folder / "run"),
        model_file=str(folder / "model.pt"),
        device="cpu",
        batch_size=4,
        image_size=16,
        **{"train#trainer#max_epochs": 1, "train#dataset#data": data, "validate#dataset#data": validation},
        **SMALL_NETWORK,
        **{"validation_interval": 2, **options},
    )


def test_slices_of_scans_are_those_of_preprocessing(scans, tmp_path):
    made = slices(scans, tmp_path / "made")
    root = tmp_path / "scans"
    (root / "split_training.txt").write_text("a\nb\nc\n")
    options = {"split_validation": "null", "split_testing": "null", "slice_range": "null", "num_workers": 0}
    run_bundle("preprocess", dataset_dir=str(root), output_dir=str(tmp_path / "expected"), **options)
    expected = read_slices(tmp_path / "expected", "training", ["flair"])
    assert len(made) == len(expected) == 8 + 10 + 10
    for one, other in zip(made, expected, strict=True):
        assert [one[key] for key in ("slice", "position", "field_of_view")] == [
            other[key] for key in ("slice", "position", "field_of_view")
        ]
        for key in ("image", "brain_mask"):
            assert np.array_equal(np.load(one[key]), np.load(other[key]))


def test_slices_with_a_lesion_are_left_out_and_a_corrected_label_counts_at_once(scans, tmp_path):
    made = slices(scans[:1], tmp_path / "made")
    assert [one["slice"] for one in made] == [1, 2, 3, 6, 7, 8, 9, 10]
    scan_of(tmp_path / "scans", "a", {9: 3})
    made = slices(scans[:1], tmp_path / "made", slice_range=[3, 11])
    assert [one["slice"] for one in made] == [3, 4, 5, 6, 7, 8, 10]


def test_scan_without_healthy_slice_is_left_out_by_name(scans, tmp_path, capsys):
    full = scan_of(tmp_path / "scans", "full", {k: 400 for k in range(12)})
    assert {one["case"] for one in slices([*scans, full], tmp_path / "made")} == {"a", "b", "c"}
    assert "training: no slice of the kind in full; left out." in capsys.readouterr().out


def test_what_cannot_be_used_is_told_in_one_sentence(scans, tmp_path):
    full = scan_of(tmp_path / "scans", "full", {k: 400 for k in range(12)})
    small = {**scans[0], "label": str(write_nifti(tmp_path / "small.nii.gz", np.zeros((3, 3, 3), np.uint8)))}
    np.save(tmp_path / "small.npy", np.zeros((3, 3, 3)))
    other = {**scans[0], "label": str(tmp_path / "small.npy")}
    for given, least, message in (
        ([], 1, "No labeled scan for training: label more scans"),
        ([full], 1, "No lesion-free slice in any of the 1 training subjects"),
        (scans, 40, "The 3 scans for training have 28 lesion-free slices, expected 40 or more: label more scans."),
        ([small], 1, r"has shape \(3, 3, 3\), but .* resample one to the other"),
        ([other], 1, r"a lesion mask of shape \[3, 3, 3\], but voxels \[14, 18, 12\]: resample it"),
        ([scans[0], scans[0]], 1, "holds a twice"),
    ):
        with pytest.raises((ValueError, RuntimeError)) as error:
            slices(given, tmp_path / "made", least)
        assert re.search(message, innermost_message(error.value))
    with pytest.raises(ValueError, match="is one of 1 files, but `modalities` has 2"):
        slices_of_scans(scans, "training", str(tmp_path / "made"), ["flair", "t2"], 1)


def test_slices_are_taken_as_they_are(slices_dir):
    listed = read_slices(slices_dir, "training", ["flair", "t1"])
    assert slice_dataset(listed, lambda item: item, None, cache_rate=0.0).data == listed


def test_scans_train_a_model_that_knows_their_planes(scans, tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    train(tmp_path, scans[:2], scans[2:])
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.isfinite(weights["threshold"])
    assert weights["field_of_view"].tolist() == [14, 18] and weights["planes"].tolist() == [1, 10]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_failed_training_leaves_model_and_signals_as_they_were(scans, tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    train(tmp_path, scans[:2], scans[2:])
    model = (tmp_path / "model.pt").read_bytes()
    diverging = {"learning_rate": 1e30, "validation_interval": 6}
    for options, message in ((diverging, "lower `learning_rate`"), ({"exceed_fraction": 2}, "exceed_fraction")):
        with pytest.raises(RuntimeError) as error:
            train(tmp_path, scans[:2], scans[2:], **options)
        assert message in innermost_message(error.value)
        assert (tmp_path / "model.pt").read_bytes() == model
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "run", "scans"]
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_training_goes_on_from_a_model_that_a_handler_in_front_loads(scans, tmp_path):
    train(tmp_path, scans[:2], scans[2:])
    first = torch.load(tmp_path / "model.pt", weights_only=True)
    handlers = json.loads((CONFIGS / "train.json").read_text())["train"]["handlers"]
    assert all(isinstance(handler, dict) for handler in handlers)  # MONAI Label looks at the _target_ of each
    loader = {"_target_": "CheckpointLoader", "load_path": str(tmp_path / "model.pt"), "strict": False}
    loader["load_dict"] = {"model": "$@network"}
    options = {"train#handlers": [loader, *handlers], "seed": 5, "learning_rate": 1e-30}
    train(tmp_path, scans[:2], scans[2:], **options)
    second = torch.load(tmp_path / "model.pt", weights_only=True)
    networks = [name for name in first if name.startswith("masked.") and name.endswith(("weight", "bias"))]
    assert any(first[name].any() for name in networks)
    assert all(torch.equal(first[name], second[name]) for name in networks)
