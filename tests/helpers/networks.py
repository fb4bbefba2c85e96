"""Networks as a run has them: built without memory and filled."""

from __future__ import annotations

import torch

from avd.engine.sharding import fill
from avd.models.backbone import Backbone
from avd.models.family import TextToVideo


def filled(model: TextToVideo) -> Backbone:
    """The model's network, of memory of its own."""
    network = model.hollow_velocity()
    fill(network, model.weights(), torch.device("cpu"), lambda name: name.removeprefix("transformer."))
    return network
