"""Attacks that bounds lead."""
