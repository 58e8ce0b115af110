"""Images of your own: a folder of them, arrays in an .npz file, or any set.

Data      class/*.png (jpg, ..) or train/class/* and test/class/*, of any
          sizes, grey or colour; what np.savez wrote (README.md); or the name
          of a data set, such as a TFDS name. It stands behind the colon.
Paper     none; IADD's method. size=full takes MTT's hyperparameters of Tiny
          ImageNet. size=small takes the steps of the set that was tuned and
          is nearest in size: digits, CIFAR-10 or X-rays.
Expected  see README.md for chest X-rays.
Cost      size=small, the default: half an hour on one CPU core with a
          thousand images; teachers take longer in proportion to more.
          With minutes= it is as long as that, on any machine.
Command   python experiments/iadd.py --config=configs/folder.py:PATH,minutes=30
"""

from configs import common
from ddjax import presets


def get_config(argument=""):
    """Takes a path or name, ``ipc=`` any number, ``minutes=`` any, and
    ``size=small|full``."""
    words = argument.split(",")
    asked = [word for word in words if word.startswith("minutes=")]
    what, ipc, size = common.options(
        ",".join(word for word in words if word not in asked),
        size="small",
        what="the path of a folder or an .npz file",
        takes="ipc=, minutes= and size=",
    )
    config = common.base()
    common.change(config, presets.own(what, ipc, full=size == "full"))
    for word in asked:
        config.minutes = common.number(word.partition("=")[2], "minutes=")
    return config
