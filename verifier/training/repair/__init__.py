"""Repair: make a backdoored model forget its trigger with a little trusted data."""
