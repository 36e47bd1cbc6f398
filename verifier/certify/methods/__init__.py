"""What a sweep can do with one sample; each class takes the plan once and then gives a row a sample."""
