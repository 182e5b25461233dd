"""Put small faults into the bundle, one at a time, and see whether the tests notice: ``python tests/mutations.py``.

Each fault of the table is a slip that a programmer could make: a sign, a swapped axis, a forgotten brain mask, a file
that is not written atomically. For each one the repository is copied to a temporary folder, the fault is put in, and
the tests of its entry run there until one fails. The table tells which test noticed, or that the fault SURVIVED: then
a test is missing. Before that, the same tests must pass without any fault.

    python tests/mutations.py                           # all, about 10 minutes on one free core
    python tests/mutations.py --only mirrored-axis stale-average --jobs 2

The exit code is 0 when at least 90 % are noticed, 1 when fewer are, and 2 when nothing could be measured. It may be
interrupted at any time; nothing is left behind. A fault whose text no longer occurs needs its entry updated.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv", "__pycache__", ".*_cache", "demo", "runs", "dist")
PRELOADED = ["pytest", "scipy.ndimage", "torch.utils.tensorboard", "monai.bundle", "monai.engines", "monai.handlers"]
WANTED = 0.9


class Fault(NamedTuple):
    """One slip: the text ``old``, which a module of bundle/scripts holds once, becomes ``new``.

    ``tests`` are those that should notice, with a space between them: names of test files without "test_" and ".py",
    or such a name, "::" and the name of a test.
    """

    name: str
    module: str
    old: str
    new: str
    tests: str


RESUMED = "training::test_interrupted_training_resumes_to_the_same_weights"
FAULTS = [
    # The published method
    Fault(
        "unhide-what-is-wrong",
        "itermask",
        "hidden & (score > threshold)",
        "hidden & (score < threshold)",
        "itermask reference",
    ),
    Fault("one-noise-for-all-passes", "itermask", "seed + 1 + iteration", "seed + 1", "scoring"),
    Fault(
        "noise-without-seed",
        "itermask",
        "    generator.manual_seed(seed)\n",
        "    generator.seed()\n",
        "itermask",
    ),
    Fault("one-pass-too-many", "itermask", "range(max_passes)", "range(max_passes + 1)", "scoring"),
    Fault(
        "fill-what-is-visible",
        "itermask",
        "torch.where(spatial_mask, filling.expand_as(image), image)",
        "torch.where(spatial_mask, image, filling.expand_as(image))",
        "itermask",
    ),
    Fault(
        "threshold-scale-ignored",
        "itermask",
        "float(self.refining_threshold()) * threshold_scale",
        "float(self.refining_threshold())",
        "itermask",
    ),
    Fault("stop-when-nothing-moves", "itermask", ">= stop_shrink * size", "> stop_shrink * size", "itermask inference"),
    Fault(
        "last-small-shrink-applied",
        "itermask",
        "spatial_mask[part[moved]] = refined[moved]",
        "spatial_mask[part] = refined",
        "itermask reference",
    ),
    Fault(
        "first-mask-is-the-rest",
        "itermask",
        "brain_mask, self.first_fraction)",
        "brain_mask, 1 - self.first_fraction)",
        "itermask",
    ),
    Fault(
        "channels-in-other-order",
        "itermask",
        "[hide(image, spatial_mask, noise), context]",
        "[context, hide(image, spatial_mask, noise)]",
        "itermask reference",
    ),
    Fault(
        "context-of-other-slices", "itermask", "context[row[part]], noise)", "context[: len(part)], noise)", "itermask"
    ),
    # The default method
    Fault(
        "residual-of-other-sign",
        "probabilistic",
        "image - prediction[:, : self.modalities]",
        "prediction[:, : self.modalities] - image",
        "probabilistic",
    ),
    Fault(
        "variance-for-deviation",
        "probabilistic",
        "torch.exp(-0.5 * log_variance)",
        "torch.exp(-log_variance)",
        "probabilistic",
    ),
    Fault(
        "mirrored-axis",
        "probabilistic",
        "combined.flip(2), brain_mask.flip(2)",
        "combined.flip(3), brain_mask.flip(3)",
        "probabilistic scoring",
    ),
    Fault("mirrored-dark-added", "probabilistic", "mirrored.clamp(min=0)", "mirrored", "scoring"),
    Fault("deviation-not-normal", "probabilistic", "1.4826 * (", "1.0 * (", "probabilistic"),
    Fault("clip-other-way-round", "probabilistic", "clamp(-6.0, 8.0)", "clamp(-8.0, 6.0)", "scoring"),
    Fault(
        "median-of-the-whole-slice",
        "probabilistic",
        'image.masked_fill(~brain_mask, float("nan"))',
        "image",
        "probabilistic",
    ),
    Fault(
        "hysteresis-4-neighbors",
        "probabilistic",
        "return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]",
        "return rows[..., 1:-1] | padded[:, :, 1:-1, :-2] | padded[:, :, 1:-1, 2:]",
        "probabilistic",
    ),
    Fault(
        "areas-grow-by-four-pixels",
        "probabilistic",
        "growing = growing[(grown != before).flatten(1).any(dim=1)]",
        "growing = growing[:0]",
        "probabilistic",
    ),
    Fault(
        "union-counts-twice",
        "probabilistic",
        "(size[:, None] + size[None, :] - both)",
        "(size[:, None] + size[None, :])",
        "probabilistic scoring",
    ),
    Fault(
        "score-weights-not-one",
        "probabilistic",
        "(1 - self.score_weights[2]) * first_score",
        "first_score",
        "scoring",
    ),
    Fault(
        "blind-score-in-clear-deviations",
        "probabilistic",
        "blind / self.deviations[1]",
        "blind / self.deviations[0]",
        "scoring",
    ),
    Fault(
        "last-score-not-in-deviations",
        "probabilistic",
        "return score / self.deviations[0], ",
        "return score, ",
        "probabilistic scoring",
    ),
    Fault(
        "first-mask-ignores-the-scale",
        "probabilistic",
        "self.first_threshold * threshold_scale",
        "self.first_threshold",
        "scoring",
    ),
    Fault(
        "upper-threshold-ignores-the-scale",
        "probabilistic",
        "float(self.certain_threshold) * threshold_scale",
        "float(self.certain_threshold)",
        "scoring",
    ),
    Fault(
        "smoothed-beyond-what-is-hidden",
        "probabilistic",
        "prediction), spatial_mask, self.sigma",
        "prediction), brain_mask, self.sigma",
        "probabilistic",
    ),
    Fault(
        "reconstruction-too-flat",
        "probabilistic",
        "return standard, 3 * deviation, median",
        "return standard, deviation, median",
        "scoring",
    ),
    Fault(
        "blind-noise-too-strong",
        "probabilistic",
        "filling = self.noise_deviation * noise",
        "filling = noise",
        "scoring",
    ),
    # Scores, masks, frequencies
    Fault(
        "wide-gaussian", "scores", "-0.5 * (distance / sigma)", "-0.25 * (distance / sigma)", "itermask probabilistic"
    ),
    Fault("border-fades", "scores", "smooth / mass.clamp(min=least_mass)", "smooth", "itermask"),
    Fault("background-leaks-in", "scores", "[image * weight, weight]", "[image, weight]", "itermask metrics"),
    Fault(
        "error-grows-with-modalities",
        "scores",
        ".square().mean(dim=1, keepdim=True)",
        ".square().sum(dim=1, keepdim=True)",
        "itermask",
    ),
    Fault("tie-is-marked", "masks", "score > cut", "score >= cut", "masks"),
    Fault("rank-off-by-one", "masks", "(1 - fraction) * (count - 1)", "(1 - fraction) * count", "masks"),
    Fault("mostly-whole-brains", "masks", "< whole_brain_fraction", "> whole_brain_fraction", "masks"),
    Fault("center-of-other-width", "masks", "(center % width)", "(center % height)", "corruption"),
    Fault("mostly-narrow-squares", "masks", "< 2 / 3", "< 1 / 3", "masks corruption"),
    Fault("squares-leave-the-brain", "masks", "hidden & brain_mask", "hidden", "masks corruption"),
    Fault(
        "coarse-grid-never-shifted",
        "masks",
        "field[..., top : top + height, left : left + width]",
        "field[..., :height, :width]",
        "corruption",
    ),
    Fault("radius-inclusive", "frequency", ".sqrt() < radius", ".sqrt() <= radius", "frequency reference"),
    Fault(
        "spectrum-shifted",
        "frequency",
        "torch.fft.fftfreq(height, 1 / height, device=image.device)",
        "torch.fft.fftshift(torch.fft.fftfreq(height, 1 / height, device=image.device))",
        "frequency",
    ),
    Fault("ellipse-for-disc", "frequency", "fftfreq(width, 1 / width", "fftfreq(width, 1 / height", "frequency"),
    # Networks
    Fault("query-for-key", "networks", "query, key, value = self", "key, query, value = self", "reference"),
    Fault(
        "skip-first",
        "networks",
        "torch.cat([features, skips.pop()]",
        "torch.cat([skips.pop(), features]",
        "reference",
    ),
    Fault(
        "norm-after-activation",
        "networks",
        "F.silu(self.norm2(hidden))",
        "self.norm2(F.silu(hidden))",
        "reference",
    ),
    Fault("size-without-patches", "networks", "self.size_factor = patch_size * ", "self.size_factor = ", "scoring"),
    # Calibration
    Fault(
        "quantile-of-the-rest",
        "calibration",
        "int((1 - fraction)",
        "int((fraction)",
        "training::test_threshold_is_exceeded_by_the_asked_fraction",
    ),
    Fault(
        "quantile-off-by-one",
        "calibration",
        "kthvalue(rank + 1)",
        "kthvalue(max(rank, 1))",
        "training::test_threshold_is_exceeded_by_the_asked_fraction",
    ),
    Fault(
        "threshold-not-kept",
        "calibration",
        "    model.threshold.fill_(threshold)\n",
        "",
        "training::test_training_ends_with_both_networks_and_a_threshold",
    ),
    Fault(
        "errors-outside-the-brain",
        "calibration",
        "hidden = spatial_mask & brain_mask",
        "hidden = spatial_mask",
        "reference",
    ),
    Fault("variance-of-healthy-scores", "calibration", "values.std() if", "values.var() if", "scoring"),
    Fault(
        "calibrated-in-training-mode",
        "calibration",
        "    model.eval()\n    device = model.threshold.device\n    slices",
        "    device = model.threshold.device\n    slices",
        "probabilistic scoring",
    ),
    Fault(
        "calibration-overwrites",
        "calibration",
        "save_model(model, output_file or model_file)",
        "save_model(model, model_file)",
        "trainer",
    ),
    Fault("pickles-are-run", "files", "weights_only=True", "weights_only=False", "training::TestLoadModel"),
    Fault(
        "newest-weights-for-best",
        "calibration",
        "    model.load_state_dict(checkpoint.best_weights, strict=False)\n",
        "",
        "trainer",
    ),
    Fault(
        "field-of-view-transposed",
        "calibration",
        "torch.tensor(field_of_view)",
        "torch.tensor(field_of_view[::-1])",
        "trainer",
    ),
    Fault(
        "model-file-not-atomic",
        "calibration",
        "save_tensors(model_file, {",
        "(lambda path, content: torch.save(content, path))(model_file, {",
        "files",
    ),
    # Training
    Fault(
        "stale-average",
        "training",
        "max(momentum, 10",
        "min(momentum, 10",
        "training::test_average_starts_fast_and_ends_at_its_momentum",
    ),
    Fault(
        "average-of-itself",
        "training",
        "update_parameters(self.network)",
        "update_parameters(self.averaged.module)",
        "trainer",
    ),
    Fault(
        "dropout-without-seed",
        "training",
        "        torch.manual_seed(self.seed * 1_000_003 + engine.state.iteration + rank_seed)\n",
        "",
        "trainer",
    ),
    Fault(
        "same-masks-every-iteration",
        "training",
        "self.prepare_batch.iteration = engine.state.iteration",
        "self.prepare_batch.iteration = 1",
        "trainer",
    ),
    Fault(
        "resume-from-the-first-slice",
        "training",
        "self.sampler.iteration = engine.state.iteration",
        "self.sampler.iteration = 0",
        RESUMED,
    ),
    Fault(
        "resume-loses-the-scheduler",
        "training",
        "for name, target in self.save_dict.items():",
        "for name, target in list(self.save_dict.items())[:2]:",
        RESUMED,
    ),
    Fault(
        "resume-loses-the-average",
        "training",
        'self.ema.load_state_dict(checkpoint["ema"])',
        'self.ema.module.load_state_dict(checkpoint["network"])',
        RESUMED,
    ),
    Fault(
        "resume-forgets-the-best",
        "training",
        'self.best_metric, self.best_weights = checkpoint["best_metric"], checkpoint["best_weights"]',
        'self.best_weights = checkpoint["best_weights"]',
        "trainer",
    ),
    Fault("best-is-the-last", "training", "if metric < self.best_metric:", "if True:", "trainer"),
    Fault("best-weights-move-on", "training", ".detach().cpu().clone()", ".detach().cpu()", "trainer"),
    Fault(
        "checkpoint-not-atomic",
        "training",
        "save_tensors(self.path, content)",
        "torch.save(content, self.path)",
        "files",
    ),
    Fault("sigterm-ignored", "training", "(signal.SIGINT, signal.SIGTERM)", "(signal.SIGINT,)", RESUMED),
    Fault(
        "slices-in-one-order",
        "training",
        "+ shuffled_pass)",
        ")",
        "training::test_stream_visits_every_slice_once_before_any_again_and_can_be_entered_anywhere",
    ),
    Fault("background-counts-in-the-loss", "training", "(brain - hidden)", "(1 - hidden)", "corruption"),
    Fault("sure-pixels-drown-the-rest", "training", ".exp().clamp(max=1)", ".exp().clamp(min=1)", "corruption"),
    Fault("mean-learns-from-likelihood", "training", "error.detach() *", "error *", "corruption"),
    Fault("noise-three-times-too-strong", "training", "* draw[0]) / 3 *", "* draw[0]) *", "corruption"),
    Fault(
        "mostly-pure-noise",
        "training",
        "draw[1] < self.noise_fraction",
        "draw[1] > self.noise_fraction",
        "corruption",
    ),
    Fault(
        "uniform-noise", "training", "noise = torch.randn(image.shape", "noise = torch.rand(image.shape", "corruption"
    ),
    Fault(
        "gradients-clipped-too-late",
        "training",
        "IterationEvents.BACKWARD_COMPLETED",
        "IterationEvents.MODEL_COMPLETED",
        "trainer",
    ),
    Fault(
        "infinite-loss-goes-on",
        "training",
        'if not torch.isfinite(engine.state.output["loss"])',
        'if torch.isnan(engine.state.output["loss"])',
        "trainer",
    ),
    # Augmentation
    Fault(
        "front-and-back-flipped",
        "augmentation",
        "[cosine, -sine, rows], dim=1), torch.stack([flip * sine, flip * cosine, columns]",
        "[flip * cosine, -flip * sine, rows], dim=1), torch.stack([sine, cosine, columns]",
        "probabilistic corruption",
    ),
    Fault("degrees-for-radians", "augmentation", " * (math.pi / 180)", "", "corruption"),
    Fault(
        "brain-mask-stays",
        "augmentation",
        'F.grid_sample(brain_mask.to(image.dtype), grid, mode="nearest", align_corners=False) > 0.5',
        "brain_mask",
        "probabilistic corruption",
    ),
    # Scans and slices
    Fault("brain-in-all-modalities", "transforms", "(image > 0).any(dim=0", "(image > 0).all(dim=0", "transforms"),
    Fault("scaled-by-the-upper-alone", "transforms", "/ (upper - lower)", "/ upper", "transforms"),
    Fault("finite-and-finite", "transforms", "image.sum()) or ", "image.sum()) and ", "transforms"),
    Fault("each-on-its-own-grid", "transforms", "images[0].affine", "image.affine", "transforms"),
    Fault("one-slice-too-many", "preprocessing", "range(first, last)", "range(first, last + 1)", "preprocessing"),
    Fault(
        "slices-of-other-axis", "preprocessing", "(0, brain_mask.shape[2])", "(0, brain_mask.shape[0])", "preprocessing"
    ),
    Fault(
        "small-brain-excluded",
        "preprocessing",
        ">= smallest_brain_fraction",
        "> smallest_brain_fraction",
        "geometry",
    ),
    Fault(
        "position-without-offset",
        "preprocessing",
        "affine[2, 2] * k + affine[2, 3]",
        "affine[2, 2] * k",
        "geometry",
    ),
    Fault(
        "spacing-of-other-axes",
        "preprocessing",
        "affine_to_spacing(affine)[:2]",
        "affine_to_spacing(affine)[1:]",
        "geometry",
    ),
    Fault(
        "selection-not-in-the-record",
        "preprocessing",
        '{**settings, "selection": item["selection"]}',
        "{**settings}",
        "preprocessing",
    ),
    Fault(
        "range-excludes-the-end", "data", "slice_range[1] > slices", "slice_range[1] >= slices", "data preprocessing"
    ),
    Fault("axial-is-coronal", "data", "orientation[:, 0] == 2", "orientation[:, 0] == 1", "data"),
    Fault(
        "file-one-byte-longer", "data", "os.path.getsize(path) >= expected", "os.path.getsize(path) > expected", "data"
    ),
    Fault("modalities-in-any-order", "data", "list(modalities) != found", "set(modalities) != set(found)", "geometry"),
    Fault(
        "highest-is-the-last",
        "data",
        "(min(positions), max(positions))",
        "(positions[0], positions[-1])",
        "geometry",
    ),
    # Inference
    Fault("window-off-center", "inferers", "found.max() + 1 - length", "found.max() - length", "inference"),
    Fault("padded-with-zeros", "inferers", "value=min(0.0, float(volume[:-1].min()))", "value=0.0", "geometry"),
    Fault("nearest-is-one-sided", "inferers", 'mode="nearest-exact") > 0.5', 'mode="nearest") > 0.5', "geometry"),
    Fault(
        "mask-outside-the-brain",
        "inferers",
        'F.interpolate(mask.float(), size, mode="nearest-exact") * brain_mask',
        'F.interpolate(mask.float(), size, mode="nearest-exact")',
        "geometry",
    ),
    Fault("areas-of-4-neighbors", "inferers", "connectivity=2", "connectivity=1", "inference"),
    Fault("just-large-enough-dropped", "inferers", "least_pixels - 0.5", "least_pixels + 0.5", "inference"),
    Fault("no-room-below-the-planes", "inferers", "positions < low - FAR_FROM_PLANES", "positions < low", "inference"),
    Fault(
        "changed-scan-not-noticed",
        "inference",
        "os.stat(path).st_size, os.stat(path).st_mtime_ns",
        "os.stat(path).st_size",
        "records",
    ),
    Fault("new-weights-not-noticed", "inference", '{"model_sha256": digest, **settings}', "{**settings}", "records"),
    Fault(
        "nifti-not-atomic",
        "inference",
        "with atomic(filename) as temporary:",
        "for temporary in [filename]:",
        "files",
    ),
    # Evaluation
    Fault(
        "lesions-are-false-positives",
        "evaluation",
        "(sample.pred_mask & healthy).sum()",
        "(sample.pred_mask & sample.brain_mask).sum()",
        "case_scores",
    ),
    Fault(
        "lesions-in-the-healthy-ssim",
        "evaluation",
        "healthy = sample.brain_mask & ~sample.label\n    used",
        "healthy = sample.brain_mask\n    used",
        "case_scores",
    ),
    Fault(
        "marked-outside-the-brain",
        "evaluation",
        "marked = sample.pred_mask & sample.brain_mask",
        "marked = sample.pred_mask",
        "case_scores",
    ),
    Fault(
        "lesion-size-of-all-slices",
        "evaluation",
        "float(lesion_pixels.max())",
        "float(lesion_pixels.sum())",
        "evaluation",
    ),
    Fault("slices-without-brain-count", "evaluation", ".amax(dim=1)[with_brain]", ".amax(dim=1)", "case_scores"),
    Fault("equal-to-the-threshold", "metrics", 'side="left"', 'side="right"', "metrics"),
    Fault("fraction-exclusive", "metrics", "predicted <= fraction", "predicted < fraction", "case_scores"),
    Fault("dice-halved", "metrics", "2 * np.asarray(true_positives)", "np.asarray(true_positives)", "metrics"),
    Fault("nothing-marked-is-undefined", "metrics", "predicted, missing)", "predicted, np.nan)", "metrics"),
    Fault("interval-of-90-percent", "metrics", "[2.5, 97.5]", "[5, 95]", "case_scores"),
    Fault("bootstrap-without-seed", "metrics", "default_rng(seed)", "default_rng()", "metrics"),
    Fault(
        "size-classes-overlap", "summaries", "(lesion_pixels_128 < high)", "(lesion_pixels_128 <= high)", "case_scores"
    ),
    Fault(
        "difference-of-other-sign",
        "summaries",
        "dice[METHOD][members] - values[members]",
        "values[members] - dice[METHOD][members]",
        "evaluation",
    ),
    Fault(
        "precision-of-one-case",
        "summaries",
        "average_precision(*counts.sum(axis=0), ",
        "average_precision(*counts[0], ",
        "case_scores",
    ),
    Fault(
        "threshold-of-the-neighbor",
        "summaries",
        "np.searchsorted(thresholds, threshold)",
        'np.searchsorted(thresholds, threshold, side="right")',
        "evaluation",
    ),
    Fault(
        "sigma-of-any-grid",
        "baselines",
        "self.sigma * max(image.shape[-2:]) / REFERENCE_SIZE",
        "self.sigma",
        "case_scores",
    ),
    Fault("atlas-outside-the-brain", "baselines", "/ self.deviation * brain_mask", "/ self.deviation", "case_scores"),
    Fault("atlas-square-for-variance", "baselines", " - self.mean.square()", "", "case_scores"),
    # Files, errors, exports
    Fault(
        "written-in-place",
        "files",
        '        yield temporary\n        with temporary.open("rb+") as file:\n            os.fsync(file.fileno())\n'
        "        os.replace(temporary, path)\n",
        "        yield path\n",
        "files",
    ),
    Fault(
        "temporary-file-left",
        "files",
        "        with suppress(OSError):\n            temporary.unlink()",
        "        pass",
        "files",
    ),
    Fault(
        "traceback-for-everyone",
        "errors",
        "elif os.environ.get(",
        "elif not os.environ.get(",
        "preprocessing inference",
    ),
    Fault("suppressed-is-the-cause", "errors", "not error.__suppress_context__", "True", "errors"),
    Fault("false-is-a-text", "errors", 'value in ("true", "false")', 'value in ("true",)', "errors"),
    Fault(
        "not-a-number-is-close",
        "export",
        "if not difference <= TOLERANCE",
        "if difference > TOLERANCE",
        "release::test_network_whose_output_is_no_number_is_not_written",
    ),
    Fault(
        "release-of-leftovers",
        "release",
        '"scripts/*.py"',
        '"scripts/*"',
        "release::test_same_files_give_the_same_bytes",
    ),
    Fault(
        "release-without-weights",
        "release",
        ', "models/model.pt")\nOLDEST',
        ")\nOLDEST",
        "release::test_release_without_weights_is_refused",
    ),
]


def source_of(fault: Fault, root: Path = ROOT) -> Path:
    """The module that a fault goes into."""
    return root / "bundle" / "scripts" / f"{fault.module}.py"


def stale(fault: Fault) -> str:
    """What is wrong with the entry of a fault; empty when its text occurs once."""
    number = source_of(fault).read_text(encoding="utf-8").count(fault.old)
    if number == 1:
        return ""
    return f"{fault.name}: {fault.old!r} occurs {number} times in {fault.module}.py, expected once: update the entry."


def selection(faults: Sequence[Fault]) -> list[str]:
    """The tests of some faults as pytest takes them, each once."""
    names = dict.fromkeys(name for fault in faults for name in fault.tests.split())
    files = [name for name in names if "::" not in name]
    single = [name for name in names if "::" in name and name.partition("::")[0] not in files]
    return [f"tests/test_{file}.py{colons}{test}" for file, colons, test in (n.partition("::") for n in files + single)]


def run_pytest(folder: Path, tests: Sequence[str]) -> None:
    """Become pytest in the copy ``folder/repository``; what it prints goes to ``folder/output.txt``."""
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    os.chdir(folder / "repository")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder / "temporary"), None
    multiprocessing.set_start_method(None, force=True)  # as in a process that nobody forked
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(ROOT)]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def run_tests(folder: Path, tests: Sequence[str], limit: float, stop: threading.Event) -> tuple[int | None, str]:
    """Run tests in the copy ``folder/repository`` until one fails.

    Args:
        folder: Holds the copy, and gets all that the tests write.
        tests: What pytest is to run.
        limit: Seconds after which it is ended.
        stop: Ends it at once.

    Returns:
        pytest's exit code, or None when it was ended, and what it printed.
    """
    (folder / "temporary").mkdir()
    (folder / "output.txt").touch()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run_pytest, args=(folder, tests))
    process.start()
    deadline = time.monotonic() + limit
    try:
        while process.is_alive() and not stop.is_set() and time.monotonic() < deadline:
            process.join(0.5)
        code = process.exitcode
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    return code, (folder / "output.txt").read_text()


def try_fault(fault: Fault | None, tests: Sequence[str], limit: float, stop: threading.Event) -> tuple[str, float, str]:
    """Run tests in a copy of the repository with a fault, or with none.

    Returns:
        The test that failed, "time limit", "SURVIVED", or "BROKEN" when no test ran; the seconds it took; what pytest
        printed.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation_", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT, folder / "repository", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if fault is not None:
            source = source_of(fault, folder / "repository")
            source.write_text(source.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        code, output = run_tests(folder, tests, limit, stop)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    outcome = {None: "time limit", 0: "SURVIVED", 1: failed[1] if failed else "?"}.get(code, "BROKEN")
    return outcome, time.monotonic() - start, output


def measure(faults: Sequence[Fault], jobs: int, limit: float) -> int:
    """Try all faults, print the table, and give the exit code."""
    stop, outcomes = threading.Event(), {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            tests = selection(faults)
            whole = pool.submit(try_fault, None, tests, limit * 2, stop)
            outcome, seconds, output = whole.result()
            if outcome != "SURVIVED":
                print(f"{output[-3000:]}\nNothing was measured: without any fault {outcome} fails. Mend that first.")
                return 2
            print(f"Without any fault all tests pass ({seconds:.0f} s).", flush=True)
            runs = {pool.submit(try_fault, fault, selection([fault]), limit, stop): fault for fault in faults}
            for run in as_completed(runs):
                fault, (outcome, seconds, _) = runs[run], run.result()
                outcomes[fault.name] = outcome
                print(f"{fault.module:14} {fault.name:36} {seconds:5.0f} s  {outcome}", flush=True)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    missed = [name for name, outcome in outcomes.items() if outcome in ("SURVIVED", "BROKEN")]
    share = 1 - len(missed) / len(outcomes)
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} faults were noticed: {share:.1%}")
    if missed:
        print(f"Missed: {' '.join(missed)} (SURVIVED: add a test; BROKEN: the tests could not start, change the fault)")
    return 0 if share >= WANTED else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the table, try the faults, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the faults to try (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at once (default: 1)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of a fault (default: 600)")
    options = parser.parse_args(arguments)
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        parser.error(f"no fault has the name {', '.join(unknown)}; see the table in {Path(__file__).name}")
    faults = [known[name] for name in options.only or known]
    problems = [problem for fault in faults if (problem := stale(fault))]
    if problems:
        print("\n".join(problems))
        return 2
    return measure(faults, options.jobs, options.limit)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is left behind.")
