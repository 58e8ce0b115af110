"""CIFAR-10 at 1, 10 or 50 images per class.

Data      TFDS cifar10: 60,000 colour images, 32x32, ten classes. To prepare
          it TFDS needs TensorFlow once; the message says how.
Paper     IADD's method at MTT's hyperparameters (Cazenavette et al., CVPR
          2022, appendix); ZCA at 1 and 10 images per class.
Expected  of the papers, ConvNet, IPC 1 / 10 / 50: MTT 46.3 / 65.3 / 71.6,
          random real images 14.4 / 26.0 / 43.4, the whole data 84.8. The full
          size has not been run here. size=small: see README.md.
Cost      size=full needs a GPU: 100 teachers of width 128, 5,000 updates of
          30 to 50 steps. size=small: 43 minutes on one busy CPU core.
          D2M: the full size has not been run either; size=small pre-trains
          a generator of 87 thousand numbers for 40 minutes: README.md.
Command   python experiments/iadd.py
          --config=configs/cifar10.py:ipc=1,size=small
"""

from configs import common

PUBLISHED = {
    1: dict(steps=50, max_start=2, image_step=1e2, rate_step=1e-7, rate=1e-2),
    10: dict(steps=30, max_start=20, image_step=1e2, rate_step=1e-5, rate=1e-3),
    50: dict(steps=30, max_start=40, image_step=1e3, rate_step=1e-5, rate=1e-3),
}


def get_config(argument=""):
    """Takes ``ipc=1|10|50`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10, 50), size="full")
    config = common.base()
    config.data.source = "cifar10"
    common.published(
        config, ipc, span=2, batch=0, zca=ipc < 50, **PUBLISHED[ipc]
    )
    if size == "small":
        common.small(config, ipc)
    return config
