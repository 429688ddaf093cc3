"""abupdate: A/B updates for Linux edge devices. This file holds the version and nothing else."""

__version__ = "0.1.0"
