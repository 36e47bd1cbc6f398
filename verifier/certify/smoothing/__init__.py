"""Randomised smoothing: certified radii with an exact confidence statement, for any classifier."""

from verifier.certify.smoothing.certify import Sampling, SmoothedCertificate, SmoothedClassifier
from verifier.certify.smoothing.classifier import batched, denoised
from verifier.certify.smoothing.noise import Ablation, Gaussian, Laplace, Noise, Uniform

__all__ = [
    "Ablation",
    "Gaussian",
    "Laplace",
    "Noise",
    "Sampling",
    "SmoothedCertificate",
    "SmoothedClassifier",
    "Uniform",
    "batched",
    "denoised",
]
