"""Dataset distillation in JAX.

The parts that need JAX alone are here; everything else is imported by its
module, for example ``from ddjax.iadd import update``.
"""

from ddjax import losses, ops, types, unroll

__all__ = ["losses", "ops", "types", "unroll"]
__version__ = "0.1.0"
