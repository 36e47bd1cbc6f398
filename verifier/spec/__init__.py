"""Properties: what is asked, read from and written to VNN-LIB, and how answers are replayed."""
