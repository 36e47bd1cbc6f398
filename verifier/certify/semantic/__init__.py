"""Certificates over the parameters of image transformations (Mohapatra et al. 2020, arXiv:1912.09533)."""
