"""A small, real federated simulation, the attacks of its clients, and the aggregators that resist or fail."""
