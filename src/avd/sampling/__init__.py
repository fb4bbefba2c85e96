"""Sampling: the few-step rollout and the many-step teacher."""
