"""What the tests of lying and attacking input share: a time limit, what a user may be told, and one way to read."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import CONFIGS
from monai.transforms import Compose, LoadImaged, Orientationd
from scripts.common.errors import innermost_message
from scripts.data.nifti import load_volume
from scripts.data.scans import find_scans
from scripts.data.transforms import BrainMaskd, ScaleBrainIntensityd, ScanReader

SCRIPTS = str(CONFIGS.parent / "scripts")
SECONDS = 60  # no input may take longer


@contextmanager
def time_limit(seconds=SECONDS):
    """End what hangs; also a system call that waits for ever."""

    def stop(number, frame):
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _innermost(error):
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    return error


def sentence(error):
    """The line that a user reads; fails where it is not a sentence that this project wrote."""
    first, text = _innermost(error), innermost_message(error)
    place = first.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    assert place is not None and place.tb_frame.f_code.co_filename.startswith(SCRIPTS), (type(first), text)
    assert isinstance(first, (ValueError, RuntimeError, OSError)) and text == " ".join(str(first).split()), text
    assert re.search(r"[:;] | must be ", text) and text[-1] in ".?" and "Traceback" not in text and len(text) < 2000, (
        text
    )
    return text


def outcome(call, *arguments, **options):
    """What a call gives and None, or None and the sentence of its error; nothing else passes, and no hang."""
    with time_limit():
        try:
            return call(*arguments, **options), None
        except AssertionError:
            raise
        except Exception as error:
            return None, sentence(error)


def files_below(folder):
    """The files in a folder and below, hidden ones too."""
    return sorted(path for path in Path(folder).rglob("*") if not path.is_dir())


def brain(shape=(12, 14, 5), dtype=np.int16):
    """A scan: an ellipse of bright noise in 0."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) if n > 2 else np.zeros(n) for n in shape), indexing="ij")
    inside = sum(grid**2 for grid in grids) < 0.8
    return np.where(inside, np.random.default_rng(0).integers(100, 900, shape), 0).astype(dtype)


@cache
def preparation():
    """What inference.json does with a scan before a network sees it, but for the brain's standardization."""
    steps = [
        LoadImaged(["image", "brain_mask"], ScanReader, ensure_channel_first=True, allow_missing_keys=True),
        Orientationd(["image", "brain_mask"], "RAS", labels=None, allow_missing_keys=True),
        BrainMaskd("image", "auto"),
        ScaleBrainIntensityd("image"),
    ]
    return Compose(steps)


def prepare(image):
    """Find and read a scan as inference does; gives what holds for any: finite voxels in the file's own space."""
    (scan,) = find_scans("", ["flair"], image=str(image))
    found = preparation()(scan)
    inverse = Orientationd("image", nib.aff2axcodes(load_volume(image).affine), labels=None)(found)["image"]
    source = load_volume(image)
    assert inverse.shape[1:] == source.shape[:3] and torch.isfinite(inverse).all()
    np.testing.assert_allclose(inverse.affine, source.affine, rtol=1e-3, atol=1e-3)
    brain_mask = found["brain_mask"].as_tensor()
    assert brain_mask.any() and (found["image"].as_tensor()[~brain_mask] == -3).all()
    return inverse.as_tensor()[0].numpy()


def check(image):
    """The scaled voxels of a file, or the sentence that says why there are none."""
    found, refusal = outcome(prepare, image)
    return found if refusal is None else refusal
