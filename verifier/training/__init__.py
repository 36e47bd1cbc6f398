"""Attacks on the training phase, their detection, repair, and certificates against them.

Rooms: poison, backdoor, federated (attacks: a data set in, a PoisonedDataset or an update out),
detect, repair, robust (defences), certify (guarantees). Nothing trains behind the user's back:
`train.train` is the one loop, `measure.measure` the one measurement.
"""
