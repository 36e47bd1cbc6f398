"""Backdoors: a trigger in the input chooses the label."""
