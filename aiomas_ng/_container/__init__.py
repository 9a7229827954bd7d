"""What makes up a container and is nobody's API: its end, signals, and the making of agents."""
