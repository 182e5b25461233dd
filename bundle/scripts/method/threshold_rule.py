"""How the threshold of a whole volume is chosen for its subject: by a prior, or by the size of the mask."""

from __future__ import annotations

import numpy as np
from torch import Tensor

THRESHOLD_RULES = ("prior", "slope")
FIRST, STEP = -5.0, 0.1  # logits: the lowest threshold that the size is measured at, and the way to the next one
SPAN = 5  # steps on either side of a threshold over which its slope is measured
LOWEST = -1.5  # logit: no lower threshold is chosen
FLAT = 0.5  # part of the steepest slope: where no more is left, the steep part has ended
LEAST = 50  # voxels: a smaller mask has no slope that could be told from noise


def slope_threshold(logit: Tensor, highest: float) -> float:
    """The threshold at which the mask of a subject stops shrinking fast.

    As the threshold rises, normal brain leaves the mask fast and evenly, and a lesion slowly, its borders being steep.
    The 3-D successor of the method (Liang et al. 2025, arXiv 2504.04911, subject-specific threshold) therefore follows
    size and threshold together, for each subject, and takes the place where the slope of a tangent fitted to them
    passes a fixed number, in squared errors. Logits have no such unit, and lesions of 1 and 100 ml shall have their
    places alike: here the slope is that of the logarithm of the size, and is compared with the subject's own steepest.

    With n(t) voxels above t = `FIRST`, `FIRST` + `STEP`, ..., the slope is s(t) = ln n(t - h) - ln n(t + h), h =
    `SPAN` x `STEP`. The answer is the first t from `LOWEST` on with s(t) at most `FLAT` times the largest slope of this
    and all lower thresholds, and n(t + h) at least `LEAST`. Where there is none below ``highest``, as in a brain
    without lesion, whose slope does not end, it is ``highest``.

    Args:
        logit: Of lesion, all voxels of the brain, (V,).
        highest: Logit; the answer where the slope does not end.

    Returns:
        A logit from `LOWEST` to ``highest``.
    """
    thresholds = FIRST + STEP * np.arange(round((highest - FIRST) / STEP) + SPAN + 1)
    values = np.sort(logit.detach().cpu().double().numpy())
    sizes = len(values) - np.searchsorted(values, thresholds, side="right")
    logarithms = np.log(np.maximum(sizes, 1))
    slopes = logarithms[: -2 * SPAN] - logarithms[2 * SPAN :]
    steepest = np.maximum.accumulate(slopes)
    places = thresholds[SPAN:-SPAN]
    ended = (slopes <= FLAT * steepest) & (sizes[2 * SPAN :] >= LEAST) & (places > LOWEST - STEP / 2)
    return min(float(places[ended.argmax()]), highest) if ended.any() else highest
