"""How results are drawn in a terminal."""
