"""SIGINT (Ctrl-C) and SIGTERM (from schedulers): a training loop ends its step first."""

import contextlib
import signal
import threading


class Stopped(KeyboardInterrupt):
    """A signal, with this number, stopped the program; on_all_ranks: all processes stopped at the
    same step, so that one of them prints the message."""

    def __init__(self, number: int, message: str = "", on_all_ranks: bool = False):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number, self.on_all_ranks = number, on_all_ranks
        self.exit_code = 128 + number  # as in a shell: 130 for SIGINT, 143 for SIGTERM

    @classmethod
    def after(cls, number: int, step: int, steps: int) -> "Stopped":
        """The signal that stopped all processes after this step."""
        name = signal.Signals(number).name
        return cls(number, f"stopped by {name} after step {step} of {steps}", on_all_ranks=True)


@contextlib.contextmanager
def sigterm_raises():
    """Within, SIGTERM raises Stopped, as SIGINT raises KeyboardInterrupt: `finally` blocks run."""

    def stop(number, frame):
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_sigterm() -> None:
    """Ignore SIGTERM from now on, so that the last message is printed when a whole job is ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class StopRequest:
    """Context manager: a first SIGINT or SIGTERM only sets `number` (else 0); a second raises."""

    def __init__(self):
        self.number, self._before = 0, {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.number:
            raise Stopped(number)
        self.number = number
