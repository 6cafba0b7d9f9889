"""Long work: checkpoints, memory, progress, compiled code, moments of repetitions, paths, the settings of a host."""
