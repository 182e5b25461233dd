"""Results lie where their scan lies, in every viewer: both forms of the header are the scan's own."""

import nibabel as nib
import numpy as np
import pytest
from scripts.inference.writer import AtomicNibabelWriter, copy_forms

VOXELS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def moved(matrix, shift=(0, 0, 0), mirror=False, degrees=0):
    """The matrix of a form that differs: moved by mm, turned, or mirrored."""
    change = np.eye(4)
    angle = np.deg2rad(degrees)
    change[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    change[:3, 3] = shift
    return change @ matrix @ np.diag([-1 if mirror else 1, 1, 1, 1])


def save_scan(path, qform, sform, codes, units="mm"):
    image = nib.Nifti1Image(VOXELS, sform if codes[1] else qform)
    image.set_qform(qform, codes[0]), image.set_sform(sform, codes[1])
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return nib.load(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (1, 0), (0, 4), (1, 1)])
@pytest.mark.parametrize("change", [{}, {"shift": (10, -5, 3)}, {"degrees": 20}, {"mirror": True}])
def test_forms_codes_and_units_are_those_of_the_scan(tmp_path, suffix, codes, change):
    base = np.array([[2.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
    scan = save_scan(tmp_path / f"scan{suffix}", base, moved(base, **change), codes)
    writer = AtomicNibabelWriter(output_dtype=np.uint8)
    writer.set_data_array((VOXELS > 5)[None], channel_dim=0)
    writer.set_metadata({"affine": scan.affine, "filename_or_obj": str(tmp_path / f"scan{suffix}")}, resample=False)
    writer.write(tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), VOXELS > 5)
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)
    for form in ("qform", "sform"):
        found, code = getattr(mask, f"get_{form}")(coded=True)
        expected, expected_code = getattr(scan, f"get_{form}")(coded=True)
        assert code == expected_code
        if code:
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert mask.header.get_xyzt_units() == scan.header.get_xyzt_units()


def test_result_in_another_space_has_its_own_affine(tmp_path):
    save_scan(tmp_path / "scan.nii", np.eye(4), np.eye(4), (1, 1))
    image = nib.Nifti1Image(VOXELS, np.diag([2.0, 2, 2, 1]))
    copy_forms(str(tmp_path / "scan.nii"), image)
    np.testing.assert_allclose(image.get_qform(), image.affine)
    np.testing.assert_allclose(image.get_sform(), image.affine)
