"""What is said of many cases at once."""

import logging
import threading

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.common.case_runner import CaseRunner, raise_failed


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


def test_cases_are_read_ahead_and_keep_their_own_warnings_and_errors(caplog):
    began, threads = {name: threading.Event() for name in "abc"}, torch.get_num_threads()

    def read(item):
        began[item["case"]].set()
        if item["case"] == "b":
            raise ValueError("b is damaged.")
        return {**item, "warnings": [f"{item['case']} is odd", f"{item['case']} is small"]}

    class Infer:
        def __call__(self, inputs, network):
            assert threading.current_thread() is threading.main_thread()
            assert began["b" if float(inputs) == 0 else "c"].wait(10)
            logging.getLogger("scripts.inferring").warning(f"{'abc'[int(inputs)]} is far")
            logging.getLogger("scripts.inferring").warning(f"{'abc'[int(inputs)]} is odd")
            return inputs

    items = [{"case": name, "image": torch.full((1,), float(index))} for index, name in enumerate("abc")]
    items.append({"case": "d", "error": "d is no scan."})
    loader = DataLoader(Dataset(items, read), batch_size=1)
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader, torch.nn.Identity(), inferer=Infer())
    runner = CaseRunner()
    runner.run(evaluator, show=False)
    assert runner.failed == {"d": "d is no scan.", "b": "b is damaged."}
    said = {"a": ["a is odd", "a is small", "a is far"], "c": ["c is odd", "c is small", "c is far"]}
    assert {case: sorted(said[case]) for case in said} == {case: sorted(runner.warnings[case]) for case in said}
    assert evaluator.data_loader is loader and torch.get_num_threads() == threads
    assert sorted(record.message for record in caplog.records) == sorted(sum(said.values(), []))


@pytest.mark.parametrize("error", [OSError("Cannot write a (No space left): remedy it."), SystemExit("stop")])
def test_error_that_is_not_of_a_case_ends_all(error):
    def read(item):
        raise error

    loader = DataLoader(Dataset([{"case": "a"}, {"case": "b"}], read), batch_size=1)
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader, torch.nn.Identity())
    with pytest.raises((RuntimeError, SystemExit)):
        CaseRunner().run(evaluator, show=False)
