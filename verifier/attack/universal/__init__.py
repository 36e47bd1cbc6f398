"""One perturbation for many: inputs, models, transformations, and patches."""
