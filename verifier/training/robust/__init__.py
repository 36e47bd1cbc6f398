"""Training for robustness: against attacks (adversarial training, TRADES) and for proofs (IBP, CROWN-IBP)."""
