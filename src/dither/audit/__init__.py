"""Attacks on our own promises: lower bounds, membership, inversion, sums, ledgers, mutants."""
