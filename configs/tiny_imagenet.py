"""Tiny ImageNet at 1, 10 or 50 images per class.

Data      the folder of tiny-imagenet-200.zip as it is published: 110,000
          labelled colour images, 64x64, 200 classes; its validation images
          are the test part. Set --config.data.data_dir to it.
Paper     IADD's method at MTT's hyperparameters (Cazenavette et al., CVPR
          2022, appendix), ConvNet of four blocks.
Expected  of the papers, ConvNet, IPC 1 / 10 / 50: MTT 8.8 / 23.2 / 28.0,
          random real images 1.4 / 5.0 / 15.0, the whole data 37.6. Not run
          here.
Cost      size=full needs a GPU. size=small: hours on two CPU cores, because
          the images are many; --config.data.per_class=100 makes it one.
Command   python experiments/iadd.py --config=configs/tiny_imagenet.py:ipc=10
"""

from configs import common

PUBLISHED = {
    1: dict(steps=10, max_start=10, batch=0),
    10: dict(steps=20, max_start=40, batch=200),
    50: dict(steps=20, max_start=40, batch=300),
}


def get_config(argument=""):
    """Takes ``ipc=1|10|50`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10, 50), size="full")
    config = common.base()
    config.data.source = "tiny_imagenet"
    config.model.depth = 4
    common.biggan(config, 64)
    config.d2m.classes = 20
    common.published(
        config,
        ipc,
        span=2,
        image_step=1e4,
        rate_step=1e-4,
        rate=1e-2,
        **PUBLISHED[ipc],
    )
    if size == "small":
        common.small(config, ipc)
        config.iadd.batch_size = 50
        config.evaluate.epochs = 50
    return config
