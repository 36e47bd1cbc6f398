"""Bounds by optimisation: LP, exact branch and bound, SDP and Lagrangian duals, each rebuilt rigorously."""
