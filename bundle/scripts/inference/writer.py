"""Writing results as NIfTI in the scan's own space, with the scan's own header."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import Orientation

from ..common.outputs import atomic
from ..data.nifti import NIFTI_SUFFIXES, load_volume

FIELDS_OF_SPACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"),
)


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer, but whole or not at all, with qform, sform, their codes and the units of the scan.

    A volume of one slice stays a volume. Viewers differ in which of the two forms they go by, so a result has both
    of its scan.
    """

    scan: str = ""

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = False, **kwargs: Any
    ) -> None:
        """Take a volume (1, H, W, D); its last axes stay, of whatever length and whatever is asked for."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the affine, and remember which scan it is of."""
        super().set_metadata(meta_dict, resample, **options)
        self.scan = str((meta_dict or {}).get("filename_or_obj", ""))

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write to a temporary file beside ``filename`` and put it in place."""
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **kwargs)
        copy_forms(self.scan, image)
        with atomic(filename) as temporary:
            nib.save(image, temporary)


def write_brain_mask(path: str | os.PathLike, brain_mask: MetaTensor, scan: str) -> None:
    """Write the brain mask of a scan in the scan's own space.

    Args:
        path: Where it goes.
        brain_mask: Brain voxels (1, H, W, D) in any order of the axes, with meta data.
        scan: The scan's file.
    """
    axes = "".join(nib.orientations.aff2axcodes(load_volume(scan).affine))
    oriented: Any = Orientation(axes, labels=None)(brain_mask)
    writer = AtomicNibabelWriter(output_dtype=np.uint8)
    writer.set_data_array(oriented)
    writer.set_metadata({"affine": oriented.affine, "filename_or_obj": scan}, resample=False)
    writer.write(path)


def copy_forms(scan: str, image: nib.Nifti1Image) -> None:
    """Give an image the qform, the sform, their codes and the units of a scan that lies in the same space.

    Args:
        scan: A NIfTI file; of another format, or in another space, the image keeps its affine in both forms.
        image: Changed in place.
    """
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    source = load_volume(scan) if scan.endswith(NIFTI_SUFFIXES) and os.path.isfile(scan) else None
    if not isinstance(source, nib.Nifti1Image) or source.shape[:3] != image.shape[:3]:
        return
    if np.allclose(source.affine, image.affine, atol=1e-3):
        for field in FIELDS_OF_SPACE:
            image.header[field] = source.header[field]
