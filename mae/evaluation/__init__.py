"""Evaluation of frozen features: k-NN, linear and attentive probes, and label-free metrics."""
