"""Files of volumes: NIfTI and others, and what header and size tell, checked before voxels are used."""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from monai.data import ITKReader
from monai.utils import optional_import
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage

from ..method.volume import PLANES

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", *ITK_SUFFIXES)
LONGEST_HEADER = 1 << 16  # bytes of a .nrrd or .mha file
VOXELS_ELSEWHERE = rb"(?mi)^\s*(ElementDataFile\s*=(?!\s*LOCAL)|data ?file\s*:)"
SMALLEST_VOXEL, LARGEST_VOXEL = 0.1, 100.0  # mm
MOST_VOXELS = 2**30
LEAST_DETERMINANT = 1e-3  # of the directions of the axes: 1 where they are at right angles, 0 in one plane


def is_volume_name(name: str) -> bool:
    return name.endswith(VOLUME_SUFFIXES) and not name.startswith(".")


def one_of(files: Sequence[Path]) -> Path | None:
    """The one file of a list, or None where it is empty.

    Raises:
        ValueError: When there are two, naming them.
    """
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} are there for the same thing: keep one of them.")
    return files[0] if files else None


def find_volume(*stems: Path) -> Path | None:
    """The one file of a volume that has one of these paths without its suffix, or None.

    Raises:
        ValueError: When there are two, naming them.
    """
    return one_of([path for stem in stems for end in VOLUME_SUFFIXES if (path := Path(f"{stem}{end}")).is_file()])


def file_stem(path: str | os.PathLike) -> str:
    """The name of a file without the suffix of a volume, or without that of another format."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), Path(path).stem)


def open_packed(path: str) -> IO[bytes]:
    """Open a file to read what it holds, unpacked where its suffix says that it is packed."""
    return cast(IO[bytes], gzip.open(path)) if path.endswith((".gz", ".mgz")) else open(path, "rb")


def load_volume(path: str | os.PathLike) -> SpatialImage:
    """Open a file of voxels with an affine, in the coordinates of NIfTI (right, front, up).

    The voxels of NIfTI and ``.mgz`` are not read yet; those of formats that ITK reads are.

    Raises:
        ValueError: When it is another kind of file, or needs ITK, which is not installed.
    """
    if str(path).endswith(ITK_SUFFIXES):
        check_itk(path)
        reader = ITKReader()
        voxels, meta = reader.get_data(reader.read(path))
        return nib.Nifti1Image(voxels, np.asarray(meta["affine"]), dtype=voxels.dtype)
    image = nib.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError(f"{path} holds no voxels on a grid: give a NIfTI volume.")
    return image


def check_itk(path: str | os.PathLike) -> None:
    """Refuse a file that only ITK reads where that is not installed, and one that asks for more than its own voxels.

    Raises:
        ValueError: When ITK is missing, the voxels are in another file, or they are too many.
    """
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


def _check_size(path: str | os.PathLike, shape: Sequence[int]) -> None:
    if math.prod(shape) > MOST_VOXELS:
        raise ValueError(f"{path} has {math.prod(shape)} voxels, expected at most {MOST_VOXELS}: resample it.")


def content_size(image: SpatialImage) -> int:
    """Bytes of a NIfTI file, uncompressed, that its header announces."""
    return (
        int(cast(ArrayProxy, image.dataobj).offset) + math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    )


def _is_whole(path: str, image: SpatialImage) -> bool:
    """Whether a file holds all the voxels that its header announces; ITK itself refuses one that does not."""
    if path.endswith(ITK_SUFFIXES):
        return True
    expected = content_size(image)
    if not path.endswith((".gz", ".mgz")):
        return os.path.getsize(path) >= expected
    with open(path, "rb") as packed:
        packed.seek(-4, os.SEEK_END)
        if int.from_bytes(packed.read(4), "little") == expected % 2**32:  # the size that gzip notes at the end
            return True
    try:
        with open_packed(path) as file:
            size = 0
            while size < expected and (block := file.read(1 << 22)):
                size += len(block)
        return size >= expected
    except (OSError, EOFError):
        return False


def read_header(path: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (H, W, D) and affine (4, 4) of a volume, from its header.

    Raises:
        ValueError: When the file is no volume of a format that can be read, is cut short, or has an affine that fixes
            no space.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No file {path}: check its name in the datalist or `image`.")
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no file: give a NIfTI file.")
    if not str(path).endswith(VOLUME_SUFFIXES):
        raise ValueError(f"{path} has another ending than {', '.join(VOLUME_SUFFIXES)}: give a NIfTI file.")
    check_itk(path)
    try:
        image = load_volume(path)
        shape, affine = tuple(map(int, image.shape)), np.asarray(image.affine, dtype=float)
        whole, kind = _is_whole(path, image), image.get_data_dtype()
    except Exception as error:
        format_name = "NIfTI" if path.endswith(NIFTI_SUFFIXES) else Path(path).suffix
        raise ValueError(
            f"{path} is not a {format_name} file that can be read ({type(error).__name__}): export it again."
        ) from None
    if not whole:
        raise ValueError(f"{path} is cut short: it holds fewer voxels than its header says; copy it again.")
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


def check_forms(path: str, case: str) -> None:
    """Warn of a NIfTI file whose qform and sform lie apart by more than a tenth of a voxel anywhere.

    nibabel, and so this product, goes by the sform where it has a code; other viewers may go by the qform.
    """
    image = nib.load(path) if path.endswith(NIFTI_SUFFIXES) else None
    if (
        not isinstance(image, nib.Nifti1Image)
        or min(int(image.header[f"{form}_code"]) for form in ("qform", "sform")) < 1
    ):
        return
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.array(image.shape[:3]) - 1, 1]
    apart = np.linalg.norm((corners @ (image.get_qform() - image.get_sform()).T)[:, :3], axis=1).max()
    if apart > 0.1 * min(image.header.get_zooms()[:3]):
        logger.warning(
            f"{case}: qform and sform of {path} lie up to {apart:.3g} mm apart. The sform is used, and results carry "
            "both as they are; a viewer that goes by the other form shows scan and result alike, but elsewhere."
        )


def number_of_slices(shape: tuple[int, int, int], affine: np.ndarray, plane: str) -> int:
    orientation = nib.orientations.io_orientation(affine)
    return shape[int(np.flatnonzero(orientation[:, 0] == PLANES[plane][0])[0])]


def voxel_ml(affine: np.ndarray) -> float:
    """The volume of a voxel, however the grid is turned; ``affine`` (4, 4) in mm."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000
