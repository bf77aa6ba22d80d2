"""SSIM against scikit-image, and its limits."""

import pytest
import torch

from jettison.metrics.ssim import ssim


def pictures():
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    a = (torch.sin(x * 0.7 + 0.3 * y) + torch.cos(y * 0.5 - 0.2 * x) + 2) / 4
    b = (a * 0.8 + 0.1 + 0.05 * torch.sin(3.1 * x + 1.7 * y)).clamp(0, 1)
    return a, b


def test_it_equals_scikit_image():
    """structural_similarity of 0.26.0 with gaussian_weights, sigma 1.5, use_sample_covariance=False."""
    a, b = pictures()
    first, second = torch.stack([a, a])[:, None], torch.stack([b, a**2])[:, None]
    assert ssim(first, second).tolist() == pytest.approx([0.9533499984728372, 0.812189743297977], abs=2e-6)
    assert float(ssim(first[:1], second[:1], 2.0)) == pytest.approx(0.9552115497293477, abs=2e-6)
    per_image = ssim(first, second, torch.tensor([2.0, 1.0]))
    assert per_image.tolist() == pytest.approx([0.9552115497293477, 0.812189743297977], abs=2e-6)


def test_equal_images_have_one_and_small_ones_a_smaller_window():
    tiny = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ssim(tiny, tiny).tolist() == pytest.approx([1.0, 1.0])
    assert float(ssim(tiny[:1], 1 - tiny[:1])) < 0.5
    assert torch.allclose(ssim(tiny, tiny.flip(1)), ssim(tiny, tiny.flip(1), window=7))  # 7 is the largest that fits


def test_it_has_a_gradient_and_refuses_other_shapes():
    a, b = pictures()
    a.requires_grad_()
    ssim(a[None, None], b[None, None]).sum().backward()
    assert a.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="one shape"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9))
