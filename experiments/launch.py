"""What every script shares: the path, the flags, and clear refusals.

Imported first by each script, so that ``configs`` is found from any folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
from absl import flags
from ml_collections import config_flags

from configs import common
from ddjax import hosts
from ddjax import settings as settings_lib
from ddjax.runs import compiled, loop
from ddjax.runs.workdir import Shared, name_of, refusals
from ddjax.settings import Settings
from ddjax.types import InputError

_FOLDERS = {
    "workdir": (None, "the run's folder; runs/<script>-<config> by default"),
    **{
        name: (str(path), f"shared {what}; {path} by default")
        for (name, path), what in zip(
            Shared()._asdict().items(),
            ("teachers", "prepared images", "pre-trained generators"),
        )
    },
}


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
      settings: of the run.
      workdir: the run's folder.
      shared: where data, teachers and generators lie.
      command: the command line itself.
      fixed: dotted names of the fields that it sets.
      plan: whether a plan is all that is wanted.
      processes: of this run: (coordinator, their number or "auto", the number
        of this one); None where there is one.
      distilled: a distilled file, of evaluate.py, nas.py and privacy.py.
    """

    settings: Settings
    workdir: Path
    shared: Shared
    command: str
    fixed: tuple[str, ...] = ()
    plan: bool = False
    processes: tuple[str, str, int | None] | None = None
    distilled: Path | None = None


def main(
    run: Callable[[Asked], None],
    description: str,
    *,
    planned: bool = False,
    spread: bool = False,
    tests: bool = False,
) -> int:
    """Parses the command line, calls ``run``, and ends with a plain word.

    Args:
      run: does the work.
      description: the script's docstring.
      planned: whether it has to do with runs that fill so many minutes.
      spread: whether it works in several processes.
      tests: whether it takes a distilled file.

    Returns:
      The exit code: 0 done, 2 the user's mistake (one sentence on stderr),
      130 interrupted, 143 stopped by SIGTERM.
    """
    if any(word in ("-h", "--help", "-help") for word in sys.argv[1:]):
        print(_help(description))
        return 0

    def action():
        found = asked(sys.argv)
        if not planned and (found.settings.minutes or found.plan):
            raise InputError(
                "minutes= and --plan are for experiments/iadd.py and d2m.py, "
                "whose runs they plan"
            )
        if found.processes is not None:
            if not spread:
                raise InputError(
                    f"{Path(sys.argv[0]).name} works in one process: leave "
                    "out --processes (iadd.py, d2m.py, gan.py, teachers.py "
                    "and evaluate.py take it)"
                )
            if found.settings.minutes or found.plan:
                raise InputError(
                    "minutes= and --plan measure one process: leave out "
                    "--processes, or minutes= and --plan"
                )
            hosts.connect(*found.processes)
            if not hosts.writes():
                # What all of them would say is said once.
                sys.stdout = open(os.devnull, "w")
        if found.distilled and not tests:
            raise InputError(
                "--distilled= is for experiments/evaluate.py, nas.py and "
                "privacy.py"
            )
        run(found)

    return refusing(action)


