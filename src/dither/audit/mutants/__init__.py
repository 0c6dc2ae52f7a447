"""Privacy mutants: defects that others shipped, put into our code; our tests must catch each."""
