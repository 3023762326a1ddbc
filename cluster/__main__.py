"""`python -m cluster` is `rankforge`."""

from cluster.cli import main

main()
