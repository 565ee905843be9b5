"""Training: recipe -> schedule, loop, state, session; `training.run` is the door."""
