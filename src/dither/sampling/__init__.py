"""Who is in a batch: Poisson sampling and the loader that gathers it."""
