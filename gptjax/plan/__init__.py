"""What a run will need, before it starts: parameters, memory, FLOPs, time."""
