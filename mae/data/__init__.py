"""Images: decoding, finding, normalising, augmenting and loading them."""
