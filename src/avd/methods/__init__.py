"""Methods: what a recipe's weighted terms make of a training step, before there is a network."""
