"""What the header and the size of a NIfTI file tell."""

import gzip
import re

import nibabel as nib
import numpy as np
import pytest
from conftest import FORMATS, needs_itk, write_nifti, write_volume
from scripts.data.nifti import (
    ITK_SUFFIXES,
    axial_slices,
    check_forms,
    load_volume,
    read_header,
    voxel_ml,
)
from scripts.data.transforms import ScanReader


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_gives_shape_and_affine(tmp_path, suffix):
    affine = np.diag([2.0, 3, 4, 1])
    for shape in ((5, 6, 7), (5, 6, 7, 1), (5, 6, 1)):
        path = write_nifti(tmp_path / f"scan{suffix}", np.zeros(shape, np.float32), affine)
        found, found_affine = read_header(str(path))
        assert found == shape[:3]
        np.testing.assert_array_equal(found_affine, affine)


def test_gzip_of_several_members_is_whole(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", np.zeros((5, 6, 7), np.float32))
    content = path.read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert read(tmp_path / "scan.nii.gz")[0].shape == (5, 6, 7)


AFFINE = np.array([[0, 2.0, 0, -10], [-3, 0, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])  # its axes: P, R, S


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_formats_give_the_same_volume_in_the_same_space(tmp_path, suffix, kind):
    affine = AFFINE
    voxels = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(kind)
    path = write_volume(tmp_path / f"scan{suffix}", voxels, affine)
    shape, found = read_header(str(path))
    assert shape == (5, 6, 7)
    np.testing.assert_allclose(found, affine, atol=1e-5)
    array, space = read(path)
    np.testing.assert_array_equal(array, voxels)
    np.testing.assert_allclose(space, affine, atol=1e-5)
    assert array.dtype.newbyteorder("=") == kind


@pytest.mark.parametrize("suffix", FORMATS[2:])
@pytest.mark.parametrize("keep", [0.6, 0.01])
def test_other_formats_that_are_cut_short_or_none(tmp_path, suffix, keep):
    voxels = np.random.default_rng(0).integers(0, 99, (20, 21, 22)).astype(np.int16)
    path = write_volume(tmp_path / f"scan{suffix}", voxels, np.eye(4))
    cut(path, keep)
    with pytest.raises(ValueError, match=rf"scan{suffix} is (damaged|not a {suffix} file that can be read)"):
        read(path)


@needs_itk
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("scan.mha", b"ElementDataFile = LOCAL\n", b"ElementDataFile = secret.raw\n"),
        ("scan.nrrd", b"\n\n", b"\ndata file: secret.raw\n\n"),
    ],
)
def test_voxels_of_another_file_are_not_read(tmp_path, name, old, new):
    path = write_volume(tmp_path / name, np.ones((5, 6, 7), np.uint8), np.eye(4))
    (tmp_path / "secret.raw").write_bytes(bytes(5 * 6 * 7))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{name} keeps its voxels in another file"):
        read_header(str(path))


@needs_itk
@pytest.mark.parametrize(("suffix", "old"), [(".mha", rb"DimSize = .*"), (".nrrd", rb"sizes: .*")])
def test_little_file_that_announces_much_is_refused_before_it_is_read(tmp_path, suffix, old):
    path = write_volume(tmp_path / f"scan{suffix}", np.ones((5, 6, 7), np.uint8), np.eye(4))
    new = old.replace(b".*", b"2000 2000 2000")
    path.write_bytes(re.sub(old, new, path.read_bytes(), count=1))
    with pytest.raises(ValueError, match="has 8000000000 voxels, expected at most"):
        read_header(str(path))


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
def test_what_to_install_is_said_where_itk_is_missing(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("scripts.data.nifti.optional_import", lambda name: (None, False))
    (tmp_path / f"scan{suffix}").touch()
    with pytest.raises(ValueError, match=rf"scan{suffix} needs ITK, .* pip install -r requirements-formats.txt"):
        read_header(str(tmp_path / f"scan{suffix}"))


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [0.97, 0.5])
def test_file_that_is_cut_short(tmp_path, suffix, keep):
    voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / f"scan{suffix}", voxels)
    cut(path, keep)
    with pytest.raises(ValueError, match=r"scan.nii(.gz)? is damaged"):
        read(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("content", [b"", b"this is no image" * 100, gzip.compress(b"nor is this" * 100, mtime=0)])
def test_file_that_is_no_nifti(tmp_path, suffix, content):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a NIfTI file that can be read"):
        read_header(str(path))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (5, 6, 7, 1, 3)])
