"""Every failure dnnmem tells a person about: one message, one hint, one exit code.

An error states what is wrong with the values in it and the rule that they break; its hint says the way out.
Only `cli/app.py` prints one and turns it into an exit code.

>>> error = UsageError("--batch is 0; a batch has at least one sample", hint="give --batch 1 or more")
>>> error.exit_code, str(error)
(2, '--batch is 0; a batch has at least one sample')
"""

from __future__ import annotations

from typing import ClassVar


class DnnmemError(Exception):
    """A failure with a message for people. Subclasses fix the exit code of the command line."""

    exit_code: ClassVar[int] = 5
    """What the command line exits with: 1 regression or over budget, 2 usage, 3 model, 4 unsupported, 5 internal."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Args: `message` says what, with the values and the rule; `hint` says the way out (may be several lines)."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class RegressionError(DnnmemError):
    """More memory than the baseline allows, or than the budget."""

    exit_code = 1


class InfeasibleError(RegressionError):
    """No plan of the asked kind fits the budget."""

    def __init__(self, message: str, *, needed_bytes: int, hint: str = "") -> None:
        """Args: `needed_bytes` is the least that was found to be needed."""
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes


class UsageError(DnnmemError):
    """A wrong option, file, target or configuration: the person can mend the call."""

    exit_code = 2


class ModelError(DnnmemError):
    """The user's code failed to build the model or to run the step."""

    exit_code = 3


class UnsupportedError(DnnmemError):
    """A correct request that this device, torch or machine cannot serve; the message names the operator or the need."""

    exit_code = 4


class InternalError(DnnmemError):
    """A fault of dnnmem itself."""

    exit_code = 5


class TraceError(InternalError):
    """A trace that breaks its own rules: the message names the op and the storage."""
