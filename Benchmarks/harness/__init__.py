"""What the programs in Benchmarks/ share. Python 3.9 or newer, standard library only."""
