"""White-box attacks: one file a method."""
