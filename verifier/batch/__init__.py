"""Many instances: lists of them, the processes that serve them, the rows that come back."""
