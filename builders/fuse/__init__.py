"""Programs for devices where every instruction is a kernel: neighbours joined into the fewest of them."""

from builders.fuse.passes import fused, narrow_logits
from builders.fuse.reference import fused_operators

__all__ = ["fused", "fused_operators", "narrow_logits"]
