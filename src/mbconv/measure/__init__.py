"""What a network is worth: accuracy (the only evaluation loop) and what it looked at."""
