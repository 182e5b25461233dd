"""Files of volumes: NIfTI and others, and what header and size tell, checked before voxels are used."""

from __future__ import annotations

import gzip
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from monai.data import ITKReader
from monai.utils import optional_import
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", *ITK_SUFFIXES)
GZIP = b"\x1f\x8b"  # how a packed file begins
POINTERS = (b"/annex/objects/", b"version https://git-lfs")  # how files begin whose content is not there yet
LONGEST_HEADER = 1 << 16  # bytes of a .nrrd or .mha file
VOXELS_ELSEWHERE = rb"(?mi)^\s*(ElementDataFile\s*=(?!\s*LOCAL)|data ?file\s*:)"
SMALLEST_VOXEL, LARGEST_VOXEL = 0.1, 100.0  # mm
MOST_VOXELS = 2**30
MOST_TRAILING = 1 << 20  # bytes behind the voxels of a file
LEAST_DETERMINANT = 1e-3  # of the directions of the axes: 1 where they are at right angles, 0 in one plane


def is_volume_name(name: str) -> bool:
    return name.endswith(VOLUME_SUFFIXES) and not name.startswith(".")


def file_stem(path: str | os.PathLike) -> str:
    """The name of a file without the suffix of a volume, or without that of another format."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), Path(path).stem)


def _is_packed(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file, or one of the first in a folder, is DICOM."""
    files = sorted(Path(path).iterdir())[:20] if os.path.isdir(path) else [Path(path)]
    for file in filter(Path.is_file, files):
        with suppress(OSError), open(file, "rb") as content:
            if content.read(132)[128:] == b"DICM":
                return True
    return False


def _open_content(path: str | os.PathLike) -> IO[bytes]:
    """Open a file to read what it holds, unpacked where it is packed, whatever its name says."""
    return cast(IO[bytes], gzip.open(path)) if _is_packed(path) else open(path, "rb")


def load_volume(path: str | os.PathLike) -> SpatialImage:
    """Open a file of voxels with an affine, in the coordinates of NIfTI (right, front, up).

    The voxels of NIfTI and ``.mgz`` are not read yet; those of formats that ITK reads are.

    Raises:
        ValueError: When it is another kind of file, or needs ITK, which is not installed.
    """
    if str(path).endswith(ITK_SUFFIXES):
        _check_itk(path)
        reader = ITKReader()
        voxels, meta = reader.get_data(reader.read(path))
        return nib.Nifti1Image(voxels, np.asarray(meta["affine"]), dtype=voxels.dtype)
    if str(path).endswith(NIFTI_SUFFIXES) and _is_packed(path) != str(path).endswith(".gz"):
        return _read_nifti(path)
    image = nib.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError(f"{path} holds no voxels on a grid: give a NIfTI volume.")
    if isinstance(image, nib.Nifti1Image) and not cast(ArrayProxy, image.dataobj).offset:
        return _read_nifti(path)
    return image


def _read_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """Read a NIfTI file whose name does not tell whether it is packed, or whose voxels would begin at byte 0.

    Old writers leave ``vox_offset`` at 0, by which others mean that the voxels follow the header.
    """
    with _open_content(path) as file:
        header = nib.Nifti1Header.from_fileobj(file)
        _check_size(path, header.get_data_shape())
        if not header.get_data_offset():
            header.set_data_offset(header.single_vox_offset)
        return nib.Nifti1Image(header.data_from_fileobj(file), header.get_best_affine(), header)


def _check_itk(path: str | os.PathLike) -> None:
    """Refuse a file that only ITK reads where that is not installed, and one that asks for more than its own voxels."""
    if not str(path).endswith(ITK_SUFFIXES):
        return
    itk, found = optional_import("itk")
    if not found:
        raise ValueError(
            f"{path} needs ITK, which is not installed: run pip install -r requirements-formats.txt (itk-io), or "
            "convert the file to NIfTI."
        )
    with open(path, "rb") as file:
        if re.search(VOXELS_ELSEWHERE, file.read(LONGEST_HEADER)):
            raise ValueError(f"{path} keeps its voxels in another file: put both in one, or convert them to NIfTI.")
    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is not None:  # else reading it will fail
        header.SetFileName(str(path))
        with suppress(RuntimeError):
            header.ReadImageInformation()
            _check_size(path, [header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions())])


def _check_size(path: str | os.PathLike, shape: tuple[int, ...] | list[int]) -> None:
    if math.prod(map(int, shape)) > MOST_VOXELS:
        raise ValueError(f"{path} has {math.prod(shape)} voxels, expected at most {MOST_VOXELS}: resample it.")


