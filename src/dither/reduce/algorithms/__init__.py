"""In which order messages travel and are added: one file an algorithm."""