def test_file_that_is_no_volume(tmp_path, shape):
    path = write_nifti(tmp_path / "scan.nii", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"has shape \(5, 6.*expected a volume \(H, W, D\)"):
        read_header(str(path))


@pytest.mark.parametrize("kind", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_real_numbers(tmp_path, kind):
    path = write_nifti(tmp_path / "scan.nii", np.zeros((3, 4, 5), kind))
    with pytest.raises(ValueError, match="expected one real number a voxel"):
        read_header(str(path))


def test_affine_that_fixes_no_space(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header["srow_x"] = 0
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header.set_data_shape((3, 4, 5))
    path = tmp_path / "scan.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + bytes(60))
    with pytest.raises(ValueError, match="affine that maps voxels to no space"):
        read_header(str(path))


@pytest.mark.parametrize(("order", "slices"), [((0, 1, 2), 5), ((2, 0, 1), 4), ((1, 2, 0), 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_axial_slices_are_counted_along_the_axis_from_foot_to_head(order, slices, sign):
    affine = np.eye(4)
    affine[:3, :3] = sign * np.eye(3)[list(order)]  # row 2 of an affine is the position from foot to head
    assert axial_slices((3, 4, 5), affine) == slices


@pytest.mark.parametrize(
    ("codes", "moved", "told"), [((1, 1), 0.0, False), ((1, 1), 0.05, False), ((0, 1), 2.0, False), ((1, 1), 2.0, True)]
)
def test_qform_that_lies_elsewhere_than_the_sform_is_told(tmp_path, codes, moved, told):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
    affine = np.eye(4)
    affine[0, 3] = moved
    image.set_qform(affine, codes[0]), image.set_sform(np.eye(4), codes[1])
    nib.save(image, tmp_path / "scan.nii")
    assert ["lie up to 2 mm apart" in line for line in check_forms(str(tmp_path / "scan.nii"))] == [True] * told


def read(path):
    """Voxels and affine as inference reads them."""
    read_header(str(path))
    reader = ScanReader()
    voxels, meta = reader.get_data(reader.read(str(path)))
    return voxels, meta["affine"]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("offset", [0, 352])
def test_file_is_read_whatever_its_name_says_of_packing_and_its_header_of_where_voxels_begin(
    tmp_path, name, is_packed, offset
):
    voxels = np.random.default_rng(0).integers(-99, 999, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.set_slope_inter(0.5, 10)
    content = bytearray(image.to_bytes())
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    found, affine = read(tmp_path / name)
    np.testing.assert_allclose(found, voxels * 0.5 + 10)
    np.testing.assert_allclose(affine, AFFINE)


def test_file_of_another_kind_is_no_scan(tmp_path):
    surface = nib.GiftiImage()
    nib.save(surface, tmp_path / "surface.gii")
    with pytest.raises(ValueError, match="surface.gii holds no voxels on a grid"):
        load_volume(tmp_path / "surface.gii")


def test_volume_of_a_voxel_is_the_same_however_the_grid_is_turned():
    affine = np.array([[0, 2.0, 0, 7], [-1.5, 0, 0, -3], [0, 0, 4.0, 1], [0, 0, 0, 1]])
    assert voxel_ml(affine) == pytest.approx(2 * 1.5 * 4 / 1000)


@pytest.mark.parametrize(("size", "angle", "refused"), [(0.1, 90, False), (100.0, 90, False), (100.0, 0.05, True)])
def test_axes_of_any_voxel_size_fix_a_space_unless_they_lie_in_one_plane(tmp_path, size, angle, refused):
    affine = np.diag([size, size, size, 1.0])
    affine[:2, 1] = size * np.cos(np.deg2rad(angle)), size * np.sin(np.deg2rad(angle))
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.set_sform(affine, 1)
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "scan.nii")
    if refused:
        with pytest.raises(ValueError, match="affine that maps voxels to no space"):
            read_header(str(tmp_path / "scan.nii"))
    else:
        np.testing.assert_allclose(read_header(str(tmp_path / "scan.nii"))[1], affine, atol=1e-6)
