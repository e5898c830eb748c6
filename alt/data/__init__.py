"""Clips and where they come from: files, sampling, augmentation, and the embedded world."""
