"""Black-box attacks, by scores or by labels alone: one file a method."""
