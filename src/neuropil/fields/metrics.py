"""How close a picture is to the truth, without anything that downloads weights: PSNR and SSIM."""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused, optional


def psnr(predicted: Float[Tensor, "..."], target: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """``−10 log₁₀ mean (x − y)²`` in dB for values whose peak is 1; infinite for equal ones.

    >>> psnr(torch.zeros(4), torch.full((4,), 0.1)).round(decimals=3)
    tensor(20.)
    """
    if predicted.shape != target.shape:
        raise Refused(f"predicted, target: one shape is needed, got {tuple(predicted.shape)} and {tuple(target.shape)}")
    return -10 * torch.log10((predicted - target).square().mean())


def ssim(predicted: Float[Tensor, "..."], target: Float[Tensor, "..."]) -> float:
    """The structural similarity of Wang et al. 2004 (Gaussian window, σ = 1.5) of two pictures (h, w) or (h, w, c) in [0, 1].

    By scikit-image (extra "fields"), in float64 on the CPU, without a gradient; 1 for equal pictures. At least 11 x 11 pixels.
    Raises `Refused` for other shapes.

    >>> picture = torch.linspace(0, 1, 256).reshape(16, 16)
    >>> round(ssim(picture, picture), 3)
    1.0
    """
    if predicted.shape != target.shape or predicted.ndim not in (2, 3) or min(predicted.shape[:2]) < 11:
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise Refused(f"predicted, target: pictures (h ≥ 11, w ≥ 11) or (h, w, c) of one shape are needed, got {shapes}")
    similarity = optional("skimage.metrics", "fields").structural_similarity
    pair = [x.detach().double().cpu().numpy() for x in (predicted, target)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return float(similarity(*pair, channel_axis=-1 if predicted.ndim == 3 else None, **options))
