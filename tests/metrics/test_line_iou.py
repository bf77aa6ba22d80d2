"""Line IoU against CLRNet, and its gradient."""

import pytest
import torch
from perception_vectors import vectors

from jettison.metrics.line_iou import aligned_line_iou, line_iou

CASES = vectors("line_iou")["cases"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_it_equals_clrnet(case, dtype, tolerance):
    predicted, truth = (torch.tensor(case[name], dtype=dtype) for name in ("pred", "target"))
    size, count = (case["img_w"], case["radius"]), case["aligned_first_k"]
    pairs = line_iou(predicted, truth, *size)
    assert (pairs - torch.tensor(case["pairwise_iou"], dtype=dtype)).abs().max() < tolerance
    aligned = aligned_line_iou(predicted[:count], truth[:count], *size)
    assert aligned.tolist() == pytest.approx(case["aligned_iou"], abs=tolerance)
    assert float(1 - aligned.mean()) == pytest.approx(case["liou_loss"], abs=tolerance)


def test_a_lane_has_one_with_itself_and_a_gradient_towards_its_target():
    lane = torch.linspace(100, 300, 36)[None]
    assert float(line_iou(lane, lane, 800)) == pytest.approx(1.0)
    moved = (lane + 20).requires_grad_()
    aligned_line_iou(moved, lane, 800).sum().backward()
    assert (moved.grad < 0).all()  # to the left, the IoU grows


def test_rows_without_the_true_lane_do_not_count():
    lane, absent = torch.full((1, 4), 50.0), torch.tensor([[50.0, -1e5, 50.0, 900.0]])
    assert float(line_iou(lane, absent, 800)) == pytest.approx(1.0)
    assert float(line_iou(lane, torch.full((1, 4), -1e5), 800)) == 0.0
    with pytest.raises(ValueError, match="same rows"):
        line_iou(lane, absent[:, :3], 800)
    with pytest.raises(ValueError, match="pairs of lanes"):
        aligned_line_iou(lane, absent.expand(2, 4), 800)
