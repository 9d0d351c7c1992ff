"""SIGMA and its baselines: sequential recommendation with Hydra and Lightning."""

__version__ = "0.1.0"
