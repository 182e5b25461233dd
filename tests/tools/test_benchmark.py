"""The fast mode against the exact one, the refinement against the plain loop, and the command that measures both."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, write_nifti
from scripts.common.model_file import save_model
from scripts.data.transforms import scale_brain_intensity
from scripts.method.precision import in_precision
from scripts.tools.benchmark import plain_refine, read_config
from scripts.tools.phantoms import make_phantoms, phantom, phantom_affine


@pytest.fixture(scope="module")
def shipped():
    """The model that comes with the bundle."""
    return read_config("inference", device=torch.device("cpu")).get_parsed_content("network")


@pytest.fixture(scope="module")
def slices():
    """Every other slice of two phantoms with a lesion, at the size of the network; the last has no brain."""
    found = []
    for seed in (1, 2):
        case = phantom(seed, lesion="bright")
        image, brain = torch.from_numpy(case["flair"])[None].float(), torch.from_numpy(case["mask"])[None] > 0
        scaled = scale_brain_intensity(image, brain)
        found.append(torch.cat([scaled, brain.float()]).movedim(-1, 0)[2::2])
    both = torch.cat(found)
    brain = F.interpolate(both[:, 1:], (128, 128), mode="nearest-exact") > 0.5
    brain[-1] = False
    return F.interpolate(both[:, :1], (128, 128), mode="bilinear"), brain


@pytest.fixture(scope="module")
def exact(shipped, slices):
    with torch.no_grad():
        return shipped.refine(*slices)


def dice(first, second):
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_masks_are_those_of_the_plain_loop(shipped, slices, exact):
    with torch.no_grad():
        mask, anomaly_map, _, passes = plain_refine(shipped, *slices, batch_size=8)
    assert mask.sum() > 500 and torch.equal(mask, exact[0])
    torch.testing.assert_close(anomaly_map, exact[1], rtol=0, atol=1e-4)
    assert torch.equal(passes[:-1], exact[3][:-1]) and exact[3][-1] == 0


def test_networks_see_a_slice_as_often_as_its_own_iterations_ask(shipped, slices, exact):
    seen = []
    hook = shipped.masked.register_forward_hook(lambda network, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        shipped.refine(*slices)
    hook.remove()
    assert sum(seen) == int(exact[3].sum()) < int(exact[3].max()) * len(slices[0])


def test_fast_mode_saves_passes_and_nearly_keeps_the_masks(shipped, slices, exact):
    with torch.no_grad():
        mask, _, _, passes = in_precision(shipped, "bfloat16").refine(*slices, max_passes=1)
    assert dice(mask, exact[0]) > 0.97
    assert passes.sum() < 0.75 * exact[3].sum()


def test_bfloat16_changes_the_networks_alone_and_little(shipped, slices, exact):
    twin = in_precision(shipped, "bfloat16")
    dtypes = []
    hook = shipped.masked.down[0][0].register_forward_hook(lambda layer, inputs, output: dtypes.append(output.dtype))
    with torch.no_grad():
        mask, anomaly_map, _, _ = twin.refine(*slices)
    hook.remove()
    assert set(dtypes) == {torch.bfloat16} and anomaly_map.dtype == torch.float32
    assert not torch.equal(anomaly_map, exact[1]) and dice(mask, exact[0]) > 0.98
    assert shipped.masked.down[0][0].weight.dtype == torch.float32
    assert in_precision(shipped, "float32") is shipped


@pytest.mark.parametrize("name", ["inference", "evaluate", "evaluate_slices"])
def test_fast_keeps_the_passes_of_the_published_method(name, model, tmp_path):
    exact, fast = (read_config(name, fast=fast).get_parsed_content("inferer") for fast in (False, True))
    assert (exact.options["max_passes"], exact.precision) == (100, "float32")
    assert (fast.options["max_passes"], fast.precision) == (1, "auto")
    save_model(model, tmp_path / "published.pt")
    published = read_config(name, fast=True, model_file=str(tmp_path / "published.pt")).get_parsed_content("inferer")
    assert published.options["max_passes"] == 100


def test_record_of_a_volume_holds_all_that_its_mask_depends_on():
    def record(**options):
        return read_config("inference", **options).get_parsed_content("volumes#settings")

    assert record(batch_size=4) == record(batch_size=8)
    assert record() != record(fast=True)
    assert record() != record(**{"displayable_configs#threshold_scale": 1.5})


@pytest.fixture
def small_data(tmp_path):
    """Slices of a few small phantoms, and one of them as a volume."""
    make_phantoms(tmp_path / "scans", 2, 1, 1, shape=(48, 56, 12))
    case = phantom(3, (48, 56, 12), lesion="bright")
    image = write_nifti(tmp_path / "one.nii.gz", case["flair"], phantom_affine((48, 56, 12)))
    command = [sys.executable, "-m", "monai.bundle", "run", "preprocess", "--slice_range", "[4,8]", "--config_file"]
    command += [CONFIGS / "preprocess.json", "--dataset_dir", tmp_path / "scans", "--output_dir", tmp_path / "slices"]
    subprocess.run(command, check=True, capture_output=True)
    return image, tmp_path / "slices"


def test_command_measures_all_parts(small_data, tmp_path):
    image, training_scans = small_data
    tables = tmp_path / "tables.md"
    command = [
        sys.executable,
        "-m",
        "scripts.tools.benchmark",
        "--repeats",
        "1",
        "--subjects",
        "20",
        "--batch_size",
        "1",
        "--seconds",
        "1",
    ]
    command += ["--image", image, "--slices", training_scans, "--output_file", tables]
    done = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = tables.read_text()
    for part in ("Refinement", "Passes", "Training", "Sharing", "Preprocessing"):
        assert f"### {part}" in text
    row = next(line for line in text.splitlines() if line.startswith("| float32 |")).split(" | ")
    assert row[3] == row[4] and row[5] == "0"  # slice-passes are each slice's own; the plain loop's voxels
