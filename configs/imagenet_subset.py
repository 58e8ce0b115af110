"""Ten classes of ImageNet at 128 px: nette, woof, fruit, yellow, meow, squawk.

Data      ImageNet-1K, from TFDS (imagenet2012) or from folders train/ and val/
          of one folder a class, named by WordNet number: set
          --config.data.data_dir. Only the ten classes are decoded.
Paper     IADD's method at MTT's hyperparameters (Cazenavette et al., CVPR
          2022, appendix), ConvNet of five blocks.
Expected  MTT in its paper, IPC 1 / 10 (whole data): nette 47.7 / 63.0 (87.4),
          woof 28.6 / 35.8 (67.0), fruit 26.6 / 40.3 (63.9), yellow 45.2 / 60.0
          (84.4), meow 30.7 / 40.4 (66.7), squawk 39.4 / 52.3 (87.5). Not run
          here.
Cost      size=full needs a GPU. size=small: hours on two CPU cores;
          --config.data.per_class=100 --config.data.size=64
          --config.model.depth=4 makes it one.
Command   python experiments/iadd.py
          --config=configs/imagenet_subset.py:nette,ipc=1
"""

from configs import common
from ddjax.data import imagenet


def get_config(argument=""):
    """Takes a subset, then ``ipc=1|10`` and ``size=full|small``."""
    name, ipc, size = common.options(
        argument,
        ipcs=(1, 10),
        size="full",
        what=f"a subset ({', '.join(imagenet.SUBSETS)})",
    )
    wordnet, names = imagenet.subset(name)
    config = common.base()
    config.data.source = "imagenet"
    config.data.size = 128
    config.data.classes = ",".join(wordnet)
    config.data.class_names = ",".join(names)
    config.model.depth = 5
    common.biggan(config, 128)
    common.published(
        config,
        ipc,
        steps=20,
        span=2,
        max_start=10,
        batch=0,
        image_step=1e3 if ipc == 1 else 1e5,
        rate_step=1e-6,
        rate=1e-2,
    )
    if size == "small":
        common.small(config, ipc)
        config.iadd.batch_size = 10
        config.evaluate.epochs = 100
    return config
