"""What is said of many cases at once."""

import logging
import threading

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.common.batch import Cases, raise_failed, warning_lines


def record(message, **extra):
    made = logging.LogRecord("scripts.x", logging.WARNING, "", 0, message, None, None)
    vars(made).update(extra)
    return made


def test_warnings_of_a_kind_are_one_line_with_their_sums():
    kind = {"together": "{0} of {1} slices are far off."}
    records = [record(f"{case}: far off", counts=(number, 9), **kind) for case, number in (("a", 2), ("b", 3))]
    assert warning_lines([*records, record("c has a skull")], 5) == [
        "2 of 5 cases: 5 of 18 slices are far off.",
        "c has a skull",
    ]
    assert warning_lines(records[:1], 1) == ["a: far off"]
    many = warning_lines([record(f"{number} has a skull") for number in range(14)], 20)
    assert many[0] == "0 has a skull" and len(many) == 11 and many[-1] == "and 4 more"


def test_failures_are_told_with_their_names(capsys):
    raise_failed({}, 3)
    with pytest.raises(RuntimeError, match="^a is empty.$"):
        raise_failed({"a": "a is empty."}, 1)
    with pytest.raises(RuntimeError, match=r"^1 of 3 cases failed, a \(the others are done.*\): a is empty.$"):
        raise_failed({"a": "a is empty."}, 3)
    assert not capsys.readouterr().out
    with pytest.raises(RuntimeError, match="^All 2 cases failed, first a: a is empty.$"):
        raise_failed({"a": "a is empty.", "b": "is damaged."}, 2)
    assert capsys.readouterr().out == "Failed:\n  a is empty.\n  b: is damaged.\n"
    with pytest.raises(RuntimeError, match=r"^12 of 30 cases failed \(0, 1, .*, 9, ...\), the others are done"):
        raise_failed({str(number): "is empty." for number in range(12)}, 30)
    assert capsys.readouterr().out.splitlines() == [
        "Failed:",
        *(f"  {k}: is empty." for k in range(10)),
        "  and 2 more",
    ]


def test_cases_are_read_ahead_and_keep_their_own_warnings_and_errors():
    began = {name: threading.Event() for name in "abc"}

    def read(item):
        logging.getLogger("scripts.reading").warning(f"{item['case']} is odd")
        began[item["case"]].set()
        if item["case"] == "b":
            raise ValueError("b is damaged.")
        return item

    class Infer:
        def __call__(self, inputs, network):
            assert began["b" if float(inputs) == 0 else "c"].wait(10)
            logging.getLogger("scripts.inferring").warning(f"{int(inputs)} is far")
            return inputs

    items = [{"case": name, "image": torch.full((1,), float(index))} for index, name in enumerate("abc")]
    dataset = Dataset([*items], read)
    transform = dataset.transform
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(dataset, batch_size=1), torch.nn.Identity(), inferer=Infer()
    )
    cases = Cases()
    cases.run(evaluator, show=False)
    assert cases.failed == {"b": "b is damaged."}
    assert cases.warnings == {"a": ["a is odd", "0 is far"], "b": ["b is odd"], "c": ["c is odd", "2 is far"]}
    assert dataset.transform is transform and dataset.data == items
