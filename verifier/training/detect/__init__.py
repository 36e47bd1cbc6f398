"""Detection: is this model backdoored, and which rows of this data set are poisoned?"""
