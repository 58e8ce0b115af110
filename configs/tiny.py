"""Digits in a few minutes: one image per class by IADD, a generator by D2M.

Data      scikit-learn's 1,797 handwritten digits, 8x8, grey, embedded.
Paper     none; the method is IADD's, scaled to a laptop.
Expected  92% test accuracy of fresh networks trained on 10 images; random
          real images about 75%, each class's mean image 89%, the whole
          data 99%. By D2M, 10 generated images per class: 94%, chosen ones
          95%, random real images 94%; distilling gains nothing over the
          pre-trained generator, which is kept.
Cost      a minute and a half on 2 CPU cores, by D2M nine on one.
Command   python experiments/iadd.py --config=configs/tiny.py
          python experiments/d2m.py --config=configs/tiny.py
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
    config.evaluate.full_steps = 2000
    # Half the field's widths, a quarter of their work.
    config.nas.widths = "16,32,64,128"
    config.nas.full_steps = 200
    config.gan.width = 8
    config.gan.noise = 32
    config.gan.iterations = 2000
    config.gan.patience = 2
    config.gan.critic_steps = 2
    config.gan.batch_size = 64
    config.gan.generator_rate = 5e-4
    config.gan.critic_rate = 5e-4
    config.gan.average = 0.99
    config.gan.augment = "crop"
    config.d2m.iterations = 400
    config.d2m.rate = 2e-4
    config.d2m.average = 0.99
    config.d2m.augment = AUGMENT
    config.d2m.first_epoch = 1
    config.d2m.epochs = "500,300,100"
    return config
