"""Predictors of the neurons whose gates are worth computing, on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.gpu.compact import name_candidates
from ..kernels.gpu.layout import Activations, DeviceMatrix
from ..kernels.gpu.matvec import SplitSums, matvec
from ..kernels.gpu.quantize import quantize
from ..sparsity.neurons import Predictor

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Guess:
    """A predictor on the device, and what it computes on the way; `scores` float32 [b, ffn]."""

    axes: DeviceMatrix
    rows: DeviceMatrix
    cutoffs: Tensor
    turned: Tensor
    inputs: Activations
    scores: Tensor

    @classmethod
    def upload(cls, predictor: Predictor, device: torch.device) -> Guess:
        matrices = (
            DeviceMatrix.of(predictor.axes, device),
            DeviceMatrix.of(predictor.scores, device),
        )
        return cls.of(1, *matrices, torch.tensor(predictor.cutoffs, device=device))

    @classmethod
    def of(cls, batch: int, axes: DeviceMatrix, rows: DeviceMatrix, cutoffs: Tensor) -> Guess:
        turned = torch.zeros((batch, axes.rows), device=cutoffs.device)
        inputs = Activations.empty(batch, axes.rows, cutoffs.device)
        scores = torch.zeros((batch, rows.rows), device=cutoffs.device)
        return cls(axes, rows, cutoffs, turned, inputs, scores)

    def name(self, masks: Tensor, x: Activations, split: SplitSums) -> None:
        """The candidates for inputs x, into `masks` int32 [b, groups]."""
        matvec(self.turned, self.axes, *x, split=split)
        quantize(self.inputs, self.turned, self.turned.shape[1])
        matvec(self.scores, self.rows, *self.inputs, split=split)
        name_candidates(masks, self.scores, self.cutoffs)
