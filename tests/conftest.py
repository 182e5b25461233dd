"""What several test modules share."""

import importlib
import importlib.util
import logging
import os
import shutil
import socket
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scripts.common.model_file import save_model
from scripts.common.paths import config_files
from scripts.data.nifti import ITK_SUFFIXES, NIFTI_SUFFIXES
from scripts.evaluation.metrics import overlap_from_counts
from scripts.method.itermask import IterMask
from scripts.method.lesion_network import LesionNetwork
from scripts.method.networks import ReconstructionUNet

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # each of the processes that share the tests has a core of its own
# commands that tests start and compare would else take as many threads as are free just then
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

CONFIGS = Path(__file__).parent.parent / "bundle" / "configs"
needs_data = pytest.mark.skipif(
    not os.environ.get("ITERMASK_DATA"),
    reason="needs the real slices and volumes; ITERMASK_DATA, which names their folder, is not set",
)
needs_deepbet = pytest.mark.skipif(
    importlib.util.find_spec("deepbet") is None, reason="deepbet is not installed (requirements-scans.txt)"
)
needs_itk = pytest.mark.skipif(
    importlib.util.find_spec("itk") is None, reason="ITK is not installed (requirements-formats.txt)"
)
needs_nilearn = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("nilearn", "matplotlib")),
    reason="nilearn is not installed (requirements-view.txt)",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, or chrome; neither is on the PATH")
FORMATS = [*NIFTI_SUFFIXES, ".mgz", *(pytest.param(suffix, marks=needs_itk) for suffix in ITK_SUFFIXES)]


@pytest.fixture
def brain_mask():
    """Brains of three sizes, the last slice without any: (4, 1, 32, 48), bool."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 48), indexing="ij")
    return torch.stack([rows**2 + columns**2 < size**2 for size in (0.9, 0.6, 0.3, 0.0)])[:, None]


@pytest.fixture
def image(brain_mask):
    """Slices with structure in the brain and -3 outside: (4, 1, 32, 48)."""
    noise = torch.randn(brain_mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(brain_mask, noise, torch.tensor(-3.0))


@pytest.fixture
def small_network():
    """Makes a network of two levels with attention on the coarse one."""
    return partial(ReconstructionUNet, channels=4, channel_multipliers=(1, 2), residual_blocks=1, attention_levels=(1,))


@pytest.fixture
def model(small_network):
    """Two seeded small networks with a threshold that some errors exceed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return IterMask(small_network, radius=4, threshold=1.0).eval()


def save_small_model(path, modalities=("flair",)):
    """Write a lesion network of random weights that marks a half of a phantom's brain, and give its path."""
    network = partial(ReconstructionUNet, channels=4, channel_multipliers=(1, 2), residual_blocks=1, patch_size=2)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LesionNetwork(partial(network, attention_levels=()), modalities)
        last = model.network.head[-1]
        last.weight.copy_(100 * (last.weight - last.weight.mean(dim=(1, 2, 3), keepdim=True)))
        last.bias.zero_()
    for threshold in model.threshold_values():
        threshold.fill_(0.5)
    save_model(model, path)
    return path


