"""COVID-19 chest X-rays at one or ten images per class.

Data      a folder of X-rays by class, for example the COVID-19 Radiography
          Database with its masks moved out: set --config.data.data_dir to
          the folder that has train/ and test/, or the classes. Read in grey.
Paper     IADD has a COVID-19 task (Li et al., 2024); its hyperparameters are
          not known to us. Those of MTT's Tiny ImageNet at IPC 1 stand in.
Expected  unknown: not run here. README.md has folder.py's figures on 1,124
          X-rays of three classes, in grey too but with other augmentation.
Cost      size=full needs a GPU. size=small: as folder.py's.
Command   python experiments/iadd.py
          --config=configs/covid19.py:ipc=1,size=small
"""

from configs import common
from ddjax import presets


def get_config(argument=""):
    """Takes ``ipc=1|10`` and ``size=full|small``."""
    _, ipc, size = common.options(argument, ipcs=(1, 10), size="full")
    config = common.base()
    side = presets.FOLDER_SIDE
    common.change(config, presets.folder(""))
    common.change(config, presets.of_side(side, ipc, full=size == "full"))
    config.data.channels = 1
    # A mirrored chest has its heart on the other side, and X-rays no hue.
    common.augmented_by(config, "crop_cutout_scale_rotate")
    return config
