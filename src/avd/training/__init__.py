"""Training: step, loop, checkpoint, and the tasks that run in the loop."""
