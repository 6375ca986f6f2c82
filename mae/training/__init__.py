"""Training runs (pre-training, fine-tuning, linear probing): settings, schedule, loop and run folder."""
