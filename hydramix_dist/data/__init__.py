"""Images: import once, draw N-shot subsets, hold them as tensors, augment them as tensors."""
