"""One weight file and one input give one mask: over batch sizes, orders, threads, repeats and formats.

PyTorch's convolutions sum in another order when they see another number of slices, or have another number of threads,
so anomaly maps may differ by rounding there (`ROUNDING`); one slice at a time they are bit-identical.
"""

import os

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_bundle, write_nifti
from monai.bundle import ckpt_export
from monai.data import MetaTensor
from scripts.common.model_file import load_model
from scripts.inference.inferer import IterMaskInferer
from scripts.tools.phantoms import phantom, phantom_affine

DATA = os.environ.get("ITERMASK_DATA")
ROUNDING = 2e-5  # of anomaly maps, which are probabilities
SHAPE = (96, 112, 14)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    """The weights of the bundle."""
    return load_model(str(CONFIGS.parent / "models" / "model.pt"))


@pytest.fixture(scope="module")
def volume():
    """Voxels of a phantom with a lesion, and its slices (14, 2, H, W), the last channel being the brain mask."""
    voxels = phantom(7, shape=SHAPE, lesion="bright")["flair"].astype(np.float32)
    return voxels, torch.from_numpy(np.stack([voxels, voxels > 0])).movedim(-1, 0)


def segment(slices, network, batch_size=32):
    """Mask and anomaly map of slices (N, 2, H, W)."""
    return IterMaskInferer(outputs=("mask", "anomaly_map"), batch_size=batch_size)(slices, network).chunk(2, dim=1)


def compare(found, expected):
    """Maps are the same but for rounding; gives the difference, and the number of masks that differ."""
    difference = float((found[1] - expected[1]).abs().max())
    assert difference <= ROUNDING
    return difference, int((found[0] != expected[0]).flatten(1).any(dim=1).sum())


@pytest.fixture(scope="module")
def alone(volume, network):
    """The result with the networks seeing one slice at a time."""
    torch.set_num_threads(1)
    mask, anomaly_map = segment(volume[1], network, batch_size=1)
    assert 0.001 < mask.mean() < 0.2
    return mask, anomaly_map


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_rounding_at_most(volume, network, alone, batch_size):
    found = segment(volume[1], network, batch_size)
    assert compare(found, alone)[1] == 0
    assert batch_size > 1 or torch.equal(found[1], alone[1])


def test_slices_one_at_a_time_do_not_depend_on_order_and_company(volume, network, alone):
    order = torch.randperm(len(volume[1]), generator=torch.Generator().manual_seed(0))
    for subset in (order, order[:5]):
        found = segment(volume[1][subset], network, batch_size=1)
        assert all(torch.equal(one, expected[subset]) for one, expected in zip(found, alone, strict=True))


def test_order_in_larger_batches_changes_rounding_at_most(volume, network, alone):
    order = torch.randperm(len(volume[1]), generator=torch.Generator().manual_seed(1))
    found = segment(volume[1][order], network, batch_size=7)
    assert compare(found, [expected[order] for expected in alone])[1] == 0


@pytest.mark.parametrize("batch_size", [1, 32])
def test_repeated_runs_are_bit_identical(volume, network, batch_size):
    first, second = (segment(volume[1][:7], network, batch_size) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("threads", [2, 3])
def test_number_of_threads_changes_rounding_at_most(volume, network, alone, threads):
    torch.set_num_threads(threads)
    found = segment(volume[1][4:8], network, batch_size=4)
    assert compare(found, [expected[4:8] for expected in alone])[1] == 0


def test_global_random_state_and_its_seed_do_not_matter(volume, network, alone):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = segment(volume[1][:3], network, batch_size=1)
    assert torch.equal(found[1], alone[1][:3]) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".nii.gz", np.int16), (".nii", np.float64), (".nii.gz", np.dtype(">f4"))], ids=str
)
def test_mask_is_the_same_after_a_round_trip_through_nifti(volume, network, tmp_path, suffix, dtype):
    voxels, slices = volume
    middle = slice(4, 9)
    path = write_nifti(tmp_path / f"scan{suffix}", voxels[..., middle].astype(dtype), phantom_affine(SHAPE))
    run_bundle("inference", run_id="inference", image=str(path), output_dir=str(tmp_path / "out"))
    mask, anomaly_map = (
        np.asanyarray(nib.load(tmp_path / "out" / "scan" / f"scan_{name}.nii.gz").dataobj)
        for name in ("anomaly_mask", "anomaly_map")
    )
    scan = torch.from_numpy(voxels[..., middle])[None]
    scan = MetaTensor(torch.cat([scan, (scan > 0).float()])[None], affine=torch.from_numpy(phantom_affine(SHAPE))[None])
    in_memory = IterMaskInferer(outputs=("mask", "anomaly_map"))(scan, network)[0]
    assert mask.any() and np.array_equal(mask, in_memory[0].numpy())
    np.testing.assert_allclose(anomaly_map, in_memory[1].numpy(), atol=ROUNDING)


def test_torchscript_gives_the_same_mask(volume, network, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(CONFIGS.parent / "models" / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
    )
    exported = torch.jit.load(tmp_path / "model.ts").eval()
    small = torch.nn.functional.interpolate(volume[1], (128, 128), mode="nearest-exact")
    with torch.no_grad():
        for batch in (small[6:7], small[3:10]):
            expected = network(batch)
            for _ in range(3):  # the first calls are profiled, then the graph is optimized
                assert torch.equal(exported(batch), expected)
            assert expected.any()
