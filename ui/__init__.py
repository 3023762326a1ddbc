"""The web demo: talks to the service through its client alone."""
