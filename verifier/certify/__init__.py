"""How far an input can move: certified radii, randomised smoothing, CLEVER estimates."""
