"""What the header and the size of a NIfTI file tell, checked before its voxels are read."""

from __future__ import annotations

import gzip
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage

from ..method.volume import PLANES

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SMALLEST_VOXEL, LARGEST_VOXEL = 0.1, 100.0  # mm
MOST_VOXELS = 2**30
LEAST_DETERMINANT = 1e-3  # of the directions of the axes: 1 where they are at right angles, 0 in one plane


def is_nifti_name(name: str) -> bool:
    return name.endswith(NIFTI_SUFFIXES) and not name.startswith(".")


def find_nifti(*stems: Path) -> Path | None:
    """The one NIfTI file that has one of these paths without its suffix, or None.

    Raises:
        ValueError: When there are two, naming them.
    """
    found = [path for stem in stems for suffix in NIFTI_SUFFIXES if (path := Path(f"{stem}{suffix}")).is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} are there for the same thing: keep one of them.")
    return found[0] if found else None


def file_stem(path: str | os.PathLike) -> str:
    """The name of a file without its NIfTI suffix, or without that of another format."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in NIFTI_SUFFIXES if name.endswith(suffix)), Path(path).stem)


def case_of(path: str | os.PathLike, modalities: Sequence[str]) -> str:
    """The case that a file belongs to: its name without suffix and modality."""
    name = file_stem(path)
    ending = next((f"_{modality}" for modality in modalities if name.endswith(f"_{modality}")), "")
    return name.removesuffix(ending) or name


def load_nifti(path: str | os.PathLike) -> SpatialImage:
    """Open a file of voxels with an affine; they are not read yet.

    Raises:
        ValueError: When it is another kind of file.
    """
    image = nib.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError(f"{path} holds no voxels on a grid: give a NIfTI volume.")
    return image


def content_size(image: SpatialImage) -> int:
    """Bytes of a NIfTI file, uncompressed, that its header announces."""
    return int(cast(ArrayProxy, image.dataobj).offset) + math.prod(image.shape) * image.get_data_dtype().itemsize


def _is_whole(path: str, image: SpatialImage) -> bool:
    """Whether a file holds all the voxels that its header announces."""
    expected = content_size(image)
    if not path.endswith(".gz"):
        return os.path.getsize(path) >= expected
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") == expected % 2**32:  # the size that gzip notes at the end
            return True
    try:
        with gzip.open(path) as file:
            size = 0
            while size < expected and (block := file.read(1 << 22)):
                size += len(block)
        return size >= expected
    except (OSError, EOFError):
        return False


def read_header(path: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (H, W, D) and affine (4, 4) of a NIfTI volume, from its header.

    Raises:
        ValueError: When the file is no NIfTI volume, is cut short, or has an affine that fixes no space.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No file {path}: check its name in the datalist or `image`.")
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no file: give a NIfTI file.")
    if not str(path).endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{path} has another ending than {' or '.join(NIFTI_SUFFIXES)}: give a NIfTI file.")
    try:
        image = load_nifti(path)
        shape, affine = tuple(image.shape), np.asarray(image.affine, dtype=float)
        whole, kind = _is_whole(path, image), image.get_data_dtype()
    except Exception as error:
        raise ValueError(
            f"{path} is not a NIfTI file that can be read ({type(error).__name__}): export it again."
        ) from None
    if not whole:
        raise ValueError(f"{path} is cut short: it holds fewer voxels than its header says; copy it again.")
    if kind.kind not in "biuf":
        raise ValueError(f"{path} holds voxels of type {kind}, expected one real number a voxel: export it again.")
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}, expected a volume (H, W, D): give one 3-D volume a file.")
    if math.prod(shape) > MOST_VOXELS:
        raise ValueError(f"{path} has {math.prod(shape)} voxels, expected at most {MOST_VOXELS}: resample it.")
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
    image = nib.load(path)
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
