"""How every command ends: a mistake is one line on the error stream and exit code 2, an interruption one line and 130.

Bugs keep their traceback: only what a user or a machine can mend is turned into a line.
"""

import _thread
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partialmethod
from typing import Any

from foundation.errors import CurationError
from foundation.numbers import is_digits

MISTAKE, INTERRUPTED = 2, 130
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk, what a file may be, a quota
LONGEST = 600  # letters of a line
BAR_SECONDS = 10.0  # between two states of a progress bar that no terminal shows
EXTRAS = {  # package -> the extras of this project that bring it, the smallest first
    "datasketch": ("text", "language"),
    "datatrove": ("text-filters",),
    "imagehash": ("filters",),
    "laspy": ("satellite",),
    "lightning": ("train", "text", "language", "satellite"),
    "lm_eval": ("language",),
    "onnxruntime": ("filters",),
    "rasterio": ("rasters", "satellite"),
    "sentence_transformers": ("text", "language"),
    "submitit": ("slurm",),
    "tokenizers": ("text", "language"),
    "transformers": ("text", "language"),
    "wandb": ("train", "text", "language", "satellite"),
}
LAUNCHER = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID")
LESS_MEMORY = (
    "of a training lower speed.micro_batch_size, then set speed.checkpoint_activations=true; of an embedding lower "
    "--batch-size; of k-means take fewer clusters, or split them (1000x10)"
)
# what torch and its libraries say of a device that is not there; none of them has a type of its own
NO_DEVICE = (
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "Torch not compiled with CUDA enabled",
    "invalid device ordinal",
    "Cannot access accelerator device",
    "device type at start of device string",
)


def run_command(name: str, body: Callable[[], object], extra: str = "") -> None:
    """Run the body of a command and end the process where it did not succeed.

    Args:
        name: of the command, in front of its lines.
        body: returns None, or an exit code. Of a typer app: ``partial(app, standalone_mode=False, ...)``.
        extra: of this project, that holds all that the command may need.

    Raises:
        SystemExit: 2 after a mistake, 130 after Ctrl-C, or what the body returned.
    """
    _open_streams()
    if not sys.stderr.isatty():
        _slow_bars()
    try:
        with _no_interrupt_lost(), _no_torn_bar():
            _check_variables()
            code = body()
        sys.stdout.flush()  # here, where a full disk is a line; at the exit it would be a traceback
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output is gone, as in `curate plan ... | head -1`
        raise SystemExit(1) from None
    except Exception as error:
        line = explain(error, extra)
        if line is None:
            raise
        _close_bars()
        _say(f"{name}: error: {line}")
        raise SystemExit(MISTAKE) from None
    finally:
        _let_go()
    if code == INTERRUPTED:
        _hide_bars()
        _close_bars()
        _say(f"{name}: interrupted; run the same command again to go on")
    if isinstance(code, int) and code:
        raise SystemExit(code)


