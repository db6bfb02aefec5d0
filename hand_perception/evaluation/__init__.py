"""How good the hands are: metrics with units, and figures measured on real data."""
