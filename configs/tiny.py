"""Digits at one image per class: the whole pipeline in a few minutes.

Data      scikit-learn's 1,797 handwritten digits, 8x8, grey, embedded.
Paper     none; the method is IADD's, scaled to a laptop.
Expected  92% test accuracy of fresh networks trained on 10 images; random
          real images about 75%, the whole data 97%.
Cost      2 minutes on 2 CPU cores.
Command   python experiments/iadd.py --config=configs/tiny.py
"""

from configs import common

# Digits have no colour, and a mirrored digit is another one.
AUGMENT = "crop_scale_rotate"


def get_config():
    """The config; takes no argument."""
    config = common.base()
    config.data.source = "digits"
    config.model.width = 32
    config.model.depth = 2
    config.teacher.count = 20
    config.teacher.epochs = 60
    config.teacher.batch_size = 64
    config.teacher.augment = AUGMENT
    config.iadd.iterations = 400
    config.iadd.inner_steps = 20
    config.iadd.max_start = 20
    config.iadd.augment = AUGMENT
    config.iadd.image_step = 10.0
    config.iadd.learning_rate = 0.02
    config.iadd.learning_rate_step = 1e-5
    config.evaluate.epochs = 500
    config.evaluate.augment = AUGMENT
    config.evaluate.looks = 5
    return config
