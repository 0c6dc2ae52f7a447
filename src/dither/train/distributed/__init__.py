"""Training on several processes: who they are, what they agree on, and what each does."""
