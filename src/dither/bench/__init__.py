"""Paired measurements: ours and a baseline in turn, in one process tree."""
