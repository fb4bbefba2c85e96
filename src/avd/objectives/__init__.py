"""Objectives, one file each: tensors and callables in, `LossTerm`s out. They know nothing of trainers."""
