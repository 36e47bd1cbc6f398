"""Poisoning: data attacks that make the trained model fail, everywhere or on chosen inputs."""
