"""Promises and their accounts: plan, events, accountant, ledger, trust. Knows no torch."""