def parser(description: str, **more: str) -> argparse.ArgumentParser:
    """Of a script that takes no config."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **more,
    )


def refusing(action: Callable[[], None]) -> int:
    """Runs a script's work; the user's mistakes become one sentence.

    Returns:
      The exit code: 0 done, 2 the user's mistake, 130 interrupted, 143 stopped
      by SIGTERM.
    """
    code, said = 0, ""
    try:
        with _hearing_sigterm(), refusals():
            action()
    except InputError as error:
        code, said = 2, f"error: {' '.join(str(error).split())}"
    except KeyboardInterrupt:
        code, said = 130, "\nstopped; the same command goes on from here"
    except loop.Terminated:
        code = 143
        said = "\nstopped by SIGTERM; the same command goes on from here"
    except Exception as error:
        if hosts.count() == 1:
            raise
        # A sum over processes ends so when one of them has died, and as a
        # ValueError where the host waits for its result.
        if isinstance(error, jax.errors.JaxRuntimeError) or (
            "Gloo" in str(error) or "Gather failed" in str(error)
        ):
            print(hosts.lost(error), file=sys.stderr)
        else:
            traceback.print_exc()
        hosts.leave(1, "another process has failed: its log tells why")
    if said and hosts.writes():
        print(said, file=sys.stderr)
    elif code == 2:  # perhaps of this process alone
        print(f"process {hosts.index()}: {said}", file=sys.stderr)
    hosts.leave(code, said.removeprefix("error: ").strip())
    return code


@contextlib.contextmanager
def _hearing_sigterm():
    """While a script works; tests call scripts in their own process."""
    before = signal.signal(signal.SIGTERM, loop.terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def asked(argv: list[str]) -> Asked:
    """The command line, or InputError in one sentence."""
    # Of this call alone: nothing is left of it for the next.
    found = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=found, sys_argv=argv
    )
    for name, (default, meaning) in _FOLDERS.items():
        flags.DEFINE_string(name, default, meaning, flag_values=found)
    flags.DEFINE_string("distilled", None, "", flag_values=found)
    flags.DEFINE_bool("plan", False, "", flag_values=found)
    flags.DEFINE_string("compiled", None, "", flag_values=found)
    flags.DEFINE_string("coordinator", "", "", flag_values=found)
    flags.DEFINE_string("processes", None, "", flag_values=found)
    flags.DEFINE_integer("process", None, "", flag_values=found)
    try:
        rest = found(argv)
        if len(rest) > 1:
            raise InputError(
                f"unexpected argument {rest[1]!r}: flags start with --"
            )
        config = found.config
        if config is None:
            raise InputError(
                "no config: add for example --config=configs/tiny.py"
            )
        filename = config_flags.get_config_filename(found["config"])
        path, _, argument = filename.partition(":")
        if not Path(path).is_file():
            raise InputError(
                f"there is no config file {path}: check the path after "
                "--config="
            )
        settings = common.settings_of(config, filename)
    except InputError:
        raise
    except AttributeError as error:
        text = _plain(error).replace("'", "").replace('"', "")
        if "get_config" in text:
            raise InputError(
                "the config file defines no function get_config: see "
                "configs/tiny.py"
            ) from None
        raise InputError(_unknown_field(argv, text)) from None
    except (OSError, ImportError, SyntaxError) as error:
        raise InputError(
            f"cannot load the config file ({_plain(error)}): check the path "
            "after --config="
        ) from None
    except (KeyError, TypeError, ValueError, flags.Error) as error:
        if isinstance(error, KeyError) and _unknown(argv):
            raise InputError(_unknown_field(argv, "")) from None
        if "get_config() takes 0" in str(error):
            raise InputError(
                "this config takes nothing behind the colon: give its fields "
                "as --config.minutes=3 and the like"
            ) from None
        raise InputError(
            f"bad flag: {_plain(error)} (--help lists the fields)"
        ) from None
    processes = None
    if found.processes is not None:
        processes = found.coordinator, found.processes, found.process
    elif found.coordinator or found.process is not None:
        raise InputError("--coordinator and --process go with --processes=N")
    compiled.return_memory_of_compiling()
    if found.compiled != "none":
        compiled.keep(Path(found.compiled) if found.compiled else None)
    if found.distilled == "":
        raise InputError("--distilled= names no file or folder")
    name = name_of(Path(argv[0]).stem, Path(path).stem, argument)
    return Asked(
        settings,
        Path(found.workdir or f"runs/{name}"),
        Shared(*map(Path, (found.teachers, found.data, found.generators))),
        shlex.join(["python", *argv]),
        tuple(config_flags.get_override_values(found["config"])),
        found.plan,
        processes,
        Path(found.distilled) if found.distilled else None,
    )


def _unknown_field(argv: list[str], text: str) -> str:
    """The field that was mistyped, whole, and the one that was meant."""
    wrong = _unknown(argv) or text
    meant = settings_lib.meant(wrong)
    return f"unknown config field {wrong}{meant} (--help lists the fields)"


def _unknown(argv: list[str]) -> str:
    """The first field on the command line that is none; "" without."""
    names = (
        match.group(1)
        for match in (re.match(r"--?config\.([^=]+)", word) for word in argv)
        if match
    )
    return next((name for name in names if name not in common.FIELDS), "")


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
        *(
            f"  {f'--{name}=FOLDER':22} {meaning}"
            for name, (_, meaning) in _FOLDERS.items()
        ),
        "  --distilled=FILE       of evaluate.py, nas.py and privacy.py: a "
        "distilled.npz,",
        "                         of ours or not",
        "  --plan                 of iadd.py, d2m.py: tells how long, and "
        "stops",
        "  --compiled=FOLDER      compiled programs, kept for the next start; "
        "none keeps",
        "                         none, your cache folder by default",
        "  --processes=N          this is one of N processes of the run, or "
        "auto for what",
        "                         the cluster says (Slurm, Cloud TPU, GKE); "
        "with N go",
        "  --process=I            its number, from 0 on, and",
        "  --coordinator=HOST:PORT  where process 0 is, and a free port there",
        "  --config.FIELD=VALUE   overrides a field of the config, after "
        "--config",
        "",
        "Fields, with the defaults that a config file starts from:",
    ]
    for name, field in common.FIELDS.items():
        lines.append(f"  {f'{name}={field.default}':44} {field.meaning}")
    return "\n".join(lines)
