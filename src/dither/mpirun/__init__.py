"""Private sums for MPI programs as they are: library, plan, ledger leases and launcher."""
