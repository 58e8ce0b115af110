"""ImageNet-1K at 128 px, at one or ten images per class.

Data      ImageNet-1K, from TFDS (imagenet2012) or from folders train/ and val/
          of one folder a class: set --config.data.data_dir. The prepared
          images take 65 GB on disk and are read from there as they are used.
Paper     IADD's method; no trajectory matching on the whole of ImageNet-1K at
          128 px is published, so the hyperparameters are those of MTT's
          ten-class subsets, with 500 images a student's step.
Expected  unknown: not run here.
Cost      size=full needs several GPUs, size=small one.
Command   python experiments/iadd.py --config=configs/imagenet1k.py:ipc=1
"""

from configs import common


def get_config(argument=""):
    """Takes ``ipc=1|10`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10), size="full")
    config = common.base()
    config.data.source = "imagenet"
    config.data.size = 128
    config.model.depth = 5
    common.biggan(config, 128)
    # 160 made images and as many real ones take 25 GiB at BigGAN's full width;
    # 32 classes would take 80.
    config.d2m.classes = 10
    common.published(
        config,
        ipc,
        steps=20,
        span=2,
        max_start=10,
        batch=500,
        image_step=1e3 if ipc == 1 else 1e5,
        rate_step=1e-6,
        rate=1e-2,
    )
    if size == "small":
        common.small(config, ipc)
        config.data.per_class = 50
        config.iadd.batch_size = 100
        config.evaluate.epochs = 20
        config.d2m.ipcs = "1,10"
        config.d2m.epochs = "20"
        config.d2m.stream_ipc = 10  # an epoch of 50 has 9 GiB of images
    return config
