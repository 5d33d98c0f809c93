"""Checkpoints of PyTorch, timm and Stable-Baselines3, which share a state_dict."""
