import os

import pytest

from dnnmem.cli.export.files import check_writable, write_atomic
from dnnmem.estimator.errors import UsageError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    write_atomic(path, "new\n")

    assert path.read_bytes() == b"new\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    path.mkdir()

    with pytest.raises(UsageError, match="cannot write"):
        write_atomic(path, "new")

    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_what_is_no_file_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    check_writable(pipe, "--json")
    write_atomic(pipe, "text")

    assert os.read(reader, 99) == b"text"
    assert pipe.is_fifo()
    os.close(reader)


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "far" / "a.json")

    check_writable(link, "--json")
    write_atomic(link, "text")

    assert link.is_symlink()
    assert (tmp_path / "far" / "a.json").read_text() == "text"


def test_a_name_that_is_not_text_costs_no_report(tmp_path):
    write_atomic(tmp_path / "a.json", "of m\udcff.py")

    assert (tmp_path / "a.json").read_text() == "of m?.py"


def test_the_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a.json", "--json")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError) as caught:
        check_writable(tmp_path / "no" / "a.json", "--json")

    assert caught.value.message == f"--json {tmp_path / 'no' / 'a.json'}: there is no folder {tmp_path / 'no'}"
    assert caught.value.hint == f"make it first: mkdir -p {tmp_path / 'no'}"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder, not a file"):
        check_writable(tmp_path, "--csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot write in"):
            check_writable(tmp_path / "a.json", "--json")
    finally:
        tmp_path.chmod(0o700)