def with_content(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Read all that a file holds, so that gzip compares its checksum, at the end, which nibabel never reaches.

    The affine too is that of the file: where qform, sform and voxel size disagree, MONAI has changed it.

    Raises:
        ValueError: When the file is cut short or damaged, or holds far more than its header announces.
    """
    path = image.get_filename()
    if path is None:  # read whole already
        return image
    voxels = math.prod(map(int, image.shape))
    size = int(cast(ArrayProxy, image.dataobj).offset) + voxels * image.get_data_dtype().itemsize
    try:
        with _open_content(path) as file:
            whole = image.from_bytes(file.read(size))
            array = np.ascontiguousarray(whole.dataobj)
            trailing = len(file.read(MOST_TRAILING))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again, or exclude the case.") from None
    if trailing == MOST_TRAILING:
        raise ValueError(f"{path} holds far more than the voxels that its header announces: export it again.")
    kind = type(image) if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image  # of .mgz
    return kind(array, whole.affine, image.header)


def _check_file(path: str) -> None:
    """Refuse what is no file of a known kind, or whose content is not there."""
    get = "run `datalad get` (or `git annex get`, `git lfs pull`) for it"
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} is a link whose content is not there: {get}, or mend the link.")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"No file {path}: check its name in the datalist, or give files as `image` and `brain_mask`."
        )
    if is_dicom(path):
        raise ValueError(f"{path} is DICOM: convert the series to NIfTI first, such as by dcm2niix.")
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no file: give a NIfTI file.")
    if not path.endswith(VOLUME_SUFFIXES):
        raise ValueError(f"{path} has another ending than {', '.join(VOLUME_SUFFIXES)}: convert it to NIfTI.")
    with open(path, "rb") as file:
        if file.read(32).startswith(POINTERS):
            raise FileNotFoundError(f"{path} only names its content, which is not there: {get}.")


def read_header(path: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (H, W, D) and affine (4, 4) of a volume, from its header.

    Raises:
        FileNotFoundError: When there is no such file, or its content is not there.
        ValueError: When the file is no volume of a format that can be read, or has an affine that fixes no space.
    """
    _check_file(path)
    _check_itk(path)
    try:
        image = load_volume(path)
        shape, affine = tuple(map(int, image.shape)), np.asarray(image.affine, dtype=float)
        kind = image.get_data_dtype()
    except Exception as error:
        format_name = "NIfTI" if path.endswith(NIFTI_SUFFIXES) else Path(path).suffix
        raise ValueError(
            f"{path} is not a {format_name} file that can be read ({type(error).__name__}): export it again."
        ) from None
    if kind.kind not in "biuf":
        raise ValueError(f"{path} holds voxels of type {kind}, expected one real number a voxel: export it again.")
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}, expected a volume (H, W, D): give one 3-D volume a file.")
    _check_size(path, shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    with np.errstate(all="ignore"):
        determinant = abs(np.linalg.det(affine[:3, :3] / spacing))
    if not np.isfinite(affine).all() or not determinant >= LEAST_DETERMINANT:
        raise ValueError(
            f"{path} has an affine that maps voxels to no space (singular or not finite): repair its header."
        )
    if spacing.min() < SMALLEST_VOXEL or spacing.max() > LARGEST_VOXEL:
        raise ValueError(
            f"{path} has voxels of {' x '.join(f'{mm:.3g}' for mm in spacing)} mm, expected {SMALLEST_VOXEL:g} to "
            f"{LARGEST_VOXEL:g} mm: repair its header."
        )
    return shape, affine


def check_forms(path: str) -> list[str]:
    """What is to be said of a NIfTI file whose qform and sform lie apart by more than a tenth of a voxel anywhere.

    nibabel, and so this product, goes by the sform where it has a code; other viewers may go by the qform.
    """
    image = load_volume(path) if path.endswith(NIFTI_SUFFIXES) else None
    if not isinstance(image, nib.Nifti1Image) or not image.header["qform_code"] > 0 < image.header["sform_code"]:
        return []
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.array(image.shape[:3]) - 1, 1]
    apart = np.linalg.norm((corners @ (image.get_qform() - image.get_sform()).T)[:, :3], axis=1).max()
    if apart <= 0.1 * min(image.header.get_zooms()[:3]):
        return []
    return [
        f"qform and sform of {path} lie up to {apart:.3g} mm apart. The sform is used, and results carry both as they "
        "are; a viewer that goes by the other form shows scan and result alike, but elsewhere."
    ]


def axial_slices(shape: tuple[int, int, int], affine: np.ndarray) -> int:
    """The number of voxels along the axis from foot to head."""
    return shape[int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])]


def voxel_ml(affine: np.ndarray) -> float:
    """The volume of a voxel, however the grid is turned; ``affine`` (4, 4) in mm."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000
