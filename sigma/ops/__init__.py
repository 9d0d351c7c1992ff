"""The selective scan: a plain reference and the backends held to it."""

from sigma.ops.dispatch import choose_backend, selective_scan

__all__ = ["choose_backend", "selective_scan"]
