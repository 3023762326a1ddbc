"""How ranks exchange tensors: gloo on CPUs, NCCL on GPUs, symmetric memory inside a node."""
