"""Models, checkpoints, sharding and artifacts: pure functions and files, without Ray or a network service."""
