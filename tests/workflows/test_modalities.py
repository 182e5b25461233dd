"""Two modalities as channels of one model."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import make_scan, run_bundle, save_small_model

MODALITIES = ["flair", "t2"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "model.pt", MODALITIES)


def test_both_modalities_reach_the_model_in_their_order(model_file, tmp_path):
    scan = make_scan(tmp_path / "scans", "a", modalities=MODALITIES)

    def segment(**options):
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        run_bundle("inference", model_file=str(model_file), output_dir=str(output), **options)
        return nib.load(next(output.glob("*/*_anomaly_map.nii.gz"))).get_fdata()

    maps = {}
    for order in ("flair t2", "t2 flair", "flair flair", "t2 t2"):
        images = []
        for channel, modality in enumerate(order.split()):  # names of no modality, so that any order is taken
            images.append(str(tmp_path / f"{order} {channel}.nii.gz"))
            shutil.copy(scan / f"a_{modality}.nii.gz", images[-1])
        maps[order] = segment(image=images)
    expected = segment(dataset_dir=str(tmp_path / "scans"))
    assert [name for name, found in maps.items() if np.array_equal(found, expected)] == ["flair t2"]
