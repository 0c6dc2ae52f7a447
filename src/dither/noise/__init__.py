"""Secret randomness, the exact lattice Gaussian and the codec. Knows no torch and no ε."""
