"""The official benchmarks of the field: their prompts, the folder that their code expects, and what is in it."""
