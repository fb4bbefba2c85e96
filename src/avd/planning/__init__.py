"""What a run will take, before it is started: memory, arithmetic and time, from sizes alone."""
