"""What every script shares: the path, the flags, and clear refusals.

Imported first by each script, so that ``configs`` is found from any folder.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from configs import common
from ddjax.types import InputError

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, for example configs/tiny.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's folder; runs/<script>-<config> by default"
)
_TEACHERS = flags.DEFINE_string(
    "teachers", "runs/teachers", "shared teachers; runs/teachers by default"
)
_GENERATORS = flags.DEFINE_string(
    "generators",
    "runs/generators",
    "shared pre-trained generators; runs/generators by default",
)
_DATA = flags.DEFINE_string(
    "data", "runs/data", "shared prepared images; runs/data by default"
)


class Shared(NamedTuple):
    """Folders that runs share.

    Attributes:
      teachers: one folder in it for each kind of teachers.
      data: one folder in it for each prepared data set.
      generators: one folder in it for each pre-trained generator.
    """

    teachers: Path
    data: Path
    generators: Path


def main(run: Callable[..., None], description: str) -> None:
    """Parses the command line, calls ``run``, and leaves with a plain word.

    Exit codes: 0 done, 2 the user's mistake (one sentence on stderr).

    Args:
      run: run(config, workdir, shared).
      description: the script's docstring.
    """
    if any(word in ("-h", "--help", "-help") for word in sys.argv[1:]):
        print(_help(description))
        sys.exit(0)

    def parsed() -> None:
        config, name = _parse(sys.argv)
        script = Path(sys.argv[0]).stem
        workdir = Path(_WORKDIR.value or f"runs/{script}-{name}")
        folders = (_TEACHERS.value, _DATA.value, _GENERATORS.value)
        run(config, workdir, Shared(*map(Path, folders)))

    code = refusing(parsed)
    if code:
        sys.exit(code)


def refusing(action: Callable[[], None]) -> int:
    """Runs a script's work; the user's mistakes become one sentence.

    Returns:
      The exit code: 0 done, 2 the user's mistake, 130 interrupted.
    """
    try:
        action()
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse(
                f"the disk is full ({error.filename or 'while writing'}): "
                "free some space and run the same command, it goes on from "
                "its last checkpoint"
            )
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENOENT,
        ):
            return _refuse(
                f"cannot use {error.filename}: {error.strerror}; name "
                "another folder with --workdir, --teachers, --data, "
                "--generators or --out"
            )
        raise
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def look_steps(looks: int, last: int) -> list[int]:
    """The updates after which a run is looked at: evenly, the last included."""
    return sorted({round(last * (i + 1) / looks) for i in range(looks)} - {0})


def progress(what: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A bar with the time left; in a log file, a line now and then."""
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        leave=False,
        mininterval=0.2 if sys.stderr.isatty() else 30,
    )


def _refuse(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> tuple[Any, str]:
    """(locked config, its name), or InputError in one sentence."""
    try:
        rest = FLAGS(argv)
        if len(rest) > 1:
            raise InputError(
                f"unexpected argument {rest[1]!r}: flags start with --"
            )
        config = _CONFIG.value
        if config is None:
            raise InputError(
                "no config: add for example --config=configs/tiny.py"
            )
        filename = config_flags.get_config_filename(FLAGS["config"])
        path, _, argument = filename.partition(":")
        if not Path(path).is_file():
            raise InputError(
                f"there is no config file {path}: check the path after "
                "--config="
            )
        missing = [f for f in common.FIELDS if not _has(config, f)]
    except InputError:
        raise
    except AttributeError as error:
        text = _plain(error).replace("'", "").replace('"', "")
        if "get_config" in text:
            raise InputError(
                "the config file defines no function get_config: see "
                "configs/tiny.py"
            ) from None
        raise InputError(
            f"unknown config field {text} (--help lists the fields)"
        ) from None
    except (OSError, ImportError, SyntaxError) as error:
        raise InputError(
            f"cannot load the config file ({_plain(error)}): check the path "
            "after --config="
        ) from None
    except (KeyError, TypeError, ValueError, flags.Error) as error:
        raise InputError(
            f"bad flag: {_plain(error)} (--help lists the fields)"
        ) from None
    if missing:
        raise InputError(
            f"{filename} lacks the field {missing[0]}: start its get_config "
            "from configs.common.base()"
        )
    words = re.findall("[A-Za-z0-9]+", argument)
    return config, "-".join([Path(path).stem, *words])


def _has(config: Any, field: str) -> bool:
    for name in field.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


def _plain(error: Exception) -> str:
    """An exception's text as one line; of a traceback, the last line."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text:
        lines = [re.sub(r"^[\w.]*InputError: ", "", lines[-1])]
    return " ".join(lines) or type(error).__name__


def _help(description: str) -> str:
    lines = [
        description.strip(),
        "",
        "Flags:",
        "  --config=FILE[:ARG]    config file, for example configs/tiny.py",
        f"  --workdir=FOLDER       {FLAGS['workdir'].help}",
        f"  --teachers=FOLDER      {FLAGS['teachers'].help}",
        f"  --data=FOLDER          {FLAGS['data'].help}",
        f"  --generators=FOLDER    {FLAGS['generators'].help}",
        "  --config.FIELD=VALUE   overrides a field of the config, after "
        "--config",
        "",
        "Fields, with the defaults that a config file starts from:",
    ]
    for field, (default, meaning) in common.FIELDS.items():
        lines.append(f"  {field + '=' + str(default):44} {meaning}")
    return "\n".join(lines)
