"""Training: recipe -> schedule, optimizer, loop, state. `training.run.train` is what the command runs."""
