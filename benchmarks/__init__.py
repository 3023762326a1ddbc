"""Scripts that measure: each prints its result beside a limit or a peer of the same run."""
