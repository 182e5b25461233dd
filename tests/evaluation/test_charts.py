"""Charts as SVG: axes, and points where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.evaluation.charts import Axis, Line, Mark, chart


@pytest.mark.parametrize(("low", "high", "logarithmic"), [(0, 1, False), (0, 0.037, False), (1e-4, 3, True)])
def test_axes_have_a_few_ticks_inside(low, high, logarithmic):
    ticks = Axis(low, high, 0, 100, logarithmic).ticks()
    assert 3 <= len(ticks) <= 12 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_charts_place_points_where_the_axes_say_and_escape_names():
    line = Line("<i>", np.array([1.0, 10.0, 100.0]), np.array([0.0, 0.5, 1.0]))
    drawn = chart([line], "x", "y", (1, 100), (0, 1), True, [Mark("here", 10, 0.5)])
    x_axis, y_axis = Axis(1, 100, 62, 604, True), Axis(0, 1, 284, 16)
    points = [f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in zip(line.x, line.y, strict=True)]
    assert " ".join(points) in drawn and f'cx="{x_axis(10):.1f}" cy="{y_axis(0.5):.1f}"' in drawn
    assert "&lt;i&gt;" in drawn
