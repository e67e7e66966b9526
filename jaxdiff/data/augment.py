"""EDM's non-leaky augmentation."""
LABELS = 9
def augment(rng, image, p):
    raise NotImplementedError
