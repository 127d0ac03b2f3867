"""What the random draws of a run are for: the second number of their seeds, `np.random.default_rng((seed, STREAM, ...))`.

A draw follows from its numbers alone, so a run that is resumed draws what it would have drawn. NumPy takes no heed of zeros at the end: (seed, 1)
is (seed, 1, 0). Other numbers would change runs of before; what is new takes the next one.
"""

RANDOM_LABELS = 0  # of training images; those of validation images have the next number
BATCH = 1  # offsets, mirror images and the like of each step
EPOCH_ORDER = 2
FIRST_FLIPS = 3  # which images are mirrored when they are first seen
VALIDATION_BATCH = 4
CHECKED_IMAGES = 5  # those that exported files are checked with
VARIANT = 5  # rotation, zoom and the like of an image in transfer learning
SCORED_IMAGES = 6  # those by which channels are judged
RAND_AUGMENT = 6  # by TensorFlow's generator
MIX = 7  # MixUp and CutMix, by the same
CORRUPTION = 8
BALANCED_EPOCH = 9
CHOSEN_IMAGES = 10  # those by which layers are set before the training
