"""What the tests of lying and attacking input share: a time limit, what a user may be told, and a small model."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import CONFIGS
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.common.errors import innermost_message
from scripts.common.model_file import save_model
from scripts.data.scans import find_scans
from scripts.inference.volumes import Volumes
from scripts.method.default import ProbabilisticIterMask
from scripts.method.networks import ReconstructionUNet

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


def save_small_model(path):
    """Write the weights of a small network, with thresholds that part of the brain exceeds."""
    network = partial(
        ReconstructionUNet,
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        attention_levels=(1,),
        patch_size=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ProbabilisticIterMask(network, image_size=16, threshold=0.1)
    model.field_of_view.copy_(torch.tensor([14.0, 16.0]))
    save_model(model, path)
    return path


def brain(shape=(12, 14, 5), dtype=np.int16):
    """A scan: an ellipse of bright noise in 0."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) if n > 2 else np.zeros(n) for n in shape), indexing="ij")
    inside = sum(grid**2 for grid in grids) < 0.8
    return np.where(inside, np.random.default_rng(0).integers(100, 900, shape), 0).astype(dtype)


class Segmenter:
    """`inference.json` with its parts made once: what it does with one file, many times over."""

    def __init__(self, folder):
        self.output = Path(folder) / "out"
        model_file = save_small_model(Path(folder) / "model.pt")
        example = Path(folder) / "example.nii"
        nib.save(nib.Nifti1Image(brain(), np.eye(4)), example)
        options = {"image_size": 16, "image": str(example), "output_dir": str(self.output)}
        workflow = ConfigWorkflow(
            str(CONFIGS / "inference.json"), logging_file=False, model_file=str(model_file), **options
        )
        workflow.initialize()
        get = workflow.parser.get_parsed_content
        self.model_file = model_file
        self.preprocessing, self.postprocessing = get("preprocessing"), get("postprocessing")
        self.network, self.inferer = get("network"), get("inferer")
        self.inferer.progress = False

    def __call__(self, image, brain_mask=None):
        """Segment one file; gives the mask and the anomaly map as they were written, and removes them."""
        subjects = find_scans("", ["flair"], image=str(image), brain_mask=brain_mask)
        volumes = Volumes(subjects, str(self.output), str(self.model_file), {})
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(volumes.pending, self.preprocessing), batch_size=1),
            network=self.network,
            inferer=self.inferer,
            postprocessing=self.postprocessing,
            val_handlers=[volumes],
        )
        evaluator.logger.disabled = True
        volumes.run(evaluator)
        case = subjects[0]["case"]
        written = [nib.load(self.output / case / f"{case}_{name}.nii.gz") for name in ("anomaly_mask", "anomaly_map")]
        found = [(np.asanyarray(image.dataobj), image.affine) for image in written]
        for path in files_below(self.output):
            path.unlink()
        return found

    def check(self, image):
        """Segment a file: the two outputs lie in its space and hold what they should, or there is a sentence and none.

        Returns:
            The mask, or the sentence.
        """
        found, refusal = outcome(self, image)
        if refusal is not None:
            assert not files_below(self.output), files_below(self.output)
            return refusal
        source = nib.load(image)
        voxels = np.asanyarray(source.dataobj).reshape(source.shape[:3])
        for array, affine in found:
            assert array.shape == voxels.shape and np.isfinite(array).all()
            np.testing.assert_allclose(affine, source.affine, rtol=1e-3, atol=1e-3)
        (mask, _), (anomaly_map, _) = found
        assert set(np.unique(mask)) <= {0, 1} and (anomaly_map >= 0).all()
        assert not mask[voxels <= 0].any() and not anomaly_map[voxels <= 0].any()
        return mask