def _open_streams() -> None:
    """Give a process that was started with closed streams (``>&-``) others: the first file that it writes would take
    their number, and messages of libraries would end in it; progress bars fail without them."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives


def _check_variables() -> None:
    """Refuse variables of torchrun or srun that hold no number, on which libraries fail while they are imported."""
    for name in LAUNCHER:
        if not is_digits(os.environ.get(name, "0")):
            raise CurationError(f"the variable {name} is {os.environ[name]!r}, no whole number; unset it")


@cache  # a second time would wrap it twice
def _slow_bars() -> None:
    """Let bars that go to a file, as the log of a job, speak every `BAR_SECONDS`: at ten times a second a day of
    training leaves tens of MB. ``TQDM_MININTERVAL`` says otherwise."""
    from tqdm.std import tqdm

    if "TQDM_MININTERVAL" not in os.environ:
        tqdm.__init__ = partialmethod(tqdm.__init__, mininterval=BAR_SECONDS)  # type: ignore[method-assign]


def _open_bars() -> list[Any]:
    """Progress bars that have not ended."""
    return list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ()))


def _hide_bars() -> None:
    """Bars from now on leave nothing where they end: beside ^C and our line they would be torn."""
    for bar in _open_bars():
        bar.leave = False


def _close_bars() -> None:
    """End the lines of bars: what is said next begins a line of its own, and comes last."""
    for bar in _open_bars():
        with suppress(OSError, ValueError):  # its stream is closed
            bar.close()


@contextmanager
def _no_torn_bar() -> Iterator[None]:
    """Let Ctrl-C take the bars off the screen, where nobody else has its signal."""
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def interrupt(number: int, frame: Any) -> None:
        _hide_bars()
        signal.default_int_handler(number, frame)

    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _let_go() -> None:
    """What could not be written is not tried again at the exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Raise Ctrl-C again where Python swallowed it: while an object was freed, or C code called back."""
    before = sys.unraisablehook

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, _thread.interrupt_main).start()  # at once, it would come within this hook
        else:
            before(lost)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def warn_in_one_line(category: type[Warning]) -> None:
    """Show warnings of a category as ``warning: ...``, each time, until the filters are changed again."""
    warnings.simplefilter("always", category)
    warnings.showwarning = lambda message, *_rest, **_options: _say(f"warning: {message}")


def missing_package(error: ModuleNotFoundError, extra: str = "") -> str | None:
    """Which extra to install for a package that is not there: ``extra`` where it brings it; None: no extra does."""
    known = EXTRAS.get(str(error.name).partition(".")[0])
    named = extra if known and extra in known else known and known[0]
    return f"this needs the package {error.name}; pip install 'curated-ssl[{named}]'" if named else None


def explain(error: BaseException, extra: str = "") -> str | None:
    """What a user has to know of an error, on one line; None where it is a bug and its traceback is wanted.

    Args:
        extra: see `run_command`.
    """
    line = _explain(error, extra)
    if line is None or len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"  # a path may have thousands of letters


def _explain(error: BaseException, extra: str) -> str | None:
    text = " ".join(str(error).split())
    if isinstance(error, CurationError):
        return text
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error, extra)
    if isinstance(error, ImportError) and ".so" in text:  # of a package that is there, such as lib.so: cannot open
        return f"a library cannot be loaded ({text[:300]}); install it again, or give more memory"
    if isinstance(error, OSError) and error.errno in FULL and not error.filename:
        return f"no space is left where the output goes ({error.strerror}); free some, or send it elsewhere"
    if isinstance(error, OSError):
        return f"{error.strerror or text}{f' ({error.filename})' if error.filename else ''}"
    if hasattr(error, "format_message"):  # of click, which typer brings under its own name or click's
        where = getattr(getattr(error, "ctx", None), "command_path", "")
        said = " ".join(error.format_message().split()).rstrip(".") or "no command is given"
        return f"{said}; see {where} --help" if where else said
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text or 'no more could be had'}); use smaller batches or a larger machine"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return f"out of GPU memory ({text.partition('. GPU')[0]}); {LESS_MEMORY}"
    if isinstance(error, UnicodeEncodeError):
        return f"a name or text cannot be written as {error.encoding} ({text[:120]}); rename the file or folder"
    if isinstance(error, UnicodeError):
        return f"text that is read is not UTF-8 ({text[:120]}); convert the file to UTF-8"
    if isinstance(error, RuntimeError | AssertionError) and any(part in text for part in NO_DEVICE):
        return f"the device cannot be used here ({text[:160]}); choose another, such as cpu"
    # errors of pyarrow, safetensors and GDAL are of types that are not imported for this
    library = type(error).__module__.partition(".")[0]
    if library in ("pyarrow", "safetensors", "rasterio") or type(error).__name__ == "SafetensorError":
        return f"a file cannot be read or written: {text[:300] or type(error).__name__}"
    if "(os error " in text:  # of libraries in Rust, such as tokenizers, which raise a bare Exception
        return f"a file cannot be read or written: {text[:300]}"
    if isinstance(error, RuntimeError) and ("file write failed" in text or "unexpected pos" in text):
        return f"a file cannot be written; the disk may be full ({text[-160:]})"  # torch.save names no file
    return None


def _say(text: str) -> None:
    with suppress(OSError):  # nobody listens: the exit code says it, too
        print(text, file=sys.stderr, flush=True)
