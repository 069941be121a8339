from __future__ import annotations

import pytest

from dnnmem.estimator import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DnnmemError, 5),
        (errors.RegressionError, 1),
        (errors.UsageError, 2),
        (errors.ModelError, 3),
        (errors.UnsupportedError, 4),
        (errors.InternalError, 5),
        (errors.TraceError, 5),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert error("what").exit_code == code


def test_an_error_is_its_message_and_keeps_the_hint_apart():
    # GIVEN an error with a way out  WHEN it is raised
    with pytest.raises(errors.DnnmemError) as caught:
        raise errors.UsageError("--batch is 0", hint="give 1 or more")
    # THEN its text is the message alone
    assert str(caught.value) == caught.value.message == "--batch is 0"
    assert caught.value.hint == "give 1 or more"


def test_a_hint_is_optional():
    assert errors.ModelError("what").hint == ""
