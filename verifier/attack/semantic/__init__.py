"""Attacks over the parameters of image transformations."""
