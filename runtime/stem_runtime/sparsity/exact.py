"""Skipping what adds exactly zero, which takes no calibration."""

from __future__ import annotations

import numpy as np

from ..formats.packed import PackedModel
from .neurons import LayerNeurons, Neurons, layer_weights, mask_of


def exact_neurons(model: PackedModel) -> Neurons:
    """The FFNs neuron by neuron for `FfnPlan.exact`: every neuron whose gate is not zero matters.

    Gates are computed all together, and nothing is known of the neurons beyond that.
    """
    ffn = model.config.ffn_dim
    ones = np.ones(ffn, np.float32)
    none, every = mask_of(np.zeros(ffn, np.bool_)), mask_of(np.ones(ffn, np.bool_))
    layers = []
    for layer in range(model.config.n_layers):
        stored = layer_weights(model, layer, "up")
        layers.append(LayerNeurons(stored, ones, ones, none, every))
    return Neurons(tuple(layers))
