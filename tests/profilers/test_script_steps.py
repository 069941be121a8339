import os

import torch
from torch import nn

from dnnmem.profilers.script_steps import StepCounter


class Ended(BaseException):
    pass


def count(run, enough=2):
    """Steps counted while `run` trains, whether it was ended, and steps by optimizer; hooks are taken away again."""
    from torch.optim import optimizer as hooks

    before = dict(hooks._global_optimizer_pre_hooks), dict(hooks._global_optimizer_post_hooks)

    def end():
        raise Ended

    counter = StepCounter(enough, on_step=lambda *_: None, on_end=end)
    ended = False
    try:
        run()
    except Ended:
        ended = True
    finally:
        for kept, now in zip(
            before, (hooks._global_optimizer_pre_hooks, hooks._global_optimizer_post_hooks), strict=True
        ):
            now.clear()
            now.update(kept)
        if counter._handle is not None:
            counter._handle.remove()
    return counter.steps, ended, dict(counter.by_optimizer)


def test_the_run_ends_where_the_step_after_the_last_begins():
    # GIVEN a loop that would make 10 steps, and notes what it does after each
    model, after = nn.Linear(2, 2), []

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(10):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            after.append(i)

    # THEN what follows the last update still happens
    assert count(run) == (2, True, {"SGD": 2})
    assert after == [0, 1]


def test_of_two_optimizers_the_one_behind_counts():
    model = nn.Linear(2, 2)

    def run():
        first, second = torch.optim.SGD([model.weight], lr=0.1), torch.optim.AdamW([model.bias])
        for _ in range(10):
            model(torch.ones(1, 2)).sum().backward()
            first.step()
            second.step()

    assert count(run) == (2, True, {"SGD": 2, "AdamW": 2})


def test_sub_steps_without_a_backward_between_are_one():
    model = nn.Linear(2, 2)

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 2)).sum().backward()
        for _ in range(5):
            optimizer.step()

    assert count(run) == (1, False, {"SGD": 1})


def test_recomputing_in_backward_is_no_new_step():
    # GIVEN an update inside backward, as optimizers that are fused into it make, with a checkpointed module before it
    model = nn.Linear(2, 2)

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.utils.checkpoint.checkpoint(model, torch.ones(1, 2, requires_grad=True), use_reentrant=False)
        x.register_hook(lambda _: optimizer.step())
        x.sum().backward()

    assert count(run, enough=1) == (1, False, {"SGD": 1})


def test_a_script_may_come_to_its_own_end():
    assert count(lambda: None) == (0, False, {})


def test_a_forked_worker_whose_transforms_are_modules_ends_nothing():
    # GIVEN a program that has made its steps and starts a worker, as a DataLoader for validation does
    model, codes = nn.Linear(2, 2), []

    def in_a_fork():
        process = os.fork()
        if process == 0:
            try:
                nn.Identity()(torch.ones(1))
            except Ended:
                os._exit(1)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        in_a_fork()

    # THEN the worker goes on
    assert count(run) == (2, False, {"SGD": 2})
    assert codes == [0]
