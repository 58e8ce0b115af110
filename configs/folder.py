"""A folder of your own images.

Data      class/*.png (jpg, ..) or train/class/* and test/class/*, of any
          sizes, grey or colour; the path stands behind the colon.
Paper     none; IADD's method. size=full takes MTT's hyperparameters of Tiny
          ImageNet at 64 px.
Expected  see README.md for chest X-rays.
Cost      size=small, the default: half an hour on one CPU core with a
          thousand images; teachers take longer in proportion to more.
Command   python experiments/iadd.py --config=configs/folder.py:PATH
"""

from configs import common


def get_config(argument=""):
    """Takes a path, then ``ipc=1|10`` and ``size=small|full``."""
    path, ipc, size = common.options(
        argument, ipcs=(1, 10), size="small", what="the path of a folder"
    )
    return of_images(path, ipc, size)


def of_images(path, ipc, size):
    """The config of a folder."""
    config = common.base()
    config.data.source = "folder"
    config.data.data_dir = path
    config.data.size = 64
    config.model.depth = 4
    common.biggan(config, 64)
    common.published(
        config,
        ipc,
        steps=10,
        span=2,
        max_start=10,
        batch=0,
        image_step=1e4,
        rate_step=1e-4,
        rate=1e-2,
    )
    # Folders are seldom balanced, and distilled images always are.
    config.evaluate.metric = "balanced_accuracy"
    if size == "small":
        common.small(config, ipc)
        common.change(
            config,
            {
                "teacher.count": 10,
                "teacher.epochs": 20,
                "teacher.batch_size": 32,
                "iadd.span": 2,
                "iadd.max_start": 8,
                "iadd.iterations": 300 if ipc == 1 else 200,
                "iadd.inner_steps": 20 if ipc == 1 else 10,
                "iadd.image_step": 1000.0,
                "iadd.learning_rate": 0.003,
                "iadd.batch_size": 0 if ipc == 1 else 15,
            },
        )
    return config
