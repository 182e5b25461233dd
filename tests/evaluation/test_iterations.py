"""The picture of a mask that shrinks from pass to pass."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from scripts.evaluation.iterations import IterationStrip


class Shrinking:
    """Stands for the inferer: each pass after the first leaves a square one pixel smaller."""

    def __init__(self):
        self.progress, self.options, self.asked = True, {"max_passes": 100, "seed": 3}, []

    def __call__(self, inputs, network):
        count = self.options["max_passes"]
        self.asked.append((count, self.options["seed"], self.progress))
        result = torch.zeros(1, 5, *inputs.shape[-2:])
        result[:, 0, 4 : 20 - count, 4 : 20 - count] = 1
        result[:, 3] = 1 + count
        return result


def engine(passes):
    """An evaluator that has processed a case for each number of passes, the first slice of two with a lesion."""
    batch, output = [], []
    for name, number in passes.items():
        label, pred = torch.zeros(1, 24, 24, 2), torch.zeros(5, 24, 24, 2)
        label[:, 4:9, 4:9, 0] = 1
        pred[3, ..., 0], pred[3, ..., 1] = number, 99
        inputs = torch.rand(2, 24, 24, 2, generator=torch.Generator().manual_seed(0))
        inputs[1] = 1
        batch.append({"image": inputs, "label": label, "case": name})
        output.append({"pred": pred})
    made = Engine(lambda *_: None)
    made.state.batch, made.state.output = batch, output
    return made


@pytest.fixture
def strip(tmp_path):
    made = IterationStrip(Shrinking(), torch.nn.Linear(1, 1), str(tmp_path), panels=3)
    made.inferer.asked = []
    return made


def test_case_of_the_most_passes_where_it_has_a_lesion_is_found_and_of_equal_ones_the_first(strip):
    strip._look(engine({"c": 4, "b": 5, "d": 5, "a": 3}))
    sample, inputs = strip.found
    assert sample.name == "b" and strip.order == (-5, "b") and inputs.shape == (1, 2, 24, 24)


def test_panels_are_spread_from_the_first_iteration_to_the_last(strip, tmp_path):
    strip._look(engine({"a": 7}))
    strip.draw()
    assert strip.inferer.asked == [(count, 3, False) for count in (0, 0, 3, 6)]
    with Image.open(tmp_path / "iterations.png") as picture:
        assert picture.width > 3 * 300
        red = (np.asarray(picture) == (255, 90, 60)).all(axis=-1)
    panels = np.array_split(np.arange(picture.width), 3)
    sizes = [red[:, columns].sum() for columns in panels]
    assert sizes[0] > sizes[1] > sizes[2] > 0


@pytest.mark.parametrize("passes", [{}, {"a": 1, "b": 0}])
def test_nothing_is_drawn_where_no_case_took_two_passes(strip, tmp_path, passes):
    strip._look(engine(passes))
    strip.draw()
    assert not (tmp_path / "iterations.png").exists()


def test_strip_that_is_turned_off_looks_at_nothing(tmp_path):
    listening = SimpleNamespace(add_event_handler=lambda *_: pytest.fail("it listens"))
    IterationStrip(Shrinking(), torch.nn.Identity(), str(tmp_path), enabled=False).attach(listening)
