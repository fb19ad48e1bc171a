"""Cross-entropy of coarse logits that are resized to the pixels of their labels.

Source: iBOT's fine-tuning on ADE20K, whose loss this is. The resized logits of a batch (150 classes
of 512 x 512 pixels and 16 images: 2.5 GB, and as much for each step of the way back) are never held
together: each image's gradient is computed along with its loss, and only that of the coarse logits
is kept.

Shapes: B images, K classes, h and w cells, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

VOID = 255


def resized_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and accuracy of logits that are resized (bilinear, align_corners False).

    The loss is the mean over all pixels of the batch, void ones counting 0, as mmsegmentation has
    it by default: so a batch of void alone has the loss 0, and a batch is the mean of its parts.

    Args:
        logits: (B, K, h, w), of any float type; the loss is computed in float32.
        labels: uint8 (B, H, W), classes below K, or 255 for void.

    Returns:
        the loss, and the share of the pixels with a class that are right (0 if there are none).
    """
    with torch.autocast(logits.device.type, enabled=False):
        loss, accuracy = _ResizedCrossEntropy.apply(logits.float(), labels)
    return loss, accuracy


class _ResizedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        learns = ctx.needs_input_grad[0]
        each = [
            _one(cells, label, learns) for cells, label in zip(logits.split(1), labels, strict=True)
        ]
        total = torch.stack([loss for loss, _, _ in each]).sum() / labels.numel()
        if learns:
            ctx.save_for_backward(torch.cat([g for _, _, g in each if g is not None]))
            ctx.pixels = labels.numel()
        right = torch.stack([correct for _, correct, _ in each]).sum()
        accuracy = right / (labels != VOID).sum().clamp(min=1)
        ctx.mark_non_differentiable(accuracy)
        return total, accuracy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] / ctx.pixels), None


def _one(cells: Tensor, label: Tensor, learns: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the summed loss of an image, its pixels that are right, and the loss's gradient.

    Args:
        cells: (1, K, h, w).
        label: (H, W).
        learns: whether the gradient is asked for.
    """
    with torch.set_grad_enabled(learns):
        cells = cells.detach().requires_grad_(learns)
        resized = F.interpolate(cells, label.shape, mode="bilinear", align_corners=False)
    known = label != VOID
    index = torch.where(known, label, 0).long()[None]
    # From here on all happens in one buffer: logits, probabilities, gradient.
    pixels = resized.detach()[0]
    pixels -= pixels.amax(0)
    true = pixels.gather(0, index)[0]
    correct = ((true == 0) & known).sum()
    total = pixels.exp_().sum(0)
    loss = ((total.log() - true) * known).sum()
    if not learns:
        return loss, correct, None
    pixels *= known / total
    pixels.scatter_add_(0, index, -known[None].float())
    (gradient,) = torch.autograd.grad(resized, cells, pixels[None])
    return loss, correct, gradient