@pytest.fixture
def lesion_network():
    """A lesion network of random weights whose thresholds part of the brain exceeds; attention is on few pixels."""
    sizes = {"channels": 4, "channel_multipliers": (1, 1, 1, 1), "residual_blocks": 1, "attention_levels": ()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LesionNetwork(partial(ReconstructionUNet, patch_size=2, **sizes)).eval()
    for threshold in model.threshold_values():
        threshold.fill_(-3.0)
    return model


SMALL_NETWORK = {
    "backbone#channels": 4,
    "backbone#channel_multipliers": [1, 2],
    "backbone#residual_blocks": 1,
    "backbone#attention_levels": [1],
}


def files_of(*names):
    """The files of a config and its overlays; None is no overlay."""
    return [str(path) for path in config_files(*filter(None, names))]


def run_bundle(name, overlay=None, run_id="run", **overrides):
    """Run a config of the bundle in this process, as ``python -m monai.bundle run`` does.

    What sets the size of a network is for training alone: a model file says it everywhere else.
    """
    text = "".join(Path(file).read_text() for file in files_of(name, overlay))
    of_training = ("backbone#", "image_size", "canvas_size", "resample#")
    if name != "train":
        overrides = {key: value for key, value in overrides.items() if not key.startswith(of_training)}
    overrides = {key: value for key, value in overrides.items() if f'"{key.partition("#")[0]}"' in text}
    workflow = ConfigWorkflow(files_of(name, overlay), run_id=run_id, logging_file=False, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def warnings_of(caplog):
    """What the bundle warned of."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name.startswith("scripts.")]


def overlap(pred_mask, label):
    """Dice, sensitivity and precision of each image of a batch (N, ...)."""
    pred_mask, label = np.asarray(pred_mask) > 0, np.asarray(label) > 0
    axes = tuple(range(1, label.ndim))
    return overlap_from_counts((pred_mask & label).sum(axes), pred_mask.sum(axes), label.sum(axes))


def free_port():
    """A port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def training_scans(tmp_path_factory):
    """Scans of one axial slice (24 x 20, 4 mm) and two modalities: 6 for training, 3 for validation, 2 for testing."""
    root = tmp_path_factory.mktemp("training_scans")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:24j, -1:1:20j]
    for split, number in (("training", 6), ("validation", 3), ("testing", 2)):
        names = [f"{split}{index}" for index in range(number)]
        (root / f"split_{split}.txt").write_text("\n".join(names))
        for index, name in enumerate(names):
            brain = rows**2 + columns**2 < random.uniform(0.5, 0.7)
            label = brain & (np.hypot(rows - 0.2, columns) < (0.3 if split == "testing" else 0))
            for modality, image in (("flair", np.sin(5 * rows + index)), ("t1", np.cos(4 * columns))):
                voxels = np.where(brain, 500 + 200 * (image + 3 * label), 0).astype(np.int16)
                write_nifti(root / name / f"{name}_{modality}.nii.gz", voxels[..., None], np.diag([4.0, 4, 4, 1]))
            write_nifti(root / name / f"{name}_seg.nii.gz", label[..., None].astype(np.uint8), np.diag([4.0, 4, 4, 1]))
    return root


@pytest.fixture(scope="session")
def two_modalities(training_scans, tmp_path_factory):
    """Options that make a training read `training_scans` with a small network."""
    options = {"dataset_dir": str(training_scans), "modalities": ["flair", "t1"], "slice_range": "$None"}
    options |= {"brain_extraction": "background"}
    slices = {"planes": ["axial"], "cache_dir": str(tmp_path_factory.mktemp("slices")), "image_size": 16}
    return {**options, **slices, "canvas_size": [16, 16], "resample#pixel_size": 6.0, **SMALL_NETWORK}


def write_nifti(path, voxels, affine=None):
    """Save an array as NIfTI, with the identity affine by default, and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def _write_itk(path, voxels, affine):
    """Write a format of ITK by ITK itself, whose coordinates go to the left, the back, and up."""
    itk = importlib.import_module("itk")
    image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    itk.imwrite(image, str(path), compression=path.suffix == ".nrrd")
    return path


def write_volume(path, voxels, affine):
    """Save an array in the format that the suffix names."""
    if path.suffix == ".mgz":
        nib.save(nib.MGHImage(voxels, affine), path)
        return path
    return _write_itk(path, voxels, affine) if path.suffix in ITK_SUFFIXES else write_nifti(path, voxels, affine)


def make_scan(root, case, lesion=None, modalities=("flair", "t1"), suffix=".nii.gz", affine=None):
    """Write a scan (14, 18, 12) whose brain is an ellipse in slices 1 to 10.

    Args:
        lesion: Lesion voxels of each slice that has any; None: no file NAME_seg.
    """
    random = np.random.default_rng(list(case.encode()))
    rows, columns, slices = np.mgrid[-1:1:14j, -1:1:18j, 0:12]
    brain = ((rows / 0.8) ** 2 + (columns - 0.1) ** 2 < 0.7) & (slices > 0) & (slices < 11)
    for modality in modalities:
        voxels = np.where(brain, random.integers(50, 900, brain.shape), 0).astype(np.int16)
        write_nifti(root / case / f"{case}_{modality}{suffix}", voxels, affine)
    if lesion is not None:
        label = np.zeros(brain.shape, np.uint8)
        for k, voxels in lesion.items():
            label.reshape(-1, 12)[np.flatnonzero(brain[..., k])[:voxels], k] = 4
        write_nifti(root / case / f"{case}_seg{suffix}", label, affine)
    return root / case


@pytest.fixture
def scans_dir(tmp_path):
    """Scans a and b for training, c for validation, d and e for testing, with the three split files."""
    root = tmp_path / "scans"
    make_scan(root, "a", lesion={4: 5, 5: 9})
    make_scan(root, "b", lesion={})
    make_scan(root, "c", lesion={})
    make_scan(root, "d", lesion={3: 8, 6: 21, 7: 20, 10: 50})
    make_scan(root, "e", lesion={10: 30})
    for split, cases in (("training", "ab"), ("validation", "c"), ("testing", "de")):
        (root / f"split_{split}.txt").write_text("\n".join(cases) + "\n")
    return root


def _ball(radius, shape=(56, 64, 52), spacing=4.0):
    grids = np.meshgrid(*((np.arange(n) - n / 2) * spacing for n in shape), indexing="ij")
    return grids[0] ** 2 * 1.2 + grids[1] ** 2 * 0.8 + grids[2] ** 2 < radius**2


def round_head(noise=0.0):
    """A head of 4 mm voxels, and its brain: shells of scalp, skull, fluid, cortex and white matter."""
    voxels = np.zeros(_ball(1).shape)
    for radius, value in ((92, 120), (84, 12), (76, 20), (70, 110), (62, 90)):
        voxels[_ball(radius)] = value
    random = np.random.default_rng(0).normal(0, 3, voxels.shape)
    voxels = np.where(voxels > 0, voxels + random, np.abs(random) * noise)
    return voxels.astype(np.float32), _ball(70)
