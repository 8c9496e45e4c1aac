"""Shows finished segmentations in a browser: tiles, objects and reviews; computes no segmentation."""
