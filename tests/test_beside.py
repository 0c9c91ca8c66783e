"""What is done beside something else: it is done at the end, and no error is lost."""

import threading

import pytest

from openmm_lsd.beside import Beside


def test_it_is_done_in_another_thread_by_the_end():
    go = threading.Event()

    def work():
        assert go.wait(5.0)
        return threading.get_ident()

    with Beside(work) as beside:
        assert beside.result is None
        go.set()
    assert beside.result not in (None, threading.get_ident())


def test_nothing_to_do():
    with Beside(None) as beside:
        pass
    assert beside.result is None


def fail():
    raise ZeroDivisionError("beside")


def test_its_error_is_raised():
    with pytest.raises(ZeroDivisionError, match="beside"), Beside(fail):
        pass


def test_the_error_of_the_block_comes_first_and_only_after_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), Beside(lambda: done.append(1)):
        raise KeyboardInterrupt
    assert done
    with pytest.raises(KeyError), Beside(fail):
        raise KeyError
