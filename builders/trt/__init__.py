"""TensorRT: a rank's graphs as one network, its plans for any target, and what executes them."""
