"""avd: turn a slow video diffusion model into a fast one that keeps its colours and its motion."""

__version__ = "0.1.0"
