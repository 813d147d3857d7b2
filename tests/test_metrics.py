"""PSNR and SSIM against scikit-image and literals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from given.inputs import image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vae_core import ImageError
from vae_core.metrics import psnr, ssim


@pytest.mark.parametrize(
    ("channels", "size", "data_range"), [(3, (40, 53), 1.0), (1, (11, 11), 2.0), (4, (12, 64), 255)]
)
def test_scikit_image(channels: int, size: tuple[int, int], data_range: float) -> None:
    reference = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)) * data_range
    noisy = reference + 0.1 * data_range * image(2, *size, channels)
    for i in range(2):
        # "valid" positions alone count, as in the paper: scikit-image crops its border to that.
        expected = structural_similarity(
            noisy[i].double().numpy(),
            reference[i].double().numpy(),
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
        )
        assert ssim(noisy, reference, data_range)[i].item() == pytest.approx(expected, abs=1e-9)
        noise = peak_signal_noise_ratio(reference[i].double().numpy(), noisy[i].double().numpy(), data_range=data_range)
        assert psnr(noisy, reference, data_range)[i].item() == pytest.approx(noise, abs=1e-9)


def test_literals() -> None:
    black, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    assert psnr(black, grey).item() == pytest.approx(20.0, abs=1e-5)  # 0.1 as a float32
    assert psnr(grey * 255, black, 255).item() == pytest.approx(20.0, abs=1e-5)
    assert ssim(black, grey).item() == pytest.approx(1e-4 / (0.01 + 1e-4), rel=1e-6)  # c1 / (mean^2 + c1)
    assert psnr(grey, grey).item() == np.inf
    assert ssim(image(), image()).item() == pytest.approx(1.0, abs=1e-12)


def test_errors() -> None:
    with pytest.raises(ImageError, match="cannot be compared"):
        psnr(image(), image(channels=1))
    with pytest.raises(ImageError, match="11x11.*20x10"):
        ssim(image(1, 10, 20), image(1, 10, 20))
