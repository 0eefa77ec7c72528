"""SIGINT (Ctrl-C) and SIGTERM (what schedulers send): a loop finishes its step first, everything else stops where it is."""

import contextlib
import signal
import threading


class Stopped(KeyboardInterrupt):
    """Stopped by a signal; `number` is which one, and the message what to tell about it. agreed: by all processes, so one tells it."""

    def __init__(self, number: int, message: str = "", agreed: bool = False):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number, self.agreed = number, agreed

    @property
    def exit_code(self) -> int:
        """As shells give it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


@contextlib.contextmanager
def terminable():
    """Within, SIGTERM raises Stopped, as SIGINT raises KeyboardInterrupt: what is open is closed, half-written files are removed."""

    def stop(number, frame):
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_terminate() -> None:
    """From now on SIGTERM does nothing: what is left to do is to say why it ends, also where all of a job's processes are ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Asked:
    """with Asked() as asked: a first signal is noted in asked.number (else 0) instead of interrupting; a second one interrupts."""

    def __init__(self):
        self.number, self._before = 0, {}

    def __enter__(self) -> "Asked":
        if threading.current_thread() is threading.main_thread():  # only there can it be asked
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.number:
            raise Stopped(number)
        self.number = number
