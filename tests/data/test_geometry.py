"""Where things lie: positions and fields of view of slices, the network's grid, and what is padded around a brain."""

import json

import numpy as np
import pytest
import torch
from conftest import make_scan, run_bundle
from monai.data import MetaTensor
from scripts.data.preprocessing import select_slices
from scripts.data.slices import covered_planes, read_slices
from scripts.inference.geometry import with_room
from scripts.inference.inferer import IterMaskInferer


class Sees(torch.nn.Module):
    """Stands for the method: remembers what it sees, and marks all of the brain."""

    modalities = 1
    field_of_view = torch.zeros(2)
    planes = torch.tensor([float("inf"), -float("inf")])

    def __init__(self, image_size):
        super().__init__()
        self.image_size = image_size

    def refine(self, image, brain_mask, **options):
        self.image, self.brain_mask = image, brain_mask
        return brain_mask, image, image, torch.ones(len(image), dtype=torch.int64)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_datalist_tells_position_and_field_of_view_in_millimeters(tmp_path, suffix):
    affine = np.array([[2.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
    make_scan(tmp_path / "scans", "a", modalities=["flair"], suffix=suffix, affine=affine)
    splits = {"split_training": ["a"], "split_validation": "null", "split_testing": "null", "num_workers": 0}
    folders = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")}
    run_bundle("preprocess", modalities=["flair"], slice_range=[3, 6], **splits, **folders)
    slices = read_slices(tmp_path / "out", "training", ["flair"])
    assert [(item["slice"], item["position"]) for item in slices] == [(3, -18.0), (4, -14.0), (5, -10.0)]
    assert all(item["field_of_view"] == [2 * 14, 3 * 18] for item in slices)
    assert covered_planes(slices) == covered_planes(slices[::-1]) == (-18.0, -10.0)


def test_slice_with_just_enough_brain_is_kept():
    brain = np.zeros((10, 10, 3), bool)
    brain[0, :2, 1], brain[0, :1, 2] = True, True
    assert select_slices(brain, None, "all", smallest_brain_fraction=0.02) == [1]


def test_modalities_in_another_order_are_refused(tmp_path):
    (tmp_path / "x.npy").touch()
    entry = {"case": "a", "slice": 1, "image": "x.npy", "brain_mask": "x.npy"}
    (tmp_path / "datalist.json").write_text(json.dumps({"modalities": ["flair", "t1"], "training": [entry]}))
    with pytest.raises(ValueError, match=r"holds the modalities \['flair', 't1'\], but `modalities` is"):
        read_slices(tmp_path, "training", ["t1", "flair"])


@pytest.mark.parametrize("axis", [2, 3])
def test_mirrored_brain_is_mirrored_on_the_grid_of_the_network(axis):
    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))  # 40 / 24: no center on a border
    slices, infer, network = torch.cat([image, (image > 0.5).float()], dim=1), IterMaskInferer(), Sees(24)
    mask, brain = infer(slices, network), network.brain_mask
    mirrored = infer(slices.flip(axis), network)
    assert torch.equal(network.brain_mask, brain.flip(axis)) and torch.equal(mirrored, mask.flip(axis))


def test_mask_and_anomaly_map_end_where_the_brain_of_the_input_does():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 50), torch.linspace(-1, 1, 40), indexing="ij")
    brain = (rows**2 + columns**2 < 0.7)[None, None]
    slices = torch.cat([torch.ones_like(brain, dtype=torch.float32), brain.float()], dim=1)
    mask, anomaly_map = IterMaskInferer(["mask", "anomaly_map"])(slices, Sees(16))[:, :, None].unbind(dim=1)
    for found in (mask, anomaly_map):
        assert not found[~brain].any() and (found[brain] == 1).float().mean() > 0.9


@pytest.mark.parametrize("background", [-3.0, 0.7])
def test_room_around_a_scan_is_filled_with_its_background(background):
    volume = torch.zeros(1, 2, 20, 20, 3)
    volume[:, 0] = background
    volume[:, :, 5:15, 5:15] = 1
    volume[0, 0, 9, 9, 1] = -7  # a voxel of the brain that is darker than all around it
    network = Sees(40)
    network.field_of_view = torch.tensor([40.0, 40.0])
    infer = IterMaskInferer()
    found = infer(MetaTensor(volume, affine=torch.eye(4)), network)
    assert found.shape == (1, 1, 20, 20, 3) and torch.equal(found[0, 0] > 0, volume[0, 1] > 0)
    assert network.image.shape == (3, 1, 40, 40)
    assert torch.equal(network.brain_mask.sum((1, 2, 3)), torch.tensor([100] * 3))
    assert (network.image[~network.brain_mask] == background).all()
    assert network.image[network.brain_mask].unique(return_counts=True)[1].tolist() == [1, 299]


def test_each_modality_of_a_scan_has_its_own_room():
    volume = torch.stack([torch.full((20, 20, 3), value) for value in (-3.0, 5.0, 0.0)])
    volume[:2, 5:15, 5:15], volume[2, 5:15, 5:15] = 9, 1
    padded = with_room(volume, [1, 0, -2, 3])
    assert padded.shape == (3, 21, 21, 3) and padded[:, -1, 0, 1].tolist() == [-3, 5, 0]
    assert with_room(torch.ones(2, 4, 4, 1), [1, 1, 1, 1])[:, 0, 0, 0].tolist() == [1, 0]  # a brain without outside
