"""How the counts of a case are made."""

import torch
from scripts.evaluation.baselines import IteratedZScoreBaseline
from scripts.evaluation.cases import Evaluation


def test_what_is_marked_outside_the_brain_does_not_count(tmp_path, make_sample):
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    brain_mask, label, pred_mask = (torch.zeros_like(image, dtype=torch.bool) for _ in range(3))
    brain_mask[..., 2:14, 2:14] = True
    label[0, 0, 4:8, 4:8] = True
    pred_mask[0, 0, 6:10, 4:8] = True

    def counted(marked):
        baselines = {"iterated": IteratedZScoreBaseline(sigma=0, threshold=1)}
        evaluation = Evaluation(str(tmp_path), "a method", ["flair"], baselines, pictures=False)
        sample = make_sample(image, brain_mask, label=label, pred_mask=marked)
        evaluation.add_case(sample)
        evaluation.add_healthy(sample)
        case, healthy = evaluation.cases
        assert case.row["baseline_iterated_components"] > 0
        return case.marked[""].tolist(), case.row["components"], healthy.marked[""].tolist(), healthy.healthy_slices

    assert counted(pred_mask) == counted(pred_mask | ~brain_mask) == ([8, 16, 0], 1, [8, 16, 16], 2)
