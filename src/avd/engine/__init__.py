"""The training engine: loop, checkpoints, run folder, ranks and randomness. It knows no objective."""
