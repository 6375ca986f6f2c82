"""What an encoder has learnt, read from frozen features: k-NN, linear, attentive, and figures without labels."""
