import io

from dnnmem.cli.progress import listening


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(stream, **how):
    with listening(stream, **{"quiet": False, "no_color": False, **how}) as listeners:
        listeners.on_progress(1)
        listeners.on_progress(2)
        listeners.on_output("loss [2.3]")
    return stream.getvalue()


def test_a_pipe_gets_the_models_words_only():
    assert work(io.StringIO()) == "loss [2.3]\n"


def test_quiet_is_silent_even_on_a_terminal():
    assert work(Terminal(), quiet=True) == ""


def test_a_terminal_sees_the_steps_and_the_words_and_the_line_is_wiped(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")

    text = work(Terminal())

    assert "training, step 3" in text
    assert "loss [2.3]\n" in text
    assert text.endswith("\x1b[2K")


def test_no_color_keeps_the_line_without_its_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")

    text = work(Terminal(), no_color=True)

    assert "training, step 3" in text
    assert "\x1b[3" not in text
