"""CIFAR-100 at 1, 10 or 50 images per class.

Data      TFDS cifar100: 60,000 colour images, 32x32, a hundred classes.
Paper     IADD's method at MTT's hyperparameters (Cazenavette et al., CVPR
          2022, appendix); ZCA at 1 and 50 images per class.
Expected  of the papers, ConvNet, IPC 1 / 10 / 50: MTT 24.3 / 40.1 / 47.7,
          random real images 4.2 / 14.6 / 30.0, the whole data 56.2. Not run
          here.
Cost      size=full needs a GPU. size=small: about an hour on two CPU cores,
          estimated from CIFAR-10's with ten times the images.
Command   python experiments/iadd.py --config=configs/cifar100.py:ipc=10
"""

from configs import common

PUBLISHED = {
    1: dict(steps=20, span=3, max_start=20, batch=0, zca=True),
    10: dict(steps=20, span=2, max_start=20, batch=0),
    50: dict(steps=80, span=2, max_start=40, batch=125, zca=True),
}


def get_config(argument=""):
    """Takes ``ipc=1|10|50`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10, 50), size="full")
    config = common.base()
    config.data.source = "cifar100"
    common.published(
        config, ipc, image_step=1e3, rate_step=1e-5, rate=1e-2, **PUBLISHED[ipc]
    )
    if size == "small":
        common.small(config, ipc)
        config.iadd.batch_size = 50
        config.evaluate.epochs = 100
    return config
