"""Checked wrappers over the compiled module; importing this package imports neither torch nor the module."""
