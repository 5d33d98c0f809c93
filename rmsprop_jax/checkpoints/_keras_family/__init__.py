"""Checkpoints of Keras and TensorFlow."""
