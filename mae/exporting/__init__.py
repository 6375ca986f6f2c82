"""Write weights for other libraries, checked by them."""
