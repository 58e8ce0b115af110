"""Fashion-MNIST at 1, 10 or 50 images per class.

Data      TFDS fashion_mnist: 70,000 pictures of clothes, grey, 28x28.
Paper     IADD's method; MTT has no figures for this set, the hyperparameters
          are its CIFAR-10's, without ZCA.
Expected  unknown: not run here. DSA (Zhao and Bilen, ICML 2021) has
          70.6 / 84.6 / 88.7 at IPC 1 / 10 / 50 and 93.5 on the whole data.
Cost      size=full needs a GPU. size=small: an hour on one CPU core, estimated
          from CIFAR-10's.
Command   python experiments/iadd.py
          --config=configs/fashion_mnist.py:ipc=1,size=small
"""

from configs import common
from configs.cifar10 import PUBLISHED


def get_config(argument=""):
    """Takes ``ipc=1|10|50`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10, 50), size="full")
    config = common.base()
    config.data.source = "fashion_mnist"
    common.published(config, ipc, span=2, batch=0, **PUBLISHED[ipc])
    if size == "small":
        common.small(config, ipc)
    return config
