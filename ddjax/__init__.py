"""Dataset distillation in JAX.

``distill`` does it all, ``plan`` tells how long that would take, and ``load``
opens what it made; they are loaded when they are first used. The parts that
need JAX alone are here too; everything else is imported by its module, for
example ``from ddjax.iadd import update``.
"""

from ddjax import losses, ops, types, unroll

__all__ = [
    "Run",
    "distill",
    "load",
    "losses",
    "ops",
    "plan",
    "types",
    "unroll",
]
__version__ = "0.1.0"

_WHOLE = ("Run", "distill", "load", "plan")


def __getattr__(name):
    if name in _WHOLE:
        from ddjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'ddjax' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_WHOLE]
